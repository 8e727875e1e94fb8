"""Genre and artist from the tags in audio files, as music libraries keep them."""

import contextlib
import os
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple, cast

import mutagen
import soundfile
from etils import epath

# The names of a tag in ID3 (MP3; WAV and AIFF with ID3), in FLAC, Ogg and APE, in MP4, and in WMA.
_GENRE = ("TCON", "genre", "\xa9gen", "WM/Genre")
_ARTIST = ("TPE1", "artist", "\xa9ART", "Author")
# Endings of the kinds whose own tags mutagen does not know.
_READ_BY_LIBSNDFILE = (".wav", ".caf")


class Tags(NamedTuple):
    """What a file says of itself; empty where it says nothing."""

    genre: str = ""
    artist: str = ""


def read_tags(path: str | os.PathLike) -> Tags:
    """Reads the tags of an audio file; of several genres or artists, the first.

    A file without tags, or one that cannot be read, gives empty tags: whether it is audio is found
    out when it is decoded.
    """
    path = os.fspath(path)
    if "://" not in path and not os.path.isfile(path):
        return Tags()  # opening a named pipe would wait for ever
    readers = [_read_by_mutagen]
    if path.lower().endswith(_READ_BY_LIBSNDFILE):
        readers.append(_read_by_libsndfile)
    for read in readers:
        # A damaged file must not end the listing, whatever a parser stumbles over in it.
        with contextlib.suppress(Exception), epath.Path(path).open("rb") as file:
            tags = read(cast(BinaryIO, file))
            if any(tags):
                return tags
    return Tags()


def _read_by_mutagen(file: BinaryIO) -> Tags:
    """The tags of MP3, FLAC, Ogg, Opus, MP4, WMA, APE, and of WAV and AIFF if they are ID3."""
    audio = mutagen.File(file)
    if audio is None or audio.tags is None:
        return Tags()
    return Tags(_first(audio.tags, _GENRE), _first(audio.tags, _ARTIST))


def _read_by_libsndfile(file: BinaryIO) -> Tags:
    """The texts of WAV (RIFF's own) and CAF."""
    with soundfile.SoundFile(file) as audio:
        texts = audio.copy_metadata()
    return Tags(_first_part([texts.get("genre", "")]), _first_part([texts.get("artist", "")]))


def _first(tags: Mapping, names: tuple[str, ...]) -> str:
    """The first value of the first of the names that is there."""
    parts = (_first_part(_values(tags, name)) for name in names)
    return next(filter(None, parts), "")


def _first_part(values: list[str]) -> str:
    """The first text; several in one value are set apart by semicolons or, in ID3, by NULs."""
    parts = (part.strip() for value in values for part in value.replace("\0", ";").split(";"))
    return next(filter(None, parts), "")


def _values(tags: Mapping, name: str) -> list[str]:
    try:
        found = tags[name]
    except (KeyError, ValueError):
        return []
    # ID3 knows genres by number too: `genres` spells them out.
    values = getattr(found, "genres", None) or getattr(found, "text", None) or found
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        values = [values]
    return [str(value) for value in values]
