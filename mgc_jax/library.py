"""A music library on its way through a command: which files it answers, and how far it is.

Of a file nothing but its name, size and time is held, however many there are.
"""

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from mgc_jax import console
from mgc_jax.data.opening import find_files
from mgc_jax.errors import InputError
from mgc_jax.files import stamp_of

# From so many files on, worker processes decode: a decoder that crashes or hangs then costs its
# file alone. Of 1,000 MP3s of 30 s their start takes 3% of the CPU time, passing on the clips 4%.
ISOLATED_FROM = 1000
LOG_EVERY = 30  # s, where there is no terminal


class _Answer(Protocol):
    """What is said of a file: a Prediction, an Embedding."""

    @property
    def source(self) -> str: ...


Answer = TypeVar("Answer", bound=_Answer)


def find_songs(
    named: Iterable[str], shard: str | None, *, absolute: bool = False
) -> dict[str, tuple[int, int]]:
    """The files named and those below the folders named, each once, with their stamps.

    What is named but not there is among them: who opens it tells, as of any file that is bad.

    Args:
        named: files and folders.
        shard: `3/8` for the third of eight shares of them, by a hash of the path as it is named:
            the same on every machine; None for all.
        absolute: whether to give absolute paths.

    Raises:
        InputError: there is no file, or `shard` is no share.
    """
    number, count = _parse_shard(shard or "1/1")
    songs = {}
    others = 0
    for path in find_files(named):
        if _hash_of(path) % count != number - 1:
            others += 1
            continue
        name = os.path.abspath(path) if absolute else path
        songs[name] = stamp_of(name)
    if not songs and not others:
        raise InputError("no audio files: name files, or folders that hold some")
    if others:
        console.log.info("--shard=%s: %d of %d files", shard, len(songs), len(songs) + others)
    return songs


def _parse_shard(shard: str) -> tuple[int, int]:
    """`3/8` to 3 and 8."""
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", shard)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise InputError(f"--shard={shard}: need NUMBER/COUNT, from 1/8 to 8/8 on eight machines")
    return number, count


def _hash_of(path: str) -> int:
    """The same number everywhere, of names that need not be UTF-8."""
    return int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], "big")


def following(
    answers: Iterable[Answer], songs: Mapping[str, tuple[int, int]], description: str
) -> Iterator[Answer]:
    """Passes answers on, with a bar on a terminal, or a line every half minute in a log file.

    What a file takes goes with its size rather than with its number, so the time left is by bytes,
    at the mean speed so far. While an answer is looked at, the bar is off the terminal.

    Args:
        answers: one a file.
        songs: the files, with their stamps.
        description: of the bar.
    """
    total = sum(size for size, _ in songs.values())
    live = sys.stderr.isatty()
    said = time.monotonic()
    with console.progress_bar(
        total=total, description=description, unit="B", leave=False, smoothing=0, in_logs=False
    ) as bar:
        for done, answer in enumerate(answers, start=1):
            with bar.external_write_mode() if live else contextlib.nullcontext():
                yield answer
                bar.set_postfix_str(f"{done}/{len(songs)} files", refresh=False)
            bar.update(songs[answer.source][0])
            if not live and time.monotonic() - said > LOG_EVERY:
                said = time.monotonic()
                left = bar.format_interval(_time_left(bar))
                console.log.info("%s: %d of %d files, %s left", description, done, len(songs), left)


def _time_left(bar: Any) -> float:
    """In s, at the mean speed so far."""
    found = bar.format_dict
    return found["elapsed"] * (found["total"] - found["n"]) / max(1, found["n"])
