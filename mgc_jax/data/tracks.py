"""A data set before any decoding: its list of tracks, from FMA's metadata or from folders."""

import collections
import csv
import hashlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from mgc_jax import console
from mgc_jax.data.audio import EXTENSIONS
from mgc_jax.errors import InputError

SKIPPED_FILE, TRACKS_FILE = "skipped.csv", "tracks.csv"
_SPLITS = {"training": "train", "validation": "validation", "test": "test"}
SPLITS = tuple(_SPLITS.values())
# Each FMA subset contains the smaller ones.
_SUBSETS = ("small", "medium", "large")
_COLUMNS = (("set", "split"), ("set", "subset"), ("track", "genre_top"))
# Upper ends of the shares of a split by hash: 80, 10 and 10%.
_SHARES = {"train": 0.8, "validation": 0.9, "test": 1.0}


class Track(NamedTuple):
    """One audio file and what is known about it."""

    track_id: int
    path: str
    genre: str
    split: str


Skipped = tuple[Track, str]  # with the reason


class Listing(NamedTuple):
    """The tracks of a corpus.

    Attributes:
        tracks: those whose files are to be tried; they may not exist.
        skipped: those that cannot be used, each with the reason.
    """

    tracks: list[Track]
    skipped: list[Skipped]


def list_tracks(
    config: ConfigDict,
    workers: int,
    *,
    audio_dir: str | os.PathLike | None = None,
    metadata_dir: str | os.PathLike | None = None,
    download: bool = False,
    splits_csv: str | os.PathLike | None = None,
    group_by: str = "file",
) -> Listing:
    """The tracks of a config's data set.

    Args:
        config: keys `dataset`, `data_dir`, and `demo` for the demo.
        workers: processes that synthesise the demo.
        audio_dir: folder of audio files; the demo makes its own if none is given.
        metadata_dir: folder of FMA's `tracks.csv`; `fma_metadata` beside `audio_dir` if none is
            given.
        download: fetch FMA's archives, if no `audio_dir` is given.
        splits_csv, group_by: as for `read_folder`.

    Raises:
        InputError: missing folders, foreign or empty metadata, flags of another data set.
    """
    name = config.dataset
    if name == "audio_folder":
        if metadata_dir or download:
            raise InputError("--metadata_dir and --download are for FMA, not for audio_folder")
        if not audio_dir:
            raise InputError("audio_folder needs --audio_dir, the folder of the genres' folders")
        return read_folder(audio_dir, splits_csv, group_by)
    if splits_csv or group_by != "file":
        raise InputError(f"--splits_csv and --group_by are for audio_folder; {name} has its splits")
    if name == "demo" and not audio_dir:
        from mgc_jax.demo import corpus

        made = f"{config.demo.tracks}_tracks_seed_{config.demo.seed}"
        root = epath.Path(config.data_dir) / "demo_audio" / made
        corpus.write_corpus(root, tracks=config.demo.tracks, seed=config.demo.seed, workers=workers)
        audio_dir = root / "fma_small"
    if not audio_dir and download:
        from mgc_jax.data.download import fetch

        downloads = epath.Path(config.data_dir) / "downloads"
        metadata_dir = metadata_dir or fetch("fma_metadata", downloads)
        audio_dir = fetch(name, downloads)
    if not audio_dir:
        raise InputError(
            f"{name} needs --audio_dir, the folder with its audio files, or --download"
        )
    beside = epath.Path(os.path.abspath(audio_dir) if "://" not in str(audio_dir) else audio_dir)
    subset = "small" if name == "demo" else name.removeprefix("fma_")
    return read_fma(audio_dir, metadata_dir or beside.parent / "fma_metadata", subset)


