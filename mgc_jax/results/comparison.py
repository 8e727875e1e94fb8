"""Several finished runs on one page, with the source's results table, and as Markdown.

Reads only what their reports left on disk.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mgc_jax import console
from mgc_jax.errors import InputError
from mgc_jax.files import write_bytes, write_text
from mgc_jax.results import files, page, plots, published
from mgc_jax.results.metrics import (
    SplitPredictions,
    bootstrap,
    interval,
    mcnemar,
    track_predictions,
)
from mgc_jax.results.published import PUBLISHED
from mgc_jax.results.report import SCORES, other_music

_COST_NOTE = "As measured in each run: training and validation, without preparing the data."
_REPEATS_DIFFER_IN = ("seed", "data_dir")  # of runs that are repeats of each other
_SOURCE_SCORES = (*published.SCORE_NAMES, "top1", "f1_macro")
_SHOWN = ("top1", "f1", "f1_macro", "roc_auc", "ece", "loss")


class Run(NamedTuple):
    """A finished run: its name on the page, what its workdir holds, and its predictions."""

    name: str
    config: dict
    genres: list[str]
    metrics: dict
    facts: dict
    clips: SplitPredictions
    tracks: SplitPredictions


class Table(NamedTuple):
    """A table of the comparison, for the page and for Markdown."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence]
    note: str
    style: str = "numbers"


