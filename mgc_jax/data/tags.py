"""Genre and artist from the tags in audio files, as music libraries keep them."""

import os
from typing import NamedTuple

import mutagen
from etils import epath

# The names of a tag in ID3 (MP3; WAV and AIFF with ID3), in FLAC, Ogg and APE, in MP4, and in WMA.
_GENRE = ("TCON", "genre", "\xa9gen", "WM/Genre")
_ARTIST = ("TPE1", "artist", "\xa9ART", "Author")


class Tags(NamedTuple):
    """What a file says of itself; empty where it says nothing."""

    genre: str = ""
    artist: str = ""


def read_tags(path: str | os.PathLike) -> Tags:
    """Reads the tags of an audio file; of several genres or artists, the first.

    A file without tags, or one that cannot be read, gives empty tags: whether it is audio is found
    out when it is decoded.
    """
    try:
        with epath.Path(path).open("rb") as file:
            tags = mutagen.File(file, easy=False)
    # A damaged file must not end the listing, whatever mutagen stumbles over in it.
    except Exception:
        return Tags()
    if tags is None or tags.tags is None:
        return Tags()
    return Tags(_first(tags.tags, _GENRE), _first(tags.tags, _ARTIST))


def _first(tags: mutagen.Tags, names: tuple[str, ...]) -> str:
    """The first value of the first of the names that is there."""
    for name in names:
        found = _values(tags, name)
        # Several genres in one value are set apart by semicolons or, in ID3, by NULs.
        parts = [part.strip() for value in found for part in value.replace("\0", ";").split(";")]
        if any(parts):
            return next(part for part in parts if part)
    return ""


def _values(tags: mutagen.Tags, name: str) -> list[str]:
    try:
        found = tags[name]
    except (KeyError, ValueError):
        return []
    # ID3 knows genres by number too: `genres` spells them out.
    values = getattr(found, "genres", None) or getattr(found, "text", None) or found
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        values = [values]
    return [str(value) for value in values]
