"""Audio files to mono waveforms at one rate, block by block, and to clips of one length.

What libsndfile decodes and soxr resamples is what `librosa.load(path, sr=rate)` gives, faster and
in bounded memory.
Imports nothing heavy: worker processes start with it.
"""

import os
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import soxr

from mgc_jax.data.decoders import DamagedError, Decoded, check_samples, open_audio
from mgc_jax.errors import InputError

# Folders are searched for these.
EXTENSIONS = frozenset(
    ".mp3 .mp2 .flac .ogg .oga .opus .wav .wave .w64 .rf64 .aif .aiff .aifc .au .snd .caf "
    ".m4a .m4b .mp4 .aac .wma .asf .ape .wv .tta .mpc .mka .webm".split()
)
MIN_SECONDS = 1.0
_RATES = (1_000, 768_000)  # Hz; what lies outside is a damaged header
# A clip whose root mean square is below one step of 16-bit audio (-90.3 dBFS) has no signal: what
# silence holds after dithering to 16 bits is half of that, and a log-mel of it is rounding noise.
_SILENCE = 1 / 32768
# Channels whose mean has less than a millionth (-60 dB) of their power cancel each other.
_CANCELLED = 1e-6
_MOST_CHANNELS = 32  # of an array; more is another axis
_MIXED = 2**16  # samples of an array whose channels are mixed at once, as a file's blocks are


class AudioClip(NamedTuple):
    """A clip of a track.

    Attributes:
        number: of the clip in its track, from 0; clips without signal are passed over, and keep
            their number.
        start: in samples from the start of the track.
        samples: `[clip_samples] float32`.
    """

    number: int
    start: int
    samples: np.ndarray


def read_blocks(path: str | os.PathLike, sample_rate: int) -> Iterator[np.ndarray]:
    """Decodes a file of any rate and channel count to a mono waveform, in bounded memory.

    Args:
        path: any file that libsndfile reads (MP3, FLAC, OGG, WAV, AIFF, ...) or FFmpeg (M4A, WMA,
            ...), local or with a scheme that etils.epath knows (`gs://`).
        sample_rate: rate of the result, in Hz.

    Yields:
        `[samples] float32`, pieces of the mean of the channels, of any length; nominally in
        [-1, 1], decoders may overshoot.

    Raises:
        InputError: the file is missing, empty, not a regular file, unreadable, cut off, or holds
            samples that are not finite or beyond 8.
    """
    for decoded in open_audio(path):
        yield from _resample(decoded, sample_rate)


def _resample(decoded: Decoded, sample_rate: int) -> Iterator[np.ndarray]:
    """A part of a file as `read_blocks` gives it."""
    _check_rate(decoded.rate)
    resampler = None
    if decoded.rate != sample_rate:
        resampler = soxr.ResampleStream(decoded.rate, sample_rate, 1, dtype="float32", quality="HQ")
    frames = produced = 0
    mono = np.empty(0, np.float32)
    for block in decoded.blocks:
        if len(mono) < len(block):
            mono = np.empty(len(block), np.float32)
        frames += len(block)
        piece = mix_to_mono(block, mono[: len(block)])
        piece = resampler.resample_chunk(piece) if resampler else piece.copy()
        check_samples(piece)  # resampled, which is shorter
        produced += len(piece)
        yield piece
    if resampler:
        # librosa's length, whatever the resampler's own rounding.
        left = int(np.ceil(frames * (sample_rate / decoded.rate))) - produced
        piece = resampler.resample_chunk(mono[:0], last=True)[: max(0, left)]
        check_samples(piece)
        yield np.pad(piece, (0, max(0, left - len(piece))))


def _check_rate(rate: int) -> None:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise InputError(f"sample rate of {rate} Hz")


def load_audio(path: str | os.PathLike, sample_rate: int) -> np.ndarray:
    """Decodes a whole file: `[samples] float32`; arguments and errors as for `read_blocks`."""
    return np.concatenate([np.zeros(0, np.float32), *read_blocks(path, sample_rate)])


def read_clips(
    path: str | os.PathLike, sample_rate: int, clip_samples: int
) -> Generator[AudioClip, None, int]:
    """Cuts a file into clips, in bounded memory.

    Whole clips follow one another from the start. When at least half a clip is left after them, one
    more ends at the end of the file; a shorter tail is dropped. A file shorter than one clip is
    repeated until it fills it. Of a damaged file, the whole clips before the damage are given, if
    there are any. Clips without signal are passed over.

    Args:
        path: as for `read_blocks`.
        sample_rate: in Hz.
        clip_samples: length of a clip.

    Yields:
        At least one clip.

    Returns:
        How many clips were passed over, once all are given.

    Raises:
        InputError: as `read_blocks`, or the file is shorter than one second, or without signal.
    """
    return cut_clips(read_blocks(path, sample_rate), sample_rate, clip_samples)


