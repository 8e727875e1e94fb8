"""What users give as audio, opened: files, folders, and arrays of NumPy or JAX."""

import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from mgc_jax.data import audio
from mgc_jax.data.features import AudioSettings
from mgc_jax.data.folders import find_audio
from mgc_jax.errors import InputError

Clips = Generator[audio.AudioClip, None, int]  # returns how many had no signal
Hear = Callable[[str, float], None]  # a source's name, and the seconds of it decoded so far
Source = str | os.PathLike | np.ndarray | jax.Array | tuple[int, np.ndarray]


def open_sources(
    sources: Source | Iterable[Source],
    rate: int | None,
    settings: AudioSettings,
    hear: Hear | None = None,
) -> Iterator[tuple[str, Clips]]:
    """Names of sources, and their clips; nothing is read yet.

    Args:
        sources: see `Predictor.predict`.
        rate: of the arrays, in Hz.
        settings: rate and length of the clips.
        hear: called block by block, in the thread that reads the clips; an InputError that it
            raises is what is wrong with the source.

    Raises:
        InputError: `rate` is no whole number above 0; at once. What is wrong with a source is
            raised when its clips are read.
    """
    _check_rate(rate)
    return _opened([sources] if _is_one(sources) else sources, rate, settings, hear)


def _opened(
    sources: Iterable[Source], rate: int | None, settings: AudioSettings, hear: Hear | None
) -> Iterator[tuple[str, Clips]]:
    """As `open_sources`, of any number."""
    sample_rate = settings.sample_rate
    arrays = itertools.count()

    def cut(name: str, blocks: Iterable[np.ndarray]) -> Clips:
        blocks = _heard(name, blocks, settings, hear) if hear else blocks
        return audio.cut_clips(blocks, sample_rate, settings.clip_samples)

    for source in sources:
        if isinstance(source, str | os.PathLike):
            for path in find_files([source]):
                yield path, cut(path, audio.read_blocks(path, sample_rate))
        else:
            name = f"array {next(arrays)}"
            yield name, cut(name, _array_blocks(source, rate, sample_rate))


def _heard(
    name: str, blocks: Iterable[np.ndarray], settings: AudioSettings, hear: Hear
) -> Iterator[np.ndarray]:
    """Passes blocks on, and says how far they reach."""
    samples = 0
    for block in blocks:
        samples += len(block)
        hear(name, samples / settings.sample_rate)
        yield block


def find_files(paths: Iterable[str | os.PathLike]) -> Iterator[str]:
    """Files as given, and the audio files below folders, sorted."""
    for path in paths:
        if os.path.isdir(path):
            found = find_audio(path)
            found.say_what_was_passed_over()
            yield from found.audio
        else:
            yield os.fspath(path)


def _is_one(sources: Any) -> bool:
    """Whether this is one source, not several: a path, an array, or a rate with an array."""
    if isinstance(sources, str | os.PathLike | np.ndarray | jax.Array):
        return True
    return (
        isinstance(sources, tuple)
        and len(sources) == 2
        and isinstance(sources[0], int)
        and isinstance(sources[1], np.ndarray | jax.Array)
    )


def _array_blocks(source: Any, rate: int | None, sample_rate: int) -> Iterator[np.ndarray]:
    """An array, or a rate with an array, as blocks; anything else is an InputError."""
    if _is_one(source) and isinstance(source, tuple):
        rate, source = source
        _check_rate(rate)
    if not isinstance(source, np.ndarray | jax.Array):
        raise InputError(f"{type(source).__name__}: need a path, an array, or (rate, array)")
    if rate is None:
        raise InputError("sample_rate is missing: an array does not tell it")
    yield from audio.array_blocks(np.asarray(source), rate, sample_rate)


def _check_rate(rate: int | None) -> None:
    """Raises InputError for a rate that is no number above 0."""
    if rate is not None and not (isinstance(rate, int | np.integer) and rate > 0):
        raise InputError(f"sample_rate={rate!r}: need a whole number above 0, in Hz")
