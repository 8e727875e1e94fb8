"""Finished tracks on disk beside a data set in the making, so that a rerun does not decode them
again."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
from etils import epath

from mgc_jax.data.clips import DTYPES, Clip, iter_clips
from mgc_jax.data.features import ClipSettings


@dataclasses.dataclass(frozen=True)
class ClipCache:
    """One file a track: its clips' features, byte after byte.

    Attributes:
        folder: of all files.
        settings: rate, clip length and log-mel settings.
        names: `mel` and/or `waveform`.
    """

    folder: str
    settings: ClipSettings
    names: tuple[str, ...]

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
        key = [path, stamp, dataclasses.asdict(self.settings), self.names, _versions()]
        return epath.Path(self.folder) / hashlib.sha256(json.dumps(key).encode()).hexdigest()

    def holds(self, entry: epath.Path) -> bool:
        """Whether all of a track's clips are there."""
        try:
            size = entry.stat().length
        except OSError:
            return False
        return size > 0 and size % self._clip_bytes == 0

    def store(self, item: tuple[str, str]) -> None:
        """Decodes an audio file, and writes its clips all or none.

        Args:
            item: the file's path, and its entry.

        Raises:
            InputError: the file cannot be used; the message is the reason.
            OSError: the entry cannot be written.
        """
        path, entry = item[0], epath.Path(item[1])
        part = entry.with_suffix(f".{os.getpid()}.part")
        try:
            with part.open("wb") as file:
                for clip in iter_clips(path, self.settings, self.names):
                    for name in self.names:
                        file.write(np.ascontiguousarray(clip[name]))
            part.replace(entry)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def load(self, entry: epath.Path) -> Iterator[Clip]:
        """Yields the clips of an entry, as `iter_clips` gave them."""
        with entry.open("rb") as file:
            while clip := file.read(self._clip_bytes):
                features, start = {}, 0
                for name, size in self._sizes.items():
                    values = np.frombuffer(clip[start : start + size], DTYPES[name])
                    features[name] = values.reshape(self.settings.shape(name))
                    start += size
                yield features

    @property
    def _sizes(self) -> dict[str, int]:
        return {
            name: math.prod(self.settings.shape(name)) * np.dtype(DTYPES[name]).itemsize
            for name in self.names
        }

    @property
    def _clip_bytes(self) -> int:
        return sum(self._sizes.values())


@functools.cache
def _versions() -> list[str]:
    return [version(name) for name in ("mgc_jax", "soundfile", "soxr")]
