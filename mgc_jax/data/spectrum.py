"""Windows, filters and transforms of spectrograms, in the forms of librosa.

Imports numpy alone: worker processes start with it.
"""

from typing import Any

import numpy as np


def mel_edges(sample_rate: int, n_mels: int) -> np.ndarray:
    """Where filters begin, peak and end, equally far apart on Slaney's mel scale (linear to 1 kHz,
    then logarithmic).

    Source: M. Slaney, "Auditory Toolbox", Interval Research Technical Report 1998-010; the defaults
    of `librosa.filters.mel`.

    Returns:
        `[mels + 2] float64`, from 0 Hz to half the sample rate; filter m reaches from edge m over
        its peak at edge m + 1 to edge m + 2.
    """
    linear_step = 200.0 / 3  # Hz a mel below 1 kHz
    log_step = np.log(6.4) / 27  # natural logarithm of Hz a mel above it
    knee = 1000.0 / linear_step
    top = knee + np.log(sample_rate / 2 / 1000.0) / log_step
    if sample_rate / 2 < 1000.0:
        top = sample_rate / 2 / linear_step
    mels = np.linspace(0.0, top, n_mels + 2)
    return np.where(mels < knee, mels * linear_step, 1000.0 * np.exp(log_step * (mels - knee)))


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """Triangular filters of unit area between `mel_edges`: `[mels, 1 + n_fft // 2] float32`.

    Examples:
        >>> filters = mel_filterbank(sample_rate=16000, n_fft=2048, n_mels=128)
        >>> filters.shape
        (128, 1025)
        >>> bool((filters >= 0).all())
        True
    """
    edges = mel_edges(sample_rate, n_mels)
    ramps = edges[:, None] - np.fft.rfftfreq(n_fft, 1 / sample_rate)[None, :]
    widths = np.diff(edges)[:, None]
    rising = -ramps[:-2] / widths[:-1]
    falling = ramps[2:] / widths[1:]
    weights = np.maximum(0, np.minimum(rising, falling))
    return (weights * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def hann(size: int, dtype: Any) -> np.ndarray:
    """The periodic Hann window `[size]`. (Importing scipy.signal takes half a second.)"""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(dtype)


def stft(x, n_fft: int, hop_length: int, frames: int | None = None):
    """Hann-windowed, centred frames in JAX, as librosa's.

    Args:
        x: `[..., samples]`, float32 or float64, in whose precision it computes.
        n_fft: window of a frame, in samples.
        hop_length: distance of two frames, in samples.
        frames: how many from the start on; default: all.

    Returns:
        `[..., frames, 1 + n_fft // 2]`, complex.
    """
    import jax.numpy as jnp

    starts = np.arange(0, x.shape[-1] + 1, hop_length)[:frames]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(n_fft // 2,) * 2])
    windows = padded[..., starts[:, None] + np.arange(n_fft)]
    return jnp.fft.rfft(windows * hann(n_fft, x.dtype))
