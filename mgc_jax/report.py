"""Turn a finished run's folder into figures and one self-contained page, report/index.html.

Reads only what training and evaluation left on disk, so a page can be made again without a network
or an accelerator. To add a part, put a place for it in `PAGE` and fill that in `write_report`.
Everything that comes from data goes through `_text` on its way into the page.
"""

import base64
import html
import io
import json
import math
import numbers
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mgc_jax.files import replacing

Examples = Sequence[tuple[str, np.ndarray]]
# The scores the source project published: FMA small, test split, clip or track level not stated.
SOURCE_KEYS = ("f1", "accuracy_ovr", "precision", "recall")
SOURCE = {
    "baseline_a_1d": (0.448, 0.864, 0.438, 0.457),
    "baseline_a_2d": (0.558, 0.889, 0.556, 0.559),
    "baseline_b": (0.534, 0.883, 0.537, 0.531),
    "densenet": (0.574, 0.892, 0.578, 0.571),
    "fusionnet": (0.553, 0.888, 0.548, 0.557),
}
# Key in metrics.json to name on the page.
CARDS = dict(top1="Top-1", f1="F1", f1_macro="Macro F1", precision="Precision", recall="Recall")
SCORES = CARDS | dict(accuracy_ovr="One-vs-rest accuracy", loss="Loss")
PER_GENRE = dict(precision="Precision", recall="Recall", f1="F1", support="Support")
# Kind and key in metrics.jsonl, label, Okabe-Ito hue (apart for colour-blind readers too), line.
CURVES = (
    ("train", "loss", "train", "#0072B2", "o-"),
    ("validation", "loss", "validation", "#D55E00", "o-"),
    ("train", "top1", "train top-1", "#0072B2", "o-"),
    ("validation", "top1", "validation top-1", "#D55E00", "o-"),
    ("validation", "f1", "validation F1", "#009E73", "o--"),
)
FMA_SMALL_TRACKS = 8_000
MAX_SKIPPED_ROWS = 50
PNG_URI = "data:image/png;base64,"
FIX = "train the run, evaluate it, then make the report again"

CSS = """:root { --soft: #5c6370; --line: #d9dce1; --card: #f4f5f7; --warn: #fff3d6 }
@media screen and (prefers-color-scheme: dark) { :root {
  --soft: #a3abb8; --line: #3a3f47; --card: #26292f; --warn: #43340f } }
* { box-sizing: border-box; overflow-wrap: anywhere } html { color-scheme: light dark }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 } h2 { font-size: 1.25rem; margin-top: 2.5rem }
p { max-width: 46rem; margin: .6rem 0 } .soft, caption, dt { color: var(--soft); font-size: .9rem }
.notice, .cards div, pre { background: var(--card); border-radius: .5rem; padding: .7rem .9rem }
.notice { background: var(--warn) } pre { overflow-x: auto; font-size: .85rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .7rem }
dd { margin: 0; font-size: 1.6rem } .scroll { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums }
caption, th, td { text-align: left; vertical-align: top; padding: .32rem .75rem .32rem 0 }
th, td { border-bottom: 1px solid var(--line); overflow-wrap: normal }
.numbers :is(th, td) + :is(th, td) { text-align: right } .words td + td { min-width: 12rem }
figure { background: #fff; border-radius: .5rem; border: 1px solid var(--line) }
img { display: block; width: 100%; min-width: 42rem; padding: .6rem }
@media print { body { max-width: none; padding: 0; font-size: 10pt } img { min-width: 0 }
  .cards { grid-template-columns: repeat(5, 1fr) } .cards div { border: 1px solid var(--line) }
  figure, .cards, tr { break-inside: avoid } h2 { break-after: avoid } pre { white-space: pre-wrap }
  details::details-content { content-visibility: visible; height: auto } }"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{css}</style></head><body>
<h1>{title}</h1><p class="soft">{about}</p>{notice}
<h2>Scores per track</h2><dl class="cards">{cards}</dl>{scores}
<p class="soft">A track's prediction is the mean of its clips' log-probabilities. Precision and
recall are means over genres (macro); F1 is 2PR/(P+R) of those means, macro F1 the mean of the
genres' own F1, as in scikit-learn. One-vs-rest accuracy is the mean over genres of the accuracy of
telling that genre from the rest: high by construction, as most tracks are not of any one genre.
Always answering with the commonest genre would give a top-1 of {chance} per track.</p>
<h2>Beside the source project</h2>{source}<p>{differences}</p>
<h2>By genre</h2>{genres}
<h2>Confusion matrix</h2><figure class="scroll" tabindex="0"><img src="{confusion_matrix}"
alt="Confusion matrices per track and per clip, true genres in rows"></figure>
<p class="soft">Numbers are counts; the colour is the share of the true genre's row.</p>
<h2>Training</h2><figure class="scroll" tabindex="0"><img src="{training_curves}"
alt="Loss, top-1 and F1 over the epochs, for training and validation"></figure>
<p class="soft">Training values are means over an epoch; the dotted line is the epoch kept.</p>
<h2>What the network sees</h2><figure class="scroll" tabindex="0"><img src="{spectrograms}"
alt="Examples of the network's input, as spectrograms or waveforms over time"></figure>
<h2>Data</h2><p>{read}</p>{splits}{skipped}
<h2>How this was made</h2><pre>{command}</pre>{facts}
<details><summary>All settings</summary><pre>{config}</pre></details></body></html>"""
NOTICE = '<p class="notice"><b>Synthesised music:</b> the scores say nothing about real music.</p>'


