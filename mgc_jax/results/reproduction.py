"""The source's results table with ours beside it: what each row took, and what it was made from."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mgc_jax.results.comparison import (
    Run,
    Table,
    read_runs,
    repeats,
    scores_table,
    source_table,
    write_tables,
)
from mgc_jax.results.published import PUBLISHED

TABLE = "table"


def write_table(workdirs: Sequence[str | os.PathLike], folder: Path) -> Path:
    """Writes `table.md` and `table.html` of finished runs into `folder`; returns the former's path.

    Raises:
        InputError: none of the runs is finished, or they were tested on different tracks.
    """
    runs = read_runs(workdirs, least=1)
    groups = repeats(runs)
    groups.sort(key=lambda group: list(PUBLISHED).index(group[0].config["model"]))
    tracks = len(runs[0].tracks.label)
    about = f"{len(runs)} runs on {runs[0].facts['data']['dataset']}, {tracks:,} test tracks."
    tables = [
        source_table(groups),
        _cost_table(groups),
        scores_table(runs),
        _origin_table(runs),
        _commands_table(runs),
    ]
    path = folder / f"{TABLE}.md"
    write_tables("The source's results table", about, runs, tables, path.with_suffix(".html"))
    return path


def _cost_table(groups: Sequence[Sequence[Run]]) -> Table:
    """What each network's runs took, and which epochs they kept."""
    rows = []
    for group in (sorted(group, key=lambda run: run.config["seed"]) for group in groups):
        facts = [run.facts["run"] for run in group]
        rows.append(
            (
                group[0].config["model"],
                len(group),
                ", ".join(str(run.config["seed"]) for run in group),
                ", ".join(str(run.metrics["epoch"]) for run in group),
                f"{np.mean([fact['seconds'] for fact in facts]) / 60:.1f}",
                group[0].facts["cost"].get("Training speed, median epoch"),
                ", ".join(sorted({fact["devices"] for fact in facts})),
            )
        )
    head = ("Network", "Runs", "Seeds", "Epochs kept", "Minutes each", "Speed", "Devices")
    note = "As measured in each run: training and validation, without preparing the data."
    return Table("What it took", head, rows, note, "left")


def _origin_table(runs: Sequence[Run]) -> Table:
    """Hashes; where runs differ in one, all of them, so that it is seen."""
    found = {
        "Audio and tables that the records were made from": ("data", "source"),
        "Tracks, clips, labels and splits": ("data", "fingerprint"),
        "mgc_jax's code": ("run", "code"),
        "All packages with their versions": ("run", "packages"),
    }
    rows = []
    for name, (part, key) in found.items():
        hashes = sorted({run.facts[part].get(key) or "not recorded" for run in runs})
        rows.append((name, ", ".join(hashes)))
    versions = runs[0].facts["run"]["versions"]
    rows.append(("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())))
    note = "SHA-256. Where a row has several, the runs were not made from the same."
    return Table("What it was made from", ("What", "Hash"), rows, note, "words")


def _commands_table(runs: Sequence[Run]) -> Table:
    rows = [(run.name, run.facts["run"]["command"]) for run in sorted(runs, key=lambda r: r.name)]
    return Table("Commands", ("Run", "Makes it alone"), rows, "", "words")