def cut_clips(
    blocks: Iterable[np.ndarray], sample_rate: int, clip_samples: int
) -> Generator[AudioClip, None, int]:
    """As `read_clips`, for a waveform in pieces `[samples] float32` of any length.

    Returns:
        How many clips were passed over, once all are given.

    Examples:
        >>> blocks = [np.ones(30, np.float32), np.ones(25, np.float32)]
        >>> clips = cut_clips(blocks, sample_rate=10, clip_samples=20)
        >>> [(clip.number, clip.start) for clip in clips]
        [(0, 0), (1, 20), (2, 35)]
    """
    heard = silent = 0
    for clip in _cut(blocks, sample_rate, clip_samples):
        if has_signal(clip.samples):
            heard += 1
            yield clip
        else:
            silent += 1
    if not heard:
        raise InputError("no signal: nothing but silence in it")
    return silent


def _cut(blocks: Iterable[np.ndarray], sample_rate: int, clip_samples: int) -> Iterator[AudioClip]:
    """All clips, also those without signal."""
    clip = np.empty(clip_samples, np.float32)
    previous = clip
    filled = count = 0
    try:
        for block in blocks:
            while len(block):
                part = block[: clip_samples - filled]
                clip[filled : filled + len(part)] = part
                filled += len(part)
                block = block[len(part) :]
                if filled == clip_samples:
                    yield AudioClip(count, count * clip_samples, clip)
                    previous = clip
                    clip = np.empty(clip_samples, np.float32)
                    filled = 0
                    count += 1
    except DamagedError:
        if not count:
            raise
        return
    if not count:
        if filled < MIN_SECONDS * sample_rate:
            seconds = filled / sample_rate
            raise InputError(f"too short: {seconds:.2f} s of audio, need {MIN_SECONDS:g} s")
        yield AudioClip(0, 0, np.resize(clip[:filled], clip_samples))
    elif 2 * filled >= clip_samples:
        last = np.concatenate([previous[filled:], clip[:filled]])
        yield AudioClip(count, count * clip_samples + filled - clip_samples, last)


def array_blocks(array: np.ndarray, rate: int, sample_rate: int) -> list[np.ndarray]:
    """Samples as people have them, as `read_blocks` gives a file's.

    Args:
        array: `[samples]`, `[samples, channels]` or `[channels, samples]`: the longer axis is time.
            Floats in [-1, 1], or int16 or int32 over their whole range.
        rate: of the array, in Hz.
        sample_rate: of the result, in Hz.

    Raises:
        InputError: another type, shape, rate or range.
    """
    if array.dtype in (np.int16, np.int32):
        array = array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{array.dtype} of shape {array.shape}: need floats, int16 or int32, [samples] or "
            "[samples, channels]"
        )
    if array.ndim == 1:
        array = array[:, None]
    if array.shape[0] == array.shape[1] > 1:
        raise InputError(f"shape {array.shape}: which axis is time?")
    if array.shape[0] < array.shape[1]:
        array = array.T
    if array.shape[1] > _MOST_CHANNELS:
        raise InputError(f"{array.shape[1]} channels: {_MOST_CHANNELS} at most")
    _check_rate(rate)
    check_samples(array)
    samples = array.astype(np.float32, copy=False)
    if samples.size == 0:
        return []
    out = np.empty(len(samples), np.float32)
    for start in range(0, len(samples), _MIXED):
        part = slice(start, start + _MIXED)
        out[part] = mix_to_mono(samples[part], out[part])
    return [soxr.resample(out, rate, sample_rate, quality="HQ") if rate != sample_rate else out]


def has_signal(clip: np.ndarray) -> bool:
    """Whether `[samples] float32` are more than silence: at least -90.3 dBFS (root mean square)."""
    return bool(np.dot(clip, clip) >= len(clip) * _SILENCE**2)


def mix_to_mono(samples: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The mean of the channels, `[frames, channels]` to `[frames]`; in `out`, if there are several.

    Channel by channel, which is several times faster than `mean(axis=1)` on interleaved memory.
    Where the channels cancel each other, as one of them with the other's sign turned does, the mean
    would be silence: there the first one is taken, block by block.
    """
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    np.add(samples[:, 0], samples[:, 1], out=out)
    for channel in range(2, channels):
        out += samples[:, channel]
    out *= np.float32(1 / channels)
    # Looked at only where a few samples of the mean are below -50 dBFS, as it takes time.
    if np.abs(out[::64]).max(initial=0.0) < 0.003:
        power = np.dot(out, out)
        first = np.ascontiguousarray(samples[:, 0])
        if power <= _CANCELLED * np.dot(first, first) and has_signal(first):
            out[:] = first
    return out
