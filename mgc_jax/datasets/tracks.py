"""A data set before any decoding: its list of tracks, read from FMA's metadata."""

import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mgc_jax.errors import InputError

_SPLITS = {"training": "train", "validation": "validation", "test": "test"}
SPLITS = tuple(_SPLITS.values())
# Each FMA subset contains the smaller ones.
_SUBSETS = ("small", "medium", "large")
_COLUMNS = (("set", "split"), ("set", "subset"), ("track", "genre_top"))


class Track(NamedTuple):
    """One audio file and what is known about it."""

    track_id: int
    path: str
    genre: str
    split: str


def read_fma(
    audio_dir: str | os.PathLike, metadata_dir: str | os.PathLike, subset: str
) -> list[Track]:
    """Lists the tracks of an FMA subset with the official split, in the order of `tracks.csv`.

    Args:
        audio_dir: holds `000/000002.mp3`.
        metadata_dir: holds `tracks.csv`, with FMA's two header rows and the index name row.
        subset: `small`, `medium` or `large`.

    Returns:
        Tracks whose files may or may not exist; those without a top genre are left out.

    Raises:
        InputError: a folder or the CSV is missing, is no FMA metadata, or lists nothing of that
            subset.
    """
    audio_dir, table = Path(audio_dir), Path(metadata_dir) / "tracks.csv"
    if not audio_dir.is_dir():
        raise InputError(
            f"--audio_dir={audio_dir} is no folder: name the one that holds 000/, 001/, ..."
        )
    if not table.is_file():
        raise InputError(f"no {table}: let --metadata_dir name the unpacked fma_metadata folder")
    wanted = _SUBSETS[: _SUBSETS.index(subset) + 1]
    tracks = [
        Track(
            track_id,
            str(audio_dir / f"{track_id:06d}"[:3] / f"{track_id:06d}.mp3"),
            genre,
            _SPLITS[split],
        )
        for track_id, (split, row_subset, genre) in _read_columns(table)
        if row_subset in wanted and genre and split in _SPLITS
    ]
    if not tracks:
        raise InputError(f"{table} lists no track of the subset {subset!r}")
    return tracks


def genres_of(tracks: Sequence[Track]) -> list[str]:
    """The genre names in label order: alphabetical."""
    return sorted({track.genre for track in tracks})


def _read_columns(table: Path) -> list[tuple[int, tuple[str, ...]]]:
    """Reads the track id and the three columns that matter from FMA's multi-row header CSV."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # biographies outgrow the default
    try:
        with open(table, newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = list(zip(next(rows), next(rows), strict=True))
            columns = [header.index(name) for name in _COLUMNS]
            next(rows)
            return [(int(row[0]), tuple(row[i] for i in columns)) for row in rows]
    except (ValueError, IndexError, StopIteration, csv.Error) as error:
        raise InputError(f"{table} is not FMA's tracks.csv, or is cut off: {error}") from None