def write_report(
    workdir: str | os.PathLike, *, examples: Examples, data: Mapping, run: Mapping
) -> Path:
    """Write three figures and the page into `workdir`/report; returns the path of index.html.

    Args:
        workdir: folder with config.json, genres.json, metrics.jsonl and report/metrics.json.
        examples: (title, array) pairs to draw; an array is a log-mel [frames, mels] float32 in dB,
            at most 0, or a waveform [samples] float32.
        data: what was read: dataset, features, splits ({name: {tracks, clips}}), tracks_listed,
            tracks_used, skipped (a list of {track_id, path, reason}) and synthetic (bool).
        run: command, devices, parameters (count), seconds, versions ({package: version}), finished.

    Raises:
        FileNotFoundError: an input file is missing.
        ValueError: an input file is broken, or an example is neither one- nor two-dimensional.
    """
    folder = Path(workdir)
    config, genres, log, metrics = _read_run(folder)
    pictures = {
        "confusion_matrix": _png(confusion_figure(metrics, genres)),
        "training_curves": _png(curves_figure(log, metrics["epoch"])),
        "spectrograms": _png(examples_figure(examples, config)),
    }
    places = {name: PNG_URI + base64.b64encode(png).decode() for name, png in pictures.items()}
    places |= _score_places(metrics, genres) | _source_places(config["model"], metrics, data)
    page = PAGE.format(css=CSS, **places, **_data_places(data), **_run_places(config, data, run))
    # File names on disk need not be valid text: "replace" keeps one from costing the whole page.
    files = {f"{name}.png": png for name, png in pictures.items()}
    files["index.html"] = page.encode("utf-8", "replace")
    # Nothing is written until everything is made: a failure leaves the last report as it was.
    for name, content in files.items():
        with replacing(folder / "report" / name) as part:
            part.write_bytes(content)
    return folder / "report" / "index.html"