def read_fma(audio_dir: str | os.PathLike, metadata_dir: str | os.PathLike, subset: str) -> Listing:
    """Lists an FMA subset with the official split, in the order of `tracks.csv`.

    Genres are those of `genres.csv`, or any where there is none. Most tracks of `large` have no top
    genre: these are no part of it.

    Args:
        audio_dir: holds `000/000002.mp3`.
        metadata_dir: holds `tracks.csv`, with FMA's two header rows and the index name row.
        subset: `small`, `medium` or `large`.

    Returns:
        The tracks; skipped are those with a duplicate id, no or an unknown genre or split, and MP3s
        that `tracks.csv` does not name.

    Raises:
        InputError: a folder or the CSV is missing, is no FMA metadata, or lists nothing of that
            subset.
    """
    audio_dir, table = epath.Path(audio_dir), epath.Path(metadata_dir) / "tracks.csv"
    _check_folder(audio_dir, "the one that holds 000/, 001/, ...")
    if not table.exists():
        raise InputError(f"no {table}: let --metadata_dir name the unpacked fma_metadata folder")
    known_genres = _read_genres(table.parent / "genres.csv")
    wanted = _SUBSETS[: _SUBSETS.index(subset) + 1]
    listing, seen, without_genre = Listing([], []), set(), 0
    for track_id, (split, row_subset, genre) in _read_columns(table):
        repeated, _ = track_id in seen, seen.add(track_id)
        if row_subset not in wanted:
            continue
        name = f"{track_id:06d}"
        path = audio_dir / name[:3] / f"{name}.mp3"
        track = Track(track_id, str(path), genre, _SPLITS.get(split, split))
        if repeated:
            listing.skipped.append((track, f"duplicate id {track_id} in tracks.csv"))
        elif not genre and subset == "large":
            without_genre += 1
        elif not genre:
            listing.skipped.append((track, "no top genre in tracks.csv"))
        elif known_genres and genre not in known_genres:
            listing.skipped.append((track, f"unknown genre {genre!r}: not in genres.csv"))
        elif split not in _SPLITS:
            listing.skipped.append((track, f"unknown split {split!r} in tracks.csv"))
        else:
            listing.tracks.append(track)
    if not listing.tracks:
        raise InputError(f"{table} lists no usable track of the subset {subset!r}")
    if without_genre:
        console.log.info("%d tracks of FMA large without a top genre left out", without_genre)
    for path in _walk(audio_dir):
        stem = path.stem
        if path.suffix.lower() == ".mp3" and not (stem.isdecimal() and int(stem) in seen):
            listing.skipped.append((_unlisted(path), "not in tracks.csv"))
    return listing


def read_folder(
    root: str | os.PathLike, splits_csv: str | os.PathLike | None = None, group_by: str = "file"
) -> Listing:
    """Lists audio files in one folder a genre, `ROOT/genre/**/*.ext`, sorted by path.

    Without `splits_csv`, a hash of the file's path below ROOT decides on its split, 80/10/10 within
    each genre on average. It depends on nothing else, so that no file changes sides when others are
    added. A track's id is a hash of the path too.

    Args:
        root: the folder of the genres' folders; hidden files are passed over.
        splits_csv: columns `path` (below ROOT) and `split` (`train`, `validation`, `test`).
        group_by: `file`, or `parent`: the files of a folder below a genre's share one split.

    Returns:
        The tracks; skipped are files without a genre, with a name that is not UTF-8, and those that
        `splits_csv` does not list, lists twice or under an unknown split.

    Raises:
        InputError: the folder or the CSV is missing, or it has no such columns.
    """
    root = epath.Path(root)
    _check_folder(root, "the one that holds a folder for each genre")
    splits = None if splits_csv is None else _read_splits(epath.Path(splits_csv), root)
    listing = Listing([], [])
    found = {str(path.relative_to(root)): path for path in _walk(root)}
    if splits is not None:
        found |= {name: root / name for name in splits if name not in found}
    for name, path in sorted(found.items()):
        try:
            digest = _hash(name)
        except UnicodeEncodeError:
            listing.skipped.append((_unlisted(path), "file name is not UTF-8: rename it"))
            continue
        genre, *parents = name.split("/")[:-1] or [""]
        group = name.rpartition("/")[0] if group_by == "parent" and parents else name
        track = Track(digest, str(path), genre, "")
        if not genre or genre == "..":
            reason = "no genre: not in a folder below --audio_dir"
        elif splits is None:
            share = _hash(f"split of {group}") / 2**63
            split = next(split for split, end in _SHARES.items() if share < end)
            listing.tracks.append(track._replace(split=split))
            continue
        elif len(listed := splits.get(name, ())) != 1:
            reason = "listed twice in the splits' CSV" if listed else "not in the splits' CSV"
        elif (split := _SPLITS.get(listed[0], listed[0])) not in SPLITS:
            reason = f"unknown split {listed[0]!r}"
        else:
            listing.tracks.append(track._replace(split=split))
            continue
        listing.skipped.append((track, reason))
    if not listing.tracks:
        raise InputError(f"no audio files in folders of genres below --audio_dir={root}")
    _warn_of_gaps(listing.tracks)
    return listing


def genres_of(tracks: Sequence[Track]) -> list[str]:
    """The genre names in label order: alphabetical."""
    return sorted({track.genre for track in tracks})


def check_usable(
    tracks: Sequence[Track], skipped: Sequence[Skipped], max_skipped: float, folder: epath.Path
) -> None:
    """Raises InputError if a split has no track, or too many cannot be used; keeps the list."""
    listed, example = len(tracks) + len(skipped), ""
    if skipped:
        folder.mkdir(parents=True, exist_ok=True)
        write_skipped(folder, skipped)
        track, reason = min(skipped)
        example = f" (such as {track.path!r}: {reason}), listed in {folder / SKIPPED_FILE}"
    for split in SPLITS:
        if not any(track.split == split for track in tracks):
            raise InputError(
                f"no usable track in the {split} split: {len(skipped)} of {listed} tracks cannot "
                f"be used{example}. Check that --audio_dir is the right folder"
            )
    if len(skipped) > max_skipped * listed:
        raise InputError(
            f"{len(skipped)} of {listed} tracks cannot be used{example}. "
            f"--max_skipped={max_skipped:g} is the largest share that may be"
        )


