"""Music for benchmarks: a table of tracks with artists, folds of whole artists, a training."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from sklearn.model_selection import StratifiedGroupKFold

from mgc_jax.data.input_pipeline import ClipDataset
from mgc_jax.training import loop
from mgc_jax.training.claim import claim_workdir
from mgc_jax.training.levels import find_levels
from mgc_jax.training.network import Network

FOLDS = 5


class Row(NamedTuple):
    """A track: its file below the audio folder, genre, artist, and FMA's split or an empty one."""

    path: str
    genre: str
    artist: str
    split: str = ""


def folds(rows: Sequence[Row], seed: int) -> list[list[str]]:
    """The tracks' splits, once for each fold of whole artists, genres kept in proportion.

    Every fold is the test set once, the next one the validation set, the others train.
    """
    found = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    genres = [row.genre for row in rows]
    fold = np.zeros(len(rows), int)
    for number, (_, test) in enumerate(found.split(rows, genres, [row.artist for row in rows])):
        fold[test] = number
    splits = []
    for number in range(FOLDS):
        parts = {number: "test", (number + 1) % FOLDS: "validation"}
        splits.append([parts.get(int(f), "train") for f in fold])
    return splits


def read_fma(metadata_dir: str, audio_dir: str) -> list[Row]:
    """The tracks of FMA small with a genre and a file."""
    with open(Path(metadata_dir, "tracks.csv"), newline="", encoding="utf-8") as file:
        first, second, _, *lines = csv.reader(file)
    columns = {pair: place for place, pair in enumerate(zip(first, second, strict=True))}
    rows = []
    for line in lines:
        track = int(line[0])
        split, subset, artist, genre = (
            line[columns[pair]]
            for pair in (
                ("set", "split"),
                ("set", "subset"),
                ("artist", "name"),
                ("track", "genre_top"),
            )
        )
        path = f"{track // 1000:03d}/{track:06d}.mp3"
        if subset == "small" and genre and Path(audio_dir, path).exists():
            split = "train" if split == "training" else split
            rows.append(Row(path, genre, artist, split))
    return rows


def read_table(path: str) -> list[Row]:
    """The tracks of a table with the columns path, genre and artist."""
    with open(path, newline="", encoding="utf-8") as file:
        return [Row(r["path"], r["genre"], r["artist"]) for r in csv.DictReader(file)]


def write_table(path: Path, rows: Sequence[Row], splits: Sequence[str]) -> None:
    """What `prepare --labels_csv` reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "genre", "split"])
        writer.writerows(
            (row.path, row.genre, split) for row, split in zip(rows, splits, strict=True)
        )


def train(config: ConfigDict, dataset: ClipDataset, workdir: Path) -> tuple[Network, loop.Progress]:
    """Trains a config's network as `mgc_jax train` does, without a report."""
    levels = find_levels(config, workdir, dataset)
    network = Network.from_config(config, dataset.genres, levels=levels)
    workdir.mkdir(parents=True, exist_ok=True)
    claim_workdir(workdir, network, dataset.fingerprint())
    return network, loop.train(network, workdir, dataset)
