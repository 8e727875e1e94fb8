"""Finished tracks on disk beside a data set in the making, so that a rerun does not decode them
again."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import struct
from collections.abc import Generator, Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from etils import epath

from mgc_jax.data.clips import Clip, iter_clips
from mgc_jax.data.features import Feature, settings_of

_SILENT = struct.Struct("<q")
_PLACE = struct.Struct("<qd")  # number and start of a clip


@dataclasses.dataclass(frozen=True)
class ClipCache:
    """One file a track: how many clips without signal were passed over; then of each of the others
    its number and start, and its features, byte after byte.

    Attributes:
        folder: of all files.
        features: what is stored of each clip, in this order.
    """

    folder: str
    features: tuple[Feature, ...]

    def entry(self, path: str) -> epath.Path:
        """Where an audio file's clips are, or would be.

        The name depends on the audio file's path, size and time of change, on the settings, and on
        the packages that decode.
        """
        try:
            status = epath.Path(path).stat()
            stamp = [status.length, status.mtime]
        except (OSError, ValueError):
            stamp = None
        names = [feature.name for feature in self.features]
        key = [path, stamp, settings_of(self.features), names, _versions()]
        return epath.Path(self.folder) / hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def holds(self, entry: epath.Path) -> bool:
        """Whether all of a track's clips are there."""
        try:
            size = entry.stat().length
        except OSError:
            return False
        content = size - _SILENT.size
        return content > 0 and content % self._clip_bytes == 0

    def store(self, item: tuple[str, str]) -> None:
        """Decodes an audio file, and writes its clips all or none.

        Args:
            item: the file's path, and its entry.

        Raises:
            InputError: the file cannot be used; the message is the reason.
            OSError: the entry cannot be written.
        """
        path = item[0]
        entry = epath.Path(item[1])
        part = entry.with_suffix(f".{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                file.write(_SILENT.pack(0))
                silent = self._write_clips(file, iter_clips(path, self.features))
                file.seek(0)
                file.write(_SILENT.pack(silent))
            part.replace(entry)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def _write_clips(self, file: Any, clips: Generator[Clip, None, int]) -> int:
        """Writes clips as they are decoded; returns how many were passed over."""
        while True:
            try:
                clip = next(clips)
            except StopIteration as end:
                return end.value
            file.write(_PLACE.pack(clip.number, clip.start))
            for feature in self.features:
                file.write(np.ascontiguousarray(clip.features[feature.name]).data)

    def silent(self, entry: epath.Path) -> int:
        """How many clips of an entry were passed over, as they had no signal."""
        with entry.open("rb") as file:
            return _SILENT.unpack(file.read(_SILENT.size))[0]

    def load(self, entry: epath.Path) -> Iterator[Clip]:
        """Yields the clips of an entry, as `iter_clips` gave them."""
        with entry.open("rb") as file:
            file.seek(_SILENT.size)
            while content := file.read(self._clip_bytes):
                number, seconds = _PLACE.unpack_from(content)
                features = {}
                start = _PLACE.size
                for feature, size in zip(self.features, self._sizes, strict=True):
                    values = np.frombuffer(content[start : start + size], feature.dtype)
                    features[feature.name] = values.reshape(feature.shape)
                    start += size
                yield Clip(number, seconds, features)

    def digest(self, entry: epath.Path) -> str:
        """A hash of an entry's first clip, equal where the decoded audio is."""
        with entry.open("rb") as file:
            file.seek(_SILENT.size)
            return hashlib.sha256(file.read(self._clip_bytes)).hexdigest()

    @property
    def _clip_bytes(self) -> int:
        return _PLACE.size + sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        """Bytes of each feature of a clip."""
        return [math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in self.features]


@functools.cache
def _versions() -> list[str]:
    return [version(name) for name in ("mgc_jax", "soundfile", "soxr")]
