"""A data set before any decoding: its tracks, the files that cannot be used, and its source."""

import collections
import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from etils import epath

from mgc_jax import console
from mgc_jax.data.tables import READ_ERRORS, explain, open_rows, write_table
from mgc_jax.errors import InputError
from mgc_jax.files import cell

SKIPPED_FILE = "skipped.csv"
TRACKS_FILE = "tracks.csv"
SPLITS = ("train", "validation", "test")
# As people name the splits, in folders and tables; in any case.
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_NAMED = 10  # names that a log line lists


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
        left_out: those that are no part of the corpus though nothing is wrong with them, such as
            the second copy of a track, each with the reason. They do not count as skipped.
        source: where the corpus comes from, as short texts by name.
    """

    tracks: list[Track]
    skipped: list[Skipped]
    left_out: Sequence[Skipped] = ()
    source: Mapping[str, str] = {}


def genres_of(tracks: Iterable[Track]) -> list[str]:
    """The genre names in label order: alphabetical."""
    return sorted({track.genre for track in tracks})


def split_named(text: str) -> str | None:
    """The split that a word means, in any case: `Train`, `valid`, `dev`, ...; None if none."""
    return _SPLIT_NAMES.get(text.strip().lower())


def hash_of(text: str) -> int:
    """A number in [0, 2**63) that is the same everywhere.

    Raises:
        UnicodeEncodeError: of a file name that is not UTF-8.
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def share_of(group: str) -> float:
    """A number in [0, 1) that decides on the split of a group of tracks."""
    return hash_of(f"split of {group}") / 2**63


def unify_genres(names: Iterable[str]) -> dict[str, str]:
    """Gives genres names that survive a file with one name a line, and says what it changes.

    Blanks at the ends go, line ends and other control characters become blanks, and names that
    then differ only in case are one genre. The spelling that occurs most often stays.

    Args:
        names: a genre's name for each track.

    Returns:
        Each name as it came, to its genre; an empty text if nothing visible is left of it.
    """
    counts = collections.Counter(names)
    spellings = collections.defaultdict(collections.Counter)
    for name, count in counts.items():
        clean = _clean(name)
        spellings[clean.casefold()][clean] += count
    best = {
        key: min(found, key=lambda spelling: (-found[spelling], spelling))
        for key, found in spellings.items()
    }
    genres = {name: best[_clean(name).casefold()] for name in counts}
    changed = sorted(
        name
        for name, genre in genres.items()
        if genre and genre != unicodedata.normalize("NFC", name)
    )
    if changed:
        console.log.warning(
            "genres made one: %s", listed(f"{name!r} is {genres[name]!r}" for name in changed)
        )
    return genres


def listed(names: Iterable[str]) -> str:
    """Names for a log line; of many, the first few and the number of the rest."""
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def find_duplicates(
    tracks: Sequence[Track], digests: Mapping[str, str]
) -> list[tuple[Track, list[Track]]]:
    """Finds tracks with the same content under several names.

    Args:
        tracks: in any order.
        digests: path to a hash of the content, such as of the decoded first clip; of tracks that
            could not be decoded there is none.

    Returns:
        For each content that several tracks have: the track whose path comes first, and the others
        in the order of their paths. The order of `tracks` and `digests` changes nothing.
    """
    groups = collections.defaultdict(list)
    for track in sorted(tracks, key=lambda track: track.path):
        if track.path in digests:
            groups[digests[track.path]].append(track)
    return sorted((same[0], same[1:]) for same in groups.values() if len(same) > 1)


def without_duplicates(tracks: Sequence[Track], digests: Mapping[str, str]) -> Listing:
    """Keeps one track of each content, and none of a content that has two genres.

    Of several tracks with one content the one whose path comes first stays. Which of two genres
    would be right is unknown, so such a content is left out altogether.

    Args:
        tracks, digests: as for `find_duplicates`.

    Returns:
        The tracks that stay, in their order, and those left out with the reason.
    """
    left_out = {}
    for first, others in find_duplicates(tracks, digests):
        genres = genres_of([first, *others])
        if len(genres) == 1:
            reason = f"the same audio as {first.path}"
            left_out |= {track.path: (track, reason) for track in others}
            continue
        for track in (first, *others):
            other = next(t for t in (first, *others) if t.genre != track.genre)
            reason = f"the same audio as {other.path}, which has another genre, {other.genre}"
            left_out[track.path] = (track, reason)
    kept = [track for track in tracks if track.path not in left_out]
    return Listing(kept, [], sorted(left_out.values()))


def count_duplicates(tracks: Sequence[Track], digests: Mapping[str, str]) -> dict[str, int]:
    """Counts the tracks with the same content, for data whose tracks are given.

    Args:
        tracks, digests: as for `find_duplicates`.

    Returns:
        `contents`: how many contents have several tracks; `tracks`: how many tracks that are;
        `across_splits` and `across_genres`: how many of the contents are in several.
    """
    groups = [[first, *others] for first, others in find_duplicates(tracks, digests)]
    return {
        "contents": len(groups),
        "tracks": sum(map(len, groups)),
        "across_splits": sum(len({track.split for track in same}) > 1 for same in groups),
        "across_genres": sum(len({track.genre for track in same}) > 1 for same in groups),
    }


