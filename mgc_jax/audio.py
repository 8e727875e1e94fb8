"""Audio files to mono waveforms at one rate, and waveforms to clips of one length.

Reads with soundfile and resamples with soxr, which gives what `librosa.load(path, sr=rate)` gives,
faster.
Imports nothing heavy: worker processes start with it.
"""

import os

import numpy as np
import soundfile
import soxr

from mgc_jax.errors import InputError

MIN_SECONDS = 1.0


def load_audio(path: str | os.PathLike, sample_rate: int) -> np.ndarray:
    """Decodes a file of any rate and channel count to a mono waveform.

    Args:
        path: any file that libsndfile reads (MP3, FLAC, OGG, WAV, AIFF, ...).
        sample_rate: rate of the result, in Hz.

    Returns:
        `[samples] float32`, the mean of the channels; nominally in [-1, 1], decoders may overshoot.

    Raises:
        InputError: the file is missing, empty, unreadable, or holds samples that are not finite.
    """
    if not os.path.isfile(path):
        raise InputError("no such file" if not os.path.exists(path) else "not a regular file")
    if os.path.getsize(path) == 0:
        raise InputError("empty file")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"cannot be decoded: {str(error).rstrip('.').splitlines()[-1]}") from None
    mono = _mix_to_mono(samples)
    if not np.isfinite(mono).all():
        raise InputError("holds samples that are not finite numbers")
    if rate == sample_rate or not len(mono):
        return mono
    resampled = soxr.resample(mono, rate, sample_rate, quality="HQ")
    length = int(np.ceil(len(mono) * sample_rate / rate))
    return np.pad(resampled[:length], (0, max(0, length - len(resampled))))


def split_clips(waveform: np.ndarray, sample_rate: int, clip_samples: int) -> np.ndarray:
    """Cuts a waveform into whole clips that follow one another from its start.

    A tail shorter than a clip is dropped; a waveform shorter than one clip is repeated until it
    fills it.

    Args:
        waveform: `[samples] float32`.
        sample_rate: in Hz.
        clip_samples: length of a clip.

    Returns:
        `[clips, clip_samples] float32`, at least one clip.

    Raises:
        InputError: the waveform is shorter than one second.
    """
    if len(waveform) < MIN_SECONDS * sample_rate:
        seconds = len(waveform) / sample_rate
        raise InputError(f"too short: {seconds:.2f} s of audio, need {MIN_SECONDS:g} s")
    count = len(waveform) // clip_samples
    if count == 0:
        return np.resize(waveform, (1, clip_samples))
    return waveform[: count * clip_samples].reshape(count, clip_samples)


def _mix_to_mono(samples: np.ndarray) -> np.ndarray:
    """The mean of the channels: `[samples, channels]` to `[samples]`."""
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    if channels == 2:
        # The same numbers as mean(axis=1), which is several times slower on interleaved memory.
        return (samples[:, 0] + samples[:, 1]) * np.float32(0.5)
    return samples.mean(axis=1)