def _read_run(folder: Path) -> tuple[dict, list[str], list[dict], dict]:
    settings = (("model",), ("audio", "sample_rate"), ("mel", "hop_length"), ("mel", "top_db"))
    config = _load(folder / "config.json", dict, settings)
    genres = _load(folder / "genres.json", list)
    needed = [("split",), ("epoch",)]
    for level in ("clip", "track"):
        needed += [(level, key) for key in ("count", "confusion_matrix", *SCORES)]
        needed += [(level, "per_class", name, key) for name in genres for key in PER_GENRE]
    path = folder / "report" / "metrics.json"
    metrics = _load(path, dict, needed)
    for level in ("clip", "track"):
        if [len(row) for row in metrics[level]["confusion_matrix"]] != [len(genres)] * len(genres):
            raise ValueError(f"{path}: {level}.confusion_matrix is not genres x genres: {FIX}")
    return config, genres, _load(folder / "metrics.jsonl", list), metrics


def _load(path: Path, kind: type, needed: Iterable[tuple] = ()) -> dict | list:
    """The JSON in `path` (of lines: a list), once it is of this kind and has the keys needed."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":  # line breaks stay, so that an error tells the line
            text = "[" + ",\n".join(text.strip().splitlines()) + "]"
        value = json.loads(text)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: {FIX}") from None
    except ValueError as error:  # not UTF-8, or not JSON: either error is a ValueError
        raise ValueError(f"{path} cannot be read ({error}): {FIX}") from error
    if not isinstance(value, kind) or not (value or path.suffix == ".jsonl"):
        raise ValueError(f"{path} should hold a JSON {kind.__name__} that is not empty: {FIX}")
    for keys in needed:
        part = value
        for key in keys:
            if not isinstance(part, dict) or key not in part:
                raise ValueError(f"{path} does not hold {'.'.join(map(str, keys))}: {FIX}")
            part = part[key]
    return value


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", bbox_inches="tight")
    return buffer.getvalue()


def confusion_figure(metrics: Mapping, genres: Sequence[str]) -> Figure:
    """Draw the counts of metrics.json per track and per clip; `genres` [k] is the label order."""
    cell = max(0.38, min(0.56, 5 / len(genres)))  # inches
    side = cell * len(genres)
    figure = Figure(figsize=(2 * side + 4.2, side + 2.6), layout="compressed")
    panels = figure.subplots(1, 2, sharey=True)
    names = [name if len(name) <= 24 else name[:23] + "…" for name in genres]
    style = {"labels": names, "fontsize": 10.5, "parse_math": False}  # a "$" is only a "$"
    for axes, level in zip(panels, ("track", "clip"), strict=True):
        counts = np.asarray(metrics[level]["confusion_matrix"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)  # a row may be empty
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        # 72 points to the inch; a digit is some 0.7 of its point size wide.
        size = min(10.5, 72 * cell * 0.85 / (0.7 * len(str(counts.max()))))
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.65 else "#222" if count else "#999"
            axes.text(column, row, count, ha="center", va="center", fontsize=size, color=colour)
        axes.set_xticks(range(len(names)), rotation=45, ha="right", rotation_mode="anchor", **style)
        axes.set_yticks(range(len(names)), **style)
        title = f"{level.capitalize()}s (n = {metrics[level]['count']:,})"
        axes.set(title=title, xlabel="predicted genre", ylabel="true genre")
        axes.label_outer()
    figure.colorbar(image, ax=panels, pad=0.02, shrink=0.8, label="share of the true genre")
    return figure


def curves_figure(log: Sequence[Mapping], kept_epoch: int | None) -> Figure:
    """Draw `CURVES` over epochs from the lines of metrics.jsonl, and a line at the epoch kept."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    rows = [row for row in log if isinstance(row, dict) and row.get("epoch") is not None]
    for kind, key, label, colour, line in CURVES:
        # By epoch: a resumed run may have logged an epoch twice, and the last one counts.
        points = {row["epoch"]: row.get(key) for row in rows if row.get("kind") == kind}
        if any(value is not None for value in points.values()):
            x = sorted(points)
            y = np.array([points[epoch] for epoch in x], dtype=float)  # None becomes nan
            axes = panels[0 if key == "loss" else 1]
            axes.plot(x, y, line, color=colour, label=label, markersize=3)
    last = max([row["epoch"] for row in rows] + [kept_epoch or 1])
    for axes, title in zip(panels, ("Loss", "Top-1 and F1"), strict=True):
        if kept_epoch is not None:
            axes.axvline(kept_epoch, color="#555", linestyle=":", label=f"kept: epoch {kept_epoch}")
        axes.set(title=title, xlabel="epoch", xlim=(0.5, last + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#e5e5e5")
        if axes.lines:
            axes.legend(fontsize=9.5)
    panels[1].set_ylim(0, 1)
    return figure


def examples_figure(examples: Examples, config: Mapping) -> Figure:
    """Draw log-mels [frames, mels] (dB, one colour scale) and waveforms [samples] over seconds."""
    columns, rows = max(1, min(4, len(examples))), max(1, math.ceil(len(examples) / 4))
    figure = Figure(figsize=(max(5, 2.7 * columns), 2.2 * rows + 0.6), layout="constrained")
    alike = len({np.ndim(array) for _, array in examples}) == 1
    grid = figure.subplots(rows, columns, squeeze=False, sharey=alike)
    for axes, (title, array) in zip(grid.flat, examples, strict=False):
        _draw_example(axes, title, np.asarray(array), config)
    for axes in grid.flat[len(examples) :]:
        axes.set_axis_off()
    images = [image for axes in grid.flat for image in axes.images]
    if images:
        figure.colorbar(images[0], ax=grid, pad=0.015, fraction=0.03).set_label("dB")
    figure.supxlabel("time (s)" if examples else "no examples were given", fontsize=11)
    return figure


def _draw_example(axes, title: str, array: np.ndarray, config: Mapping) -> None:
    rate = config["audio"]["sample_rate"]
    lines = textwrap.fill(title, 27, max_lines=2, placeholder="…")
    axes.set_title(lines, fontsize=9.5, loc="left", parse_math=False)
    if array.ndim == 1:
        axes.plot(np.arange(array.size) / rate, array, color="#0072B2", linewidth=0.5)
        axes.set(xmargin=0, ylabel="amplitude")
    elif array.ndim == 2:
        extent = (0, array.shape[0] * config["mel"]["hop_length"] / rate, 0, array.shape[1])
        style = {"vmin": -config["mel"]["top_db"], "vmax": 0, "cmap": "magma", "origin": "lower"}
        axes.imshow(array.T, aspect="auto", extent=extent, **style)
        axes.set(ylabel="mel band")
    else:
        raise ValueError(f"example {title!r}: shape {array.shape} is not [frames, mels] or [n]")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.label.set_visible(axes.get_subplotspec().is_first_col())


def _text(value: object) -> str:
    """Any value as escaped text: counts with thousands, other numbers to three decimals."""
    if value is None or (isinstance(value, numbers.Real) and not math.isfinite(value)):
        return "–"
    if isinstance(value, numbers.Real):
        return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.3f}"
    return html.escape(str(value))


def _table(caption: str, head: Sequence, rows: Iterable[Sequence], style: str = "numbers") -> str:
    """A table that scrolls on its own; style "numbers" sets all but the first column right."""
    names = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "</tr>\n<tr>".join("".join(f"<td>{_text(c)}</td>" for c in row) for row in rows)
    start = f'<div class="scroll" tabindex="0"><table class="{style}">'
    head = f"<caption>{_text(caption)}</caption>\n<thead><tr>{names}</tr></thead>\n"
    return f"{start}{head}<tbody><tr>{body}</tr></tbody></table></div>\n"


def _score_places(metrics: Mapping, genres: Sequence[str]) -> dict[str, str]:
    track, clip = metrics["track"], metrics["clip"]
    cards = (f"<div><dt>{n}</dt><dd>{_text(track[key])}</dd></div>" for key, n in CARDS.items())
    rows = [(name, track[key], clip[key]) for key, name in SCORES.items()]
    support = np.sum(track["confusion_matrix"], axis=1)
    per_genre = [(name, *(track["per_class"][name][key] for key in PER_GENRE)) for name in genres]
    return {
        "about": f"Scores on the {_text(metrics['split'])} split: {_text(track['count'])} tracks, "
        f"{_text(clip['count'])} clips; weights of epoch {_text(metrics['epoch'])}.",
        "cards": "".join(cards),
        "scores": _table("Track and clip level", ("Score", "Tracks", "Clips"), rows),
        "chance": _text(support.max() / support.sum() if support.sum() else None),
        "genres": _table("Track level", ("Genre", *PER_GENRE.values()), per_genre),
    }


def _source_places(model: str, metrics: Mapping, data: Mapping) -> dict[str, str]:
    """This run's scores beside the published ones, and what keeps them from being compared."""
    if model not in SOURCE:
        return {"source": "", "differences": f"The source published no scores for {_text(model)}."}
    names = {level: f"This run, {level}s ({metrics['split']})" for level in ("track", "clip")}
    rows = [(n, *(metrics[level][key] for key in SOURCE_KEYS)) for level, n in names.items()]
    rows.insert(0, ("Published, FMA small (test)", *SOURCE[model]))
    notes = ["The source does not state whether it scored clips or tracks, so both are shown."]
    if data["synthetic"] or data["dataset"] != "fma_small":
        music = "a demo on synthesised music" if data["synthetic"] else f"on {data['dataset']}"
        notes.append(f"This run is {music}, not on FMA small: the rows cannot be compared.")
    elif data["tracks_listed"] != FMA_SMALL_TRACKS:
        notes.append(
            f"This run's data set lists {data['tracks_listed']:,} tracks, FMA small "
            f"{FMA_SMALL_TRACKS:,}: it is other music, and the rows cannot be compared."
        )
    if data["skipped"]:
        notes.append(f"This run left out {len(data['skipped']):,} tracks that it could not use.")
    head = ("Scores", *(SCORES[key] for key in SOURCE_KEYS))
    return {"source": _table(model, head, rows), "differences": _text(" ".join(notes))}


def _data_places(data: Mapping) -> dict[str, str]:
    skipped, table = data["skipped"], ""
    splits = [(name, split["tracks"], split["clips"]) for name, split in data["splits"].items()]
    splits.append(("all", *(sum(row[i] for row in splits) for i in (1, 2))))
    read = f"{data['dataset']}, read as {data['features']}: {data['tracks_listed']:,} tracks "
    read += f"listed, {data['tracks_used']:,} used, {len(skipped):,} skipped."
    if skipped:  # a track's id is a name, not an amount: as text it gets no thousands separator
        rows = [(str(t["track_id"]), t["path"], t["reason"]) for t in skipped[:MAX_SKIPPED_ROWS]]
        table = _table("Skipped tracks", ("Track", "File", "Reason"), rows, style="words")
    if len(skipped) > MAX_SKIPPED_ROWS:
        table += f"<p>and {len(skipped) - MAX_SKIPPED_ROWS:,} more, see skipped.csv</p>"
    splits_table = _table("Used, by split", ("Split", "Tracks", "Clips"), splits)
    return {"read": _text(read), "splits": splits_table, "skipped": table}


def _run_places(config: Mapping, data: Mapping, run: Mapping) -> dict[str, str]:
    facts = {
        "Devices": run["devices"],
        "Parameters": run["parameters"],
        "Time taken (h:min:s)": timedelta(seconds=round(run["seconds"])),
        "Versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "Finished": run["finished"],
    }
    return {
        "title": _text(f"{config['model']} on {data['dataset']}"),
        "notice": NOTICE if data["synthetic"] else "",
        "command": _text(run["command"]),
        "facts": _table("The run", ("What", "Value"), facts.items(), style="words"),
        "config": _text(json.dumps(config, indent=2, ensure_ascii=False)),
    }