def check_usable(
    tracks: Sequence[Track],
    skipped: Sequence[Skipped],
    max_skipped: float,
    folder: epath.Path,
    left_out: Sequence[Skipped] = (),
) -> None:
    """Checks that what is left of a corpus is worth preparing; keeps the list of what is not.

    Args:
        tracks, skipped, left_out: as in `Listing`.
        max_skipped: the largest share of tracks, those left out apart, that may be skipped.
        folder: gets `skipped.csv`, if any track is skipped or left out.

    Raises:
        InputError: a split has no track, or too many tracks are skipped.
    """
    count = len(tracks) + len(skipped)
    example = ""
    if skipped or left_out:
        folder.mkdir(parents=True, exist_ok=True)
        write_skipped(folder, [*skipped, *left_out])
    if skipped:
        track, reason = min(skipped)
        example = f" (such as {track.path!r}: {reason}), listed in {folder / SKIPPED_FILE}"
    for split in SPLITS:
        if not any(track.split == split for track in tracks):
            raise InputError(
                f"no usable track in the {split} split: {len(skipped)} of {count} tracks cannot "
                f"be used{example}. Check that --audio_dir is the right folder"
            )
    if len(skipped) > max_skipped * count:
        raise InputError(
            f"{len(skipped)} of {count} tracks cannot be used{example}. "
            f"--max_skipped={max_skipped:g} is the largest share that may be"
        )


def warn_of_gaps(tracks: Sequence[Track]) -> None:
    """Names the genres that lack in a split."""
    present = {(track.genre, track.split) for track in tracks}
    for split in SPLITS:
        missing = [genre for genre in genres_of(tracks) if (genre, split) not in present]
        if missing:
            console.log.warning(
                "no %s track of %s: --splits_csv can choose", split, listed(missing)
            )


def name_lost_genres(before: Iterable[Track], after: Iterable[Track]) -> None:
    """Names the genres that had files, of which none can be used."""
    lost = sorted(set(genres_of(before)) - set(genres_of(after)))
    if lost:
        console.log.warning("no usable file in %s: no genres", listed(lost))


def write_lists(folder: epath.Path, tracks: Sequence[Track], skipped: Sequence[Skipped]) -> None:
    """Writes `tracks.csv`, which tells the files behind the ids, and `skipped.csv`."""
    rows = [track._replace(genre=cell(track.genre)) for track in tracks]
    write_table(folder / TRACKS_FILE, Track._fields, rows)
    write_skipped(folder, skipped)


def write_skipped(folder: epath.Path, skipped: Sequence[Skipped]) -> None:
    """Writes `skipped.csv`."""
    rows = [
        (track_id, cell(path, "./"), cell(genre), split, reason)
        for (track_id, path, genre, split), reason in sorted(skipped)
    ]
    write_table(folder / SKIPPED_FILE, (*Track._fields, "reason"), rows)


def read_paths(folder: str | os.PathLike) -> dict[int, str]:
    """The audio file of each track id in a folder of records, below the folder that holds all.

    Raises:
        InputError: the list of tracks is missing or damaged.
    """
    rows = _read_list(folder, TRACKS_FILE, Track._fields)
    paths = {int(row["track_id"]): row["path"] for row in rows}
    above = os.path.dirname(os.path.commonprefix(list(paths.values())))
    return {track_id: path.removeprefix(above).lstrip("/") for track_id, path in paths.items()}


def read_skipped(folder: str | os.PathLike) -> list[dict[str, str]]:
    """The rows of `skipped.csv`, by column; raises InputError where it is missing or damaged."""
    return _read_list(folder, SKIPPED_FILE, (*Track._fields, "reason"))


def _read_list(folder: str | os.PathLike, name: str, columns: Sequence[str]) -> list[dict]:
    path = epath.Path(folder) / name
    try:
        with open_rows(path) as rows:
            header, *cells = [row for _, row in rows]
        found = [dict(zip(columns, row, strict=True)) for row in cells]
        if header != [*columns] or not all(row["track_id"].lstrip("-").isdigit() for row in found):
            raise ValueError(f"it does not hold the columns {', '.join(columns)}")
        return found
    except READ_ERRORS as error:
        raise InputError(f"{path} cannot be read ({explain(error)}): prepare it again") from None


def unlisted(path: str | os.PathLike) -> Track:
    """A file of which nothing is known."""
    return Track(-1, os.fspath(path), "", "")


def check_folder(path: epath.Path, which: str) -> None:
    """Raises InputError if there is no such folder; `which` says what it should hold."""
    if not path.is_dir():
        raise InputError(f"--audio_dir={path} is no folder: name {which}")


def _clean(name: str) -> str:
    """A name in one line, without outer blanks."""
    # An accented letter may be written in two ways, of which macOS prefers the other in file names.
    text = unicodedata.normalize("NFC", name)
    controls = {c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")}
    return " ".join("".join(" " if c in controls else c for c in text).split())
