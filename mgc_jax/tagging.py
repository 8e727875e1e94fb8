"""Genres written into audio files' tags, and taken back.

Every file is whole at any time: a copy is changed, checked, and takes the file's place. How each
file was is in the undo file before the first one is changed.
"""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import mutagen
import numpy as np
from mutagen.flac import FLAC
from mutagen.id3 import ID3, TCON, ID3NoHeaderError
from mutagen.mp3 import MP3
from mutagen.mp4 import MP4
from mutagen.ogg import OggFileType

from mgc_jax import console, files
from mgc_jax.data.tables import read_table
from mgc_jax.data.tags import read_tags
from mgc_jax.errors import InputError, choices, is_disk_full

HAS_GENRE = "has a genre"
SAME = "has this genre"
UNSURE = "not sure enough"
NO_TAGS = "kind is not written"
UNKNOWN = "unknown music"
_WRITTEN = (MP3, FLAC, OggFileType, MP4)  # ID3, Vorbis comments (FLAC, Ogg), MP4's atoms
_LIST = "files.json"
_ENTRY = {"path": str, "was": str, "now": str, "mtime_ns": int}
_ENTRY |= {"prefix": int, "start": int, "length": int}
_BAD_BOX = (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError)
_BLOCK = 1 << 20  # bytes read or compared at a time
_ID3V1 = 128  # bytes at an MP3's end


class Proposal(NamedTuple):
    """What a network proposes for a file.

    Attributes:
        path: of the file.
        now: the genre that it has; empty if it has none.
        genre: the one proposed; empty if the file could not be heard.
        probability: of the one proposed.
        note: why it is not written; empty if it is.
    """

    path: str
    now: str
    genre: str
    probability: float
    note: str


class Change(NamedTuple):
    """A file's new genre, and its SHA-256 before and after."""

    path: str
    genre: str
    was: str
    now: str


def propose(
    path: str,
    genre: str,
    probability: float,
    *,
    unknown: bool = False,
    overwrite: bool,
    min_probability: float,
) -> Proposal:
    """Decides whether a genre is to be written into a file; only reads it.

    Args:
        path: of the file.
        genre: as it would be written.
        probability: of the genre.
        unknown: whether it is like none of the network's genres: then nothing is written.
        overwrite: replace a genre that the file has.
        min_probability: below it, the file is left as it is.
    """
    now = read_tags(path).genre
    if unknown:
        note = UNKNOWN
    elif now == genre:
        note = SAME
    elif now and not overwrite:
        note = HAS_GENRE
    elif probability < min_probability:
        note = UNSURE
    elif _kind(path) is None:
        note = NO_TAGS
    else:
        note = ""
    return Proposal(path, now, genre, probability, note)


def read_names(path: str | os.PathLike, genres: Iterable[str]) -> dict[str, str]:
    """Reads the names under which genres are written, from a table with `genre` and `name`.

    Args:
        path: of the table.
        genres: those that the network knows.

    Returns:
        Name of each genre that the table has; the other genres keep theirs.

    Raises:
        InputError: it is no such table, or names a genre twice or one that is not known.
    """
    known = list(genres)
    names = {}
    for row in read_table(path, "--names", ("genre", "name")):
        genre = row["genre"].strip()
        if genre not in known:
            raise InputError(f"--names={path}: no genre {genre!r}: {choices(genre, known)}")
        if genre in names:
            raise InputError(f"--names={path} has two rows for {genre!r}: leave one")
        names[genre] = row["name"].strip()
    return names


