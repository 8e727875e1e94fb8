"""What users give as audio, opened: files, folders, and arrays of NumPy or JAX."""

import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from mgc_jax.data import audio
from mgc_jax.data.features import AudioSettings
from mgc_jax.data.folders import find_audio
from mgc_jax.errors import InputError

Clips = Generator[audio.AudioClip, None, int]  # returns how many had no signal
Source = str | os.PathLike | np.ndarray | jax.Array | tuple[int, np.ndarray]


def open_sources(
    sources: Source | Iterable[Source], rate: int | None, settings: AudioSettings
) -> Iterator[tuple[str, Clips]]:
    """Names of sources, and their clips; nothing is read yet.

    Args:
        sources: see `Predictor.predict`.
        rate: of the arrays, in Hz.
        settings: rate and length of the clips.

    Raises:
        InputError: `rate` is no whole number above 0; at once. What is wrong with a source is
            raised when its clips are read.
    """
    _check_rate(rate)
    return _opened([sources] if _is_one(sources) else sources, rate, settings)


def _opened(
    sources: Iterable[Source], rate: int | None, settings: AudioSettings
) -> Iterator[tuple[str, Clips]]:
    sample_rate = settings.sample_rate
    clip_samples = settings.clip_samples
    arrays = itertools.count()
    for source in sources:
        if isinstance(source, str | os.PathLike):
            for path in find_files([source]):
                yield path, audio.read_clips(path, sample_rate, clip_samples)
        else:
            name = f"array {next(arrays)}"
            yield name, _array_clips(source, rate, sample_rate, clip_samples)


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


def _array_clips(source: Any, rate: int | None, sample_rate: int, clip_samples: int) -> Clips:
    """The clips of an array, or of a rate with an array; anything else is an InputError."""
    if _is_one(source) and isinstance(source, tuple):
        rate, source = source
        _check_rate(rate)
    if not isinstance(source, np.ndarray | jax.Array):
        raise InputError(f"{type(source).__name__}: need a path, an array, or (rate, array)")
    if rate is None:
        raise InputError("sample_rate is missing: an array does not tell it")
    blocks = audio.array_blocks(np.asarray(source), rate, sample_rate)
    return (yield from audio.cut_clips(blocks, sample_rate, clip_samples))


def _check_rate(rate: int | None) -> None:
    """Raises InputError for a rate that is no number above 0."""
    if rate is not None and not (isinstance(rate, int | np.integer) and rate > 0):
        raise InputError(f"sample_rate={rate!r}: need a whole number above 0, in Hz")