def read_runs(workdirs: Sequence[str | os.PathLike], least: int = 2) -> list[Run]:
    """Reads finished runs, best F1 (track level) first; other folders are passed over.

    Raises:
        InputError: fewer than `least` of the folders hold a finished run, or the runs were tested
            on different tracks.
    """
    paths = [Path(workdir) for workdir in workdirs]
    names = [path.resolve().name for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a run is named twice: each counts once")
    runs = []
    for path, name in zip(paths, names, strict=True):
        if not files.has_report(path):
            console.log.warning("%s is no finished run: passed over", path)
            continue
        config, genres, metrics, clips = files.read_evaluation(path)
        name = name if names.count(name) == 1 else str(path)
        tracks = track_predictions(clips)
        runs.append(Run(name, config, genres, metrics, files.read_facts(path), clips, tracks))
    if len(runs) < least:
        raise InputError(f"{len(runs)} finished runs among {len(paths)} folders: name at least two")
    for run in runs[1:]:
        _check_same_test(runs[0], run)
    return sorted(runs, key=lambda run: -run.metrics["track"]["f1"])


def compare(runs: Sequence[Run]) -> list[Table]:
    """The tables of a comparison: `runs` as `read_runs` gives them, best first."""
    groups = repeats(runs)
    tables = [source_table(groups), scores_table(runs), _best_table(runs)]
    repeated = [group for group in groups if len(group) > 1]
    return [*tables, *([_seeds_table(repeated)] if repeated else []), _cost_table(runs)]


def repeats(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs in groups that differ by their seed alone."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        kept = {key: value for key, value in run.config.items() if key not in _REPEATS_DIFFER_IN}
        groups.setdefault(json.dumps(kept, sort_keys=True), []).append(run)
    return list(groups.values())


def write_comparison(runs: Sequence[Run], path: Path) -> None:
    """Writes the page to `path` and the Markdown beside it."""
    count = len(runs[0].tracks.label)
    about = f"{len(runs)} runs, tested on the same {count:,} tracks; {runs[0].name} is the best."
    write_tables("Runs compared", about, runs, compare(runs), path)


def write_tables(
    title: str, about: str, runs: Sequence[Run], tables: Sequence[Table], path: Path
) -> None:
    """Writes a page with a picture of the runs' F1 and tables to `path`, the Markdown beside it."""
    rows = []
    for run in runs:
        level = run.metrics["track"]
        source = PUBLISHED.get(run.config["model"])
        source_f1 = None
        if source and not other_music(run.facts["data"]):
            source_f1 = source.scores[0]
        rows.append((run.name, level["f1"], level["intervals"]["f1"], source_f1))
    picture = {"F1 of the runs with 95% intervals": page.png(plots.intervals_figure(rows))}
    body = f'<h1>{title}</h1><p class="soft">{page.text(about)}</p>{page.pictures(picture)}'
    markdown = [f"# {title}\n\n{about}\n"]
    for table in tables:
        body += f"<h2>{page.text(table.title)}</h2>"
        body += page.table("", table.head, table.rows, table.style)
        body += f'<p class="soft">{page.text(table.note)}</p>\n'
        markdown.append(f"## {table.title}\n\n{_markdown(table)}\n{table.note}\n")
    write_text(path.with_suffix(".md"), "\n".join(markdown))
    write_bytes(path, page.document(title, body))


def _check_same_test(first: Run, other: Run) -> None:
    if first.genres != other.genres:
        raise InputError(f"{first.name} and {other.name} tell different genres apart")
    test, others = (
        set(zip(run.tracks.track_id.tolist(), run.tracks.label.tolist(), strict=True))
        for run in (first, other)
    )
    if test != others:
        raise InputError(
            f"{first.name} and {other.name} were tested on different tracks ({len(test - others)} "
            f"only in the first, {len(others - test)} only in the second): compare runs of one "
            "test split"
        )


def source_table(groups: Sequence[Sequence[Run]]) -> Table:
    """What the source published, and below each network its runs, as `repeats` groups them."""
    rows = []
    for model in dict.fromkeys([*PUBLISHED, *(group[0].config["model"] for group in groups)]):
        if model in PUBLISHED:
            source = PUBLISHED[model]
            own = ("–",) * (len(_SOURCE_SCORES) - len(source.scores))
            rows.append((model, "published", *source.scores, *own, source.parameters))
        for group in (group for group in groups if group[0].config["model"] == model):
            parameters = group[0].facts["run"]["parameters"]
            for level in ("track", "clip"):
                scores = _mean_scores(group, level)
                rows.append((model, f"{_name(group)}, {level}s", *scores, parameters))
    note = (
        "Published: FMA small, test split; whether clips or tracks were scored is not stated. "
        "Ours: the mean ± the standard deviation over runs (n - 1), and in small print 95% "
        "intervals of that mean, bootstrapped over the test tracks."
    )
    for reason in sorted({other_music(group[0].facts["data"]) or "" for group in groups} - {""}):
        note += f" Ours are {reason}: they cannot be compared with the published ones."
    head = ("Network", "Scores", *(SCORES[key] for key in _SOURCE_SCORES), "Parameters")
    return Table("The source's results and ours", head, rows, note, "names")


def _mean_scores(group: Sequence[Run], level: str) -> list[tuple]:
    """For each of `_SOURCE_SCORES`, the mean over runs, with its spread, and its interval."""
    # Of the same tracks drawn for all runs, each draw's mean over them.
    draws = [bootstrap(run.tracks if level == "track" else run.clips) for run in group]
    cells = []
    for key in _SOURCE_SCORES:
        values = _values(group, level, key)
        bounds = interval(np.mean([draw[key] for draw in draws], axis=0))
        cells.append((_spread(values), page.interval(bounds)))
    return cells


def scores_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        track = run.metrics["track"]
        cells = ((track[key], page.interval(track["intervals"][key])) for key in _SHOWN)
        rows.append((run.name, run.config["model"], *cells))
    head = ("Run", "Network", *(SCORES[key] for key in _SHOWN))
    note = "Track level; in small print 95% intervals, bootstrapped over the test tracks."
    return Table("Scores of each run", head, rows, note, "names")


def _best_table(runs: Sequence[Run]) -> Table:
    """The first run against each of the others."""
    best, *others = runs
    best_f1 = bootstrap(best.tracks)["f1"]
    rows = []
    for run in others:
        difference = best.metrics["track"]["f1"] - run.metrics["track"]["f1"]
        # Equal draws of tracks for both: each difference is that of one and the same test set.
        bounds = interval(best_f1 - bootstrap(run.tracks)["f1"])
        first = _is_right(best.tracks)
        second = _is_right(run.tracks)
        only = (int(np.sum(first & ~second)), int(np.sum(~first & second)))
        bounds = "{:+.3f} to {:+.3f}".format(*bounds)
        rows.append((run.name, (f"{difference:+.3f}", bounds), *only, mcnemar(first, second)))
    head = ("Run", "F1 of the best above it", "Only the best right", "Only this right", "McNemar p")
    note = (
        f"Against {best.name}, track level. F1: difference with its 95% interval by a paired "
        "bootstrap over tracks; where it holds 0, these tracks do not tell the two apart. "
        "McNemar's exact test asks the same of top-1. The best was chosen on these very tracks, "
        "which flatters it, and p-values are not corrected for their number."
    )
    return Table("Against the best run", head, rows, note)


def _seeds_table(groups: Sequence[Sequence[Run]]) -> Table:
    rows = []
    for group in groups:
        cells = []
        for key in ("f1", "top1"):
            values = _values(group, "track", key)
            cells.append((_spread(values), page.interval((min(values), max(values)))))
        rows.append((_name(group), len(group), *cells))
    note = "Track level: mean ± standard deviation over runs (n - 1), and lowest to highest."
    head = ("Runs", "Number", "F1", "Top-1")
    return Table("Where only the seed differs", head, rows, note)


def _cost_table(runs: Sequence[Run]) -> Table:
    head = list(dict.fromkeys(key for run in runs for key in run.facts["cost"]))
    rows = [
        (run.name, run.metrics["epoch"], *(run.facts["cost"].get(key) for key in head))
        for run in runs
    ]
    return Table("What each run took", ("Run", "Epoch kept", *head), rows, _COST_NOTE, "left")


def _name(group: Sequence[Run]) -> str:
    names = ", ".join(sorted(run.name for run in group))
    return names if len(group) == 1 else f"mean of {names}"


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.3f}"
    return f"{mean} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else mean


def _values(group: Sequence[Run], level: str, key: str) -> list[float]:
    return [run.metrics[level][key] for run in group]


def _is_right(tracks: SplitPredictions) -> np.ndarray:
    return tracks.log_probs.argmax(axis=1) == tracks.label


def _markdown(table: Table) -> str:
    """The table in GitHub's Markdown."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"

    left = {"numbers": 1, "names": 2}.get(table.style, len(table.head))
    rules = ["---"] * left + ["---:"] * (len(table.head) - left)
    rows = ([_plain(cell) for cell in row] for row in table.rows)
    return line(table.head) + line(rules) + "".join(map(line, rows))


def _plain(cell: object) -> str:
    return f"{_plain(cell[0])} ({cell[1]})" if isinstance(cell, tuple) else page.plain(cell)
