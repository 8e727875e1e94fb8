"""FMA's metadata: which track is where, of which genre, in which official split."""

import collections
import os
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from mgc_jax import console
from mgc_jax.data.folders import find_audio
from mgc_jax.data.tables import READ_ERRORS, Row, explain, open_rows, read_table
from mgc_jax.data.tracks import Listing, Track, check_folder, split_named, unlisted
from mgc_jax.errors import InputError

# Each subset contains the smaller ones.
_SUBSETS = ("small", "medium", "large")
_COLUMNS = (("set", "split"), ("set", "subset"), ("track", "genre top"))


class _Row(NamedTuple):
    """What `tracks.csv` says of a track."""

    track_id: int
    split: str
    subset: str
    genre: str


def read_fma(audio_dir: str | os.PathLike, metadata_dir: str | os.PathLike, subset: str) -> Listing:
    """Lists an FMA subset with the official split, in the order of `tracks.csv`.

    Genres are those of `genres.csv`, or any where there is none. Most tracks of `large` have no top
    genre: these are no part of it.

    Args:
        audio_dir: holds `000/000002.mp3`.
        metadata_dir: holds `tracks.csv`, as FMA publishes it or as pandas wrote it back.
        subset: `small`, `medium` or `large`.

    Returns:
        The tracks; skipped are those with a duplicate id, no or an unknown genre or split, and MP3s
        that `tracks.csv` does not name.

    Raises:
        InputError: a folder or the CSV is missing, is no FMA metadata, or lists nothing of that
            subset.
    """
    audio_dir = epath.Path(audio_dir)
    table = epath.Path(metadata_dir) / "tracks.csv"
    check_folder(audio_dir, "the one that holds 000/, 001/, ...")
    if not table.exists():
        raise InputError(f"no {table}: let --metadata_dir name the unpacked fma_metadata folder")
    rows = _read_rows(table)
    genres = _read_genres(table.parent / "genres.csv")
    listing = Listing([], [])
    without_genre = 0
    for row, repeated in _of_subset(rows, subset):
        name = f"{row.track_id:06d}"
        path = audio_dir / name[:3] / f"{name}.mp3"
        track = Track(row.track_id, str(path), row.genre, split_named(row.split) or row.split)
        reason = _reason_to_skip(row, repeated, genres)
        if reason and not row.genre and subset == "large" and not repeated:
            without_genre += 1
        elif reason:
            listing.skipped.append((track, reason))
        else:
            listing.tracks.append(track)
    if not listing.tracks:
        raise InputError(f"{table} lists no usable track of the subset {subset!r}")
    if without_genre:
        console.log.info("%d tracks of FMA large without a top genre left out", without_genre)
    known = {row.track_id for row in rows}
    found = find_audio(audio_dir)
    found.say_what_was_passed_over()
    for path in found.audio:
        stem, ending = os.path.splitext(os.path.basename(path))
        if ending.lower() == ".mp3" and not (stem.isdecimal() and int(stem) in known):
            listing.skipped.append((unlisted(path), "not in tracks.csv"))
    return listing


def _of_subset(rows: Sequence[_Row], subset: str) -> Iterator[tuple[_Row, bool]]:
    """The rows of a subset, each with whether its id occurred before, in any subset."""
    wanted = _SUBSETS[: _SUBSETS.index(subset) + 1]
    seen = collections.Counter()
    for row in rows:
        seen[row.track_id] += 1
        if row.subset in wanted:
            yield row, seen[row.track_id] > 1


def _reason_to_skip(row: _Row, repeated: bool, genres: set[str]) -> str | None:
    if repeated:
        return f"duplicate id {row.track_id} in tracks.csv"
    if not row.genre:
        return "no top genre in tracks.csv"
    if genres and row.genre not in genres:
        return f"unknown genre {row.genre!r}: not in genres.csv"
    if split_named(row.split) is None:
        return f"unknown split {row.split!r} in tracks.csv"
    return None


def _read_rows(table: epath.Path) -> list[_Row]:
    """Reads the id and the three columns that matter."""
    try:
        with open_rows(table) as rows:
            places = _find_columns(rows)
            cells = ((row[place] for place in places) for _, row in rows)
            return [_Row(_track_id(track_id), *rest) for track_id, *rest in cells]
    except (*READ_ERRORS, IndexError, StopIteration) as error:
        cut = isinstance(error, IndexError | StopIteration)
        reason = "it ends in the middle of a row" if cut else explain(error)
        raise InputError(f"{table} is not FMA's tracks.csv, or is cut off: {reason}") from None


def _find_columns(rows: Iterator[Row]) -> list[int]:
    """Reads the header, and tells where the id, split, subset and genre are.

    FMA has two header rows, `set` above `split`, and a third that names the first column
    `track_id`. Written back by pandas, the names may have numbers (`set.1`), there may be a column
    of row numbers before, the id may have moved into the first rows, or one row may hold both names
    (`set_split`, `('set', 'split')`).

    Raises:
        ValueError: a column is missing.
        StopIteration: the table ends in its header.
    """
    headers = [[_plain(cell) for cell in next(rows)[1]]]
    wanted = [" ".join(column) for column in _COLUMNS]
    names = headers[0]
    if not set(wanted) <= set(names):
        headers.append([_plain(cell) for cell in next(rows)[1]])
        names = [" ".join(pair) for pair in zip(*headers, strict=True)]
    for name, column in zip(wanted, _COLUMNS, strict=True):
        if name not in names:
            raise ValueError(f"it has no column ({column[0]}, {column[1].replace(' ', '_')})")
    if not any("track id" in header for header in headers):
        headers.append([_plain(cell) for cell in next(rows)[1]])
    for header in headers:
        if "track id" in header:
            return [header.index("track id"), *map(names.index, wanted)]
    raise ValueError("no column of it is named track_id")


def _plain(cell: str) -> str:
    """A column's name without what programs add: `set.1` is `set`, `genre_top` is `genre top`."""
    return re.sub("[^a-z]+", " ", cell.lower()).strip()


def _track_id(text: str) -> int:
    """A track's number; pandas writes 2.0 for 2 where a column has gaps."""
    return int(text.removesuffix(".0"))


def _read_genres(table: epath.Path) -> set[str]:
    if not table.exists():
        return set()
    return {row["title"] for row in read_table(table, "--metadata_dir", ["title"])}