def write_undo_file(
    path: str | os.PathLike, genres: Mapping[str, str]
) -> tuple[list[Change], dict[str, str]]:
    """Tries each change on a copy, and writes what takes it back; the files stay as they are.

    Args:
        path: of the undo file.
        genres: new genre of each file; of links, what they lead to is changed.

    Returns:
        The changes that can be made, and why the other files cannot be changed.

    Raises:
        InputError: the undo file is there already, or cannot be written.
        OSError: the disk is full.
    """
    check_undo_file(path)
    changes = []
    entries = []
    errors = {}
    try:
        with files.replacing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as box:
            for file, genre in {os.path.realpath(name): genres[name] for name in genres}.items():
                try:
                    entry = _try(file, genre, box, len(entries))
                except (OSError, ValueError, mutagen.MutagenError) as error:
                    if is_disk_full(error):
                        raise
                    errors[file] = _reason(error)
                    continue
                entries.append(entry)
                changes.append(Change(file, genre, entry["was"], entry["now"]))
            box.writestr(_LIST, json.dumps(entries, indent=1))
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InputError(f"cannot write {path}: {error.strerror}; see --undo_file") from None
    return changes, errors


def check_undo_file(path: str | os.PathLike) -> None:
    """Raises InputError if there is such a file: it may be all that can undo an earlier run."""
    if os.path.lexists(path):
        raise InputError(f"{path} is there already: name another --undo_file")


def write_genres(changes: Iterable[Change]) -> Iterator[tuple[str, str]]:
    """Makes the changes that an undo file was written for.

    Yields:
        Each path, with why it could not be changed, or nothing.

    Raises:
        OSError: the disk is full; the file at hand is as it was.
    """
    for change in changes:
        error = ""
        try:
            with files.replacing(change.path) as part:
                _retag(change.path, change.genre, str(part))
                if (_digest(change.path), _digest(part)) != (change.was, change.now):
                    raise ValueError("it changed meanwhile")
        except (OSError, ValueError, mutagen.MutagenError) as caught:
            if is_disk_full(caught):
                raise
            error = _reason(caught)
        yield change.path, error


def undo(path: str | os.PathLike) -> Iterator[tuple[str, str]]:
    """Makes files what they were, to the byte, with their time of change.

    A file that is so already (the run that was to change it was killed) is left alone.

    Yields:
        Each path, with why it was not restored, or nothing.

    Raises:
        InputError: this is no undo file.
        OSError: the disk is full; the file at hand is as it was.
    """
    try:
        with zipfile.ZipFile(path) as box:
            entries = json.loads(box.read(_LIST))
            for number, entry in enumerate(_checked(entries)):
                yield entry["path"], _restore(entry, box, number)
    except _BAD_BOX as error:
        raise InputError(f"--undo={path} is no undo file of this command: {error}") from None
    except OSError as error:
        if is_disk_full(error):
            raise
        raise InputError(f"--undo={path} cannot be read: {error.strerror}") from None


def _kind(path: str) -> type | None:
    """The class of mutagen that writes a file's tags; None if there is none."""
    try:
        audio = mutagen.File(path)
    except mutagen.MutagenError:
        return None
    if isinstance(audio, FLAC) and not audio.tags and _begins_with_id3(path):
        return None  # players that find Vorbis comments would no longer read that tag
    return type(audio) if isinstance(audio, _WRITTEN) else None


