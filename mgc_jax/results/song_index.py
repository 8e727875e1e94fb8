"""An index of songs: a vector for each file, written so that a killed run goes on, and searched.

The index is one .npz file with

| array | |
|---|---|
| `paths` | `[songs] str`, absolute |
| `vectors` | `[songs, channels] float32` |
| `about` | JSON: `network`, the fingerprint of the network that made it, and `workdir` |

While it is made, a folder beside it grows: `songs.jsonl` with a line for each file, and
`vectors.f32`, the vectors as raw little-endian float32, in the order of the lines that have one.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mgc_jax import console
from mgc_jax.errors import InputError
from mgc_jax.files import replacing, stamp_of, write_bytes

_BLOCK = 8192  # vectors that are in memory at once


def part_folder(index: Path) -> Path:
    """The folder that grows while an index is made: `songs.part` for `songs.npz`."""
    return index.with_suffix(".part")


@dataclasses.dataclass(frozen=True)
class _Row:
    """A file that is done: its size and time then, and the number of its vector or its error."""

    stamp: tuple[int, int]
    place: int | None
    error: str | None


class GrowingIndex:
    """An index in the making. Every file that is added is on disk when `add` returns."""

    def __init__(self, index: Path, network: str, channels: int):
        """Opens what an earlier run left, or begins anew.

        Args:
            index: the .npz to be written at the end.
            network: the fingerprint of the network.
            channels: of its embeddings.

        Raises:
            InputError: another process is at work on it, or it is another network's.
            OSError: it cannot be written.
        """
        self._index = index
        self._folder = part_folder(index)
        self._channels = channels
        self._done: dict[str, _Row] = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            self._lines = stack.enter_context(open(self._folder / "songs.jsonl", "a+b"))
            self._vectors = stack.enter_context(open(self._folder / "vectors.f32", "a+b"))
            self._lock()
            self._count = self._read(network)
            self._files = stack.pop_all()

    def __enter__(self) -> "GrowingIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def has(self, path: str) -> bool:
        """Whether a file is done, and has the size and time that it had then."""
        return path in self._done and self._done[path].stamp == stamp_of(path)

    def errors(self, paths: Iterable[str]) -> dict[str, str]:
        """Those of these files that could not be used, with the reason."""
        rows = {path: self._done[path] for path in paths if path in self._done}
        return {path: row.error for path, row in rows.items() if row.error is not None}

    def add(
        self, path: str, stamp: tuple[int, int], vector: np.ndarray | None, error: str | None
    ) -> None:
        """Appends a file: its vector `[channels] float32`, or the error.

        Args:
            path: absolute.
            stamp: `stamp_of` the file, from before it was read.
            vector: of the file; None with an error.
            error: why it could not be used.
        """
        # The vector first: a line without one would be believed.
        place = None
        if vector is not None:
            self._vectors.write(vector.astype("<f4").tobytes())
            self._vectors.flush()
            place = self._count
            self._count += 1
        self._write_line({"path": path, "stamp": stamp, "error": error})
        self._done[path] = _Row(stamp, place, error)

    def finish(self, paths: Iterable[str], about: dict[str, Any]) -> int:
        """Writes the index of these files, of which all are done, and removes the folder.

        Args:
            paths: absolute, in the order of the index; those with errors are left out.
            about: what the index says of itself; must hold `network`.

        Returns:
            The number of songs in the index.

        Raises:
            InputError: none of the files could be used.
            OSError: it cannot be written.
        """
        places = {path: self._done[path].place for path in paths}
        places = {path: place for path, place in places.items() if place is not None}
        if not places:
            raise InputError("none of the files could be used: no index is written")
        order = np.fromiter(places.values(), np.int64)
        stored = np.memmap(self._vectors.name, "<f4", "r", shape=(self._count, self._channels))
        with replacing(self._index) as part, zipfile.ZipFile(part, "w") as archive:
            _write_array(archive, "paths", np.array(list(places)))
            _write_array(archive, "about", np.array(json.dumps(about)))
            with archive.open("vectors.npy", "w", force_zip64=True) as file:
                shape = (len(order), self._channels)
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(order), _BLOCK):
                    file.write(stored[order[start : start + _BLOCK]].tobytes())
        self._files.close()
        for file in (self._lines, self._vectors):
            os.unlink(file.name)
        self._folder.rmdir()
        return len(order)

    def _lock(self) -> None:
        """Keeps the folder for this process; the lock ends with it."""
        try:
            fcntl.flock(self._lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self._folder} is written by another process") from None

    def _read(self, network: str) -> int:
        """Takes in what is there, cuts off what a kill left half written; the number of vectors."""
        width = 4 * self._channels
        whole = self._vectors.seek(0, os.SEEK_END) // width
        self._lines.seek(0)
        head = {"network": network, "channels": self._channels}
        first = self._lines.readline()
        if not first.endswith(b"\n"):
            self._lines.truncate(0)
            self._vectors.truncate(0)
            self._write_line(head)
            return 0
        if _parsed(first) != head:
            raise InputError(
                f"{self._folder} was begun with another network: remove it, or give another "
                "--output"
            )
        count = 0
        kept = len(first)
        for line in self._lines:
            row = _parsed(line)
            try:
                size, time = map(int, row["stamp"])
                has_vector = row["error"] is None
                name = str(row["path"])
            except (KeyError, TypeError, ValueError):
                break
            if not line.endswith(b"\n") or (has_vector and count == whole):
                break
            self._done[name] = _Row((size, time), count if has_vector else None, row["error"])
            count += has_vector
            kept += len(line)
        self._lines.truncate(kept)
        self._vectors.truncate(count * width)
        return count

    def _write_line(self, row: dict[str, Any]) -> None:
        # ASCII, so that names that are not UTF-8 pass.
        self._lines.write(json.dumps(row).encode() + b"\n")
        self._lines.flush()


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


@dataclasses.dataclass(frozen=True)
class SongIndex:
    """An index that was written: its paths are in memory, its vectors on disk.

    Attributes:
        file: the .npz.
        paths: of the songs, in order.
        about: what it says of itself.
    """

    file: Path
    paths: list[str]
    about: dict[str, Any]

    @classmethod
    def open(cls, file: str | os.PathLike) -> "SongIndex":
        """Reads the paths of an index.

        Raises:
            InputError: the file is missing, or no index.
        """
        file = Path(file)
        with _index_errors(file), zipfile.ZipFile(file) as archive:
            arrays = {}
            for name in ("paths", "about"):
                with archive.open(f"{name}.npy") as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
            about = json.loads(str(arrays["about"]))
            about["network"]  # a KeyError is told as all others
            index = cls(file, [str(path) for path in arrays["paths"]], about)
            with archive.open("vectors.npy") as stream:
                index._channels(stream)
        return index

    def vector(self, place: int) -> np.ndarray:
        """The vector of one song, `[channels] float32`."""
        start = 0
        for block in self._blocks():
            if place < start + len(block):
                return block[place - start]
            start += len(block)
        raise IndexError(place)

    def cosines(self, vector: np.ndarray) -> np.ndarray:
        """The cosine of the angle between a vector and every song's: `[songs] float64`.

        Args:
            vector: `[channels]`, not all zeros. A song of zeros has the cosine 0.

        Raises:
            InputError: the index is damaged, or of vectors of another length.
        """
        vector = np.asarray(vector, np.float64)
        found = []
        for block in self._blocks():
            if block.shape[1:] != vector.shape:
                raise InputError(
                    f"{self.file} holds vectors of {block.shape[1]} numbers, not {len(vector)}"
                )
            block = block.astype(np.float64)
            lengths = np.linalg.norm(block, axis=1) * np.linalg.norm(vector)
            found.append(block @ vector / np.where(lengths > 0, lengths, 1))
        return np.concatenate(found)

    def nearest(
        self, vector: np.ndarray, count: int, without: Iterable[str] = ()
    ) -> list[tuple[str, float]]:
        """The songs of the smallest angles to a vector, nearest first.

        Args:
            vector: `[channels]`.
            count: how many songs.
            without: paths to leave out.

        Returns:
            Paths and cosines; of equal cosines the one that is first in the index comes first.
        """
        left_out = set(without)
        cosines = self.cosines(vector)
        order = (i for i in np.argsort(-cosines, kind="stable") if self.paths[i] not in left_out)
        return [(self.paths[i], float(cosines[i])) for i in itertools.islice(order, count)]

    def _blocks(self) -> Iterator[np.ndarray]:
        """The vectors, some thousand at a time: `[block, channels] float32`."""
        with _index_errors(self.file), zipfile.ZipFile(self.file) as archive:
            with archive.open("vectors.npy") as stream:
                channels = self._channels(stream)
                for start in range(0, len(self.paths), _BLOCK):
                    rows = min(_BLOCK, len(self.paths) - start)
                    data = stream.read(4 * channels * rows)
                    yield np.frombuffer(data, "<f4").reshape(rows, channels)

    def _channels(self, stream: Any) -> int:
        """Reads the header of the vectors; raises ValueError if it does not fit the paths."""
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError("vectors of an unknown format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        if fortran_order or dtype != "<f4" or len(shape) != 2 or shape[0] != len(self.paths):
            raise ValueError(f"{len(self.paths)} paths, vectors {shape} of {dtype}")
        return shape[1]


@contextlib.contextmanager
def _index_errors(file: Path) -> Iterator[None]:
    """Turns what NumPy and zipfile raise for a file that is no index into one line."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"no index {file}: `mgc_jax embed` makes it") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
    except (EOFError, KeyError, RecursionError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file} is no index that `mgc_jax embed` made, or damaged: {error}"
        ) from None


def _write_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)


def write_playlist(file: str | os.PathLike, paths: Iterable[str]) -> None:
    """Writes an .m3u playlist, UTF-8 as players read it; names with line ends are left out.

    Raises:
        OSError: it cannot be written.
    """
    lines = ["#EXTM3U"]
    for path in paths:
        if "\n" in path or "\r" in path:
            console.log.warning("not in the playlist: %s has a line end", console.shown(path))
        else:
            lines.append(path)
    write_bytes(file, os.fsencode("\n".join(lines) + "\n"))