def write_lists(folder: epath.Path, tracks: Sequence[Track], skipped: Sequence[Skipped]) -> None:
    """Writes `tracks.csv`, which tells the files behind the ids, and `skipped.csv`."""
    _write_csv(folder / TRACKS_FILE, Track._fields, tracks)
    write_skipped(folder, skipped)


def write_skipped(folder: epath.Path, skipped: Sequence[Skipped]) -> None:
    """Writes `skipped.csv`."""
    rows = sorted((*track, reason) for track, reason in skipped)
    _write_csv(folder / SKIPPED_FILE, (*Track._fields, "reason"), rows)


def read_paths(folder: str | os.PathLike) -> dict[int, str]:
    """The audio file of each track id in a folder of records, below the folder that holds all."""
    with _open_csv(epath.Path(folder) / TRACKS_FILE, "rb") as file:
        paths = {int(row["track_id"]): row["path"] for row in csv.DictReader(file)}
    above = os.path.dirname(os.path.commonprefix(list(paths.values())))
    return {track_id: path.removeprefix(above).lstrip("/") for track_id, path in paths.items()}


def _write_csv(path: epath.Path, header: Sequence[str], rows: Sequence[tuple]) -> None:
    with _open_csv(path, "wb") as file:
        csv.writer(file).writerows([header, *rows])


def _open_csv(path: epath.Path, mode: str) -> io.TextIOWrapper:
    """As the csv module wants it; epath's own text files would change line ends."""
    # A written file name may hold what is not Unicode.
    errors = "backslashreplace" if mode == "wb" else "strict"
    return io.TextIOWrapper(path.open(mode), encoding="utf-8", errors=errors, newline="")


def _unlisted(path: epath.Path) -> Track:
    """A file of which nothing is known."""
    return Track(-1, str(path), "", "")


def _check_folder(path: epath.Path, which: str) -> None:
    if not path.is_dir():
        raise InputError(f"--audio_dir={path} is no folder: name {which}")


def _walk(folder: epath.Path, above: tuple[str, ...] = ()) -> Iterator[epath.Path]:
    """Everything below a folder that is named like an audio file, through links, but not in
    circles."""
    above = (*above, os.path.realpath(folder))
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        console.log.warning("%s cannot be searched: %s", folder, error.strerror)
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.suffix.lower() in EXTENSIONS:
            yield entry
        elif entry.is_dir() and os.path.realpath(entry) not in above:
            yield from _walk(entry, above)


def _hash(text: str) -> int:
    """A number in [0, 2**63) that is the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _warn_of_gaps(tracks: Sequence[Track]) -> None:
    present = {(track.genre, track.split) for track in tracks}
    for split in SPLITS:
        missing = [genre for genre in genres_of(tracks) if (genre, split) not in present]
        if missing:
            console.log.warning(
                "no %s track of %s: --splits_csv can choose", split, ", ".join(missing)
            )


def _read_columns(table: epath.Path) -> list[tuple[int, tuple[str, ...]]]:
    """Reads the track id and the three columns that matter from FMA's multi-row header CSV."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # biographies outgrow the default
    try:
        with _open_csv(table, "rb") as file:
            rows = csv.reader(file)
            header = list(zip(next(rows), next(rows), strict=True))
            columns = [header.index(name) for name in _COLUMNS]
            next(rows)
            return [(int(row[0]), tuple(row[i] for i in columns)) for row in rows]
    except (OSError, ValueError, IndexError, StopIteration, csv.Error) as error:
        raise InputError(f"{table} is not FMA's tracks.csv, or is cut off: {error}") from None


def _read_genres(table: epath.Path) -> set[str]:
    if not table.exists():
        return set()
    try:
        with _open_csv(table, "rb") as file:
            return {row["title"] for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{table} is not FMA's genres.csv: {error}") from None


def _read_splits(table: epath.Path, root: epath.Path) -> dict[str, list[str]]:
    """The splits named for each path below the root."""
    splits = collections.defaultdict(list)
    try:
        with _open_csv(table, "rb") as file:
            rows = csv.DictReader(file)
            if "split" not in (rows.fieldnames or ()):
                raise KeyError("split")
            for row in rows:
                name = os.path.normpath(row["path"])
                if os.path.isabs(name):
                    name = os.path.relpath(name, root)
                splits[name].append(row["split"])
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"--splits_csv={table} cannot be read: {error}; it needs the columns path and split"
        ) from None
    return dict(splits)