def _begins_with_id3(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(3) == b"ID3"


def _retag(path: str, genre: str, copy: str) -> None:
    """Copies a file, and sets the copy's genre; all other tags stay."""
    kind = _kind(path)
    if kind is None:
        raise ValueError(NO_TAGS)
    shutil.copy2(path, copy)
    if kind is MP3:
        _set_id3_genre(copy, genre)
        return
    audio = kind(copy)
    audio["\xa9gen" if kind is MP4 else "genre"] = [genre]
    audio.save()


def _set_id3_genre(path: str, genre: str) -> None:
    """Sets an MP3's genre; the tag's version stays, but 2.3 takes the place of older and none.

    2.3 is what all players read. An ID3v1 tag at the file's end follows, where there is one.
    """
    version = 3
    try:
        tags = ID3(path, translate=False)
        if tags.version < (2, 3):
            tags = ID3(path)
            tags.update_to_v23()
        elif tags.version >= (2, 4):
            version = 4
    except ID3NoHeaderError:
        tags = ID3()
    tags.setall("TCON", [TCON(encoding=3, text=[genre])])
    # Several values in one text stay apart by a NUL, as they were read.
    tags.save(path, v2_version=version, v23_sep=None)


def _try(path: str, genre: str, box: zipfile.ZipFile, number: int) -> dict[str, Any]:
    """Changes a copy of a file, and puts into the undo file what of the old one it lacks.

    Whatever the kind of the file: old = new[:prefix] + middle + new[start:start + length] + tail.

    Raises:
        OSError, ValueError, mutagen.MutagenError: the file cannot be changed.
    """
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), prefix=".mgc_jax-") as copy:
        _retag(path, genre, copy.name)
        old = np.memmap(path, np.uint8, "r")
        new = np.memmap(copy.name, np.uint8, "r")
        prefix = _common(old, new)
        tails = [size for size in (0, _ID3V1) if prefix + size <= min(len(old), len(new))]
        common = {
            size: _common(
                old[prefix : len(old) - size][::-1],
                new[prefix : len(new) - size][::-1],
            )
            for size in tails
        }
        tail = max(common, key=common.__getitem__)
        length = common[tail]
        end = len(old) - tail
        entry = {
            "path": path,
            "was": _digest(path),
            "now": _digest(copy.name),
            "mtime_ns": os.stat(path).st_mtime_ns,
            "prefix": prefix,
            "start": len(new) - tail - length,
            "length": length,
        }
        middle = old[prefix : end - length].tobytes()
        after = old[end:].tobytes()
        check = hashlib.sha256()
        for piece in _rebuilt(copy.name, entry, middle, after):
            check.update(piece)
        if check.hexdigest() != entry["was"]:
            raise ValueError("it changed meanwhile")
        box.writestr(f"{number}/middle", middle)
        box.writestr(f"{number}/tail", after)
    return entry


def _restore(entry: dict[str, Any], box: zipfile.ZipFile, number: int) -> str:
    """Makes one file what it was; why not, or nothing."""
    path = entry["path"]
    try:
        digest = _digest(path)
        if digest == entry["was"]:
            return ""
        if digest != entry["now"]:
            return "it changed since, and stays as it is"
        middle = box.read(f"{number}/middle")
        tail = box.read(f"{number}/tail")
        with files.replacing(path) as part:
            with open(part, "wb") as file:
                file.writelines(_rebuilt(path, entry, middle, tail))
            if _digest(part) != entry["was"]:
                raise ValueError("the undo file is damaged; the file stays as it is")
            shutil.copystat(path, part)
            os.utime(part, ns=(entry["mtime_ns"], entry["mtime_ns"]))
    except (OSError, ValueError) as error:
        if is_disk_full(error):
            raise
        return _reason(error)
    return ""


def _rebuilt(new: str, entry: dict[str, Any], middle: bytes, tail: bytes) -> Iterator[bytes]:
    """The old file's bytes, from the new file and what it lacks."""
    with open(new, "rb") as file:
        yield from _pieces(file, entry["prefix"])
        yield middle
        file.seek(entry["start"])
        yield from _pieces(file, entry["length"])
        yield tail


def _pieces(file: Any, size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(size, _BLOCK))):
        size -= len(piece)
        yield piece


def _checked(entries: Any) -> list[dict[str, Any]]:
    """The undo file's list; ValueError if it is none."""
    if not isinstance(entries, list):
        raise ValueError(f"{_LIST} holds no list")
    for entry in entries:
        if not isinstance(entry, dict) or any(
            not isinstance(entry.get(key), kind) for key, kind in _ENTRY.items()
        ):
            raise ValueError(f"{_LIST} holds something else than files")
    return entries


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many bytes `[bytes] uint8` are equal from the start on."""
    size = min(len(a), len(b))
    for at in range(0, size, _BLOCK):
        end = min(at + _BLOCK, size)
        differing = np.flatnonzero(a[at:end] != b[at:end])
        if len(differing):
            return at + int(differing[0])
    return size


def _digest(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return console.shown(text)
