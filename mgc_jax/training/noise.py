"""White noise for augmentation: made once, and cut at a random place for each clip that gets some.

Drawing 160,000 normal numbers for a clip and transforming them takes longer than a small network's
step; two cuts of a long stretch of noise have as little in common, unless their places coincide.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.sparse

from mgc_jax.data.features import Feature, Mel
from mgc_jax.data.spectrum import hann, mel_edges, mel_filterbank

# Length of the noise, in clips.
_CLIPS = 64
# How far the phase of a bin is from the next one's in music seen through a Hann window, to add
# noise with the right spread: a steady tone would have pi, bins without relation pi / 2.
_PHASE_STEP = 2 * math.pi / 3


@functools.lru_cache(maxsize=1)
def make_noise(features: tuple[Feature, ...], seed: int) -> dict[str, np.ndarray]:
    """A long stretch of noise, in the form in which each feature takes it.

    Args:
        features: with equal clips.
        seed: of the noise.

    Returns:
        By the features' names: samples of unit power, `[samples] float16`; for log-mels what
        `add_noise_to_mel` takes, `[frames, 2, mels] float16`.
    """
    samples = _CLIPS * features[0].audio.clip_samples
    noise = np.random.default_rng(seed).standard_normal(samples, np.float32).astype(np.float16)
    return {
        feature.name: _mel_terms(noise, feature) if isinstance(feature, Mel) else noise
        for feature in features
    }


def places(feature: Feature, hop_length: int) -> int:
    """At how many places, so many samples apart, a clip's noise can be cut."""
    return (_CLIPS - 1) * feature.audio.clip_samples // hop_length + 1


def cut(noise: jax.Array, sample: jax.Array, feature: Feature) -> jax.Array:
    """A clip's noise, from a sample on: `[*shape] float32`, for log-mels `[frames, 2, mels]`."""
    start = sample // feature.hop_length if isinstance(feature, Mel) else sample
    return jax.lax.dynamic_slice_in_dim(noise, start, feature.shape[0]).astype(jnp.float32)


def add_noise_to_mel(x: jax.Array, noise: jax.Array, level: jax.Array, mel: Mel) -> jax.Array:
    """The log-mel of a noisy clip, from the clip's log-mel and the spectrum of the noise.

    With X and N the spectra of clip and noise, a band of weights F holds the power
    sum F |X + N|^2 = sum F |X|^2 + sum F |N|^2 + 2 Re sum F X* N. The clip's mel is the first sum;
    the second is computed; for the third, X is taken to be equally strong over the band, with
    phases that advance by `_PHASE_STEP`. The result is never negative (Cauchy-Schwarz), and the
    noise has its true distribution and correlation, over bands and overlapping frames.

    Args:
        x: `[frames, mels] float32` in [-1, 1].
        noise: the second sum and, for an X of unit power, half of the third: `[frames, 2, mels]`.
        level: root mean square of the noise to add, over the clip's.
        mel: how the log-mel was made.

    Returns:
        `[frames, mels] float32` in [-1, 1], relative to its own maximum.
    """
    power = mel.to_power(x)
    inside = _share_inside(mel)[:, None]
    noise_power = noise[:, 0] * inside
    cross = noise[:, 1] * np.sqrt(inside)
    # The mel's unit is unknown, but its energy is to the noise's as the clip's is. The filters are
    # triangles of unit area: times their widths, they add up to the same for every bin.
    edges = mel_edges(mel.audio.sample_rate, mel.n_mels)
    widths = (edges[2:] - edges[:-2]).astype(np.float32)
    scale = level * jnp.sqrt((power @ widths).sum() / (noise_power @ widths).sum())
    noisy = power + scale**2 * noise_power + 2 * scale * jnp.sqrt(power) * cross
    return mel.from_power(noisy)


def _mel_terms(noise: np.ndarray, mel: Mel) -> np.ndarray:
    """What `add_noise_to_mel` needs of `[samples] float16`: `[frames, 2, mels] float16`."""
    filters = mel_filterbank(mel.audio.sample_rate, mel.n_fft, mel.n_mels)
    alone = scipy.sparse.csr_array(filters)
    crossed = scipy.sparse.csr_array(
        filters / np.sqrt(np.maximum(filters.sum(axis=1, keepdims=True), 1e-9))
    )
    turn = np.exp(1j * _PHASE_STEP * np.arange(filters.shape[1])).astype(np.complex64)
    padded = np.pad(noise.astype(np.float32), mel.n_fft // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, mel.n_fft)[:: mel.hop_length]
    terms = np.empty((len(windows), 2, mel.n_mels), np.float16)
    for first in range(0, len(windows), mel.frames):
        some = slice(first, first + mel.frames)
        windowed = windows[some] * hann(mel.n_fft, np.float32)
        spectrum: Any = scipy.fft.rfft(windowed, axis=1)
        terms[some, 0] = (alone @ (spectrum.real**2 + spectrum.imag**2).T).T
        terms[some, 1] = (crossed @ (spectrum * turn).real.T).T
    return terms


def _share_inside(mel: Mel) -> np.ndarray:
    """How much of each frame's window lies in the clip, as power: `[frames] float32`."""
    samples = np.arange(mel.n_fft) - mel.n_fft // 2
    samples = samples + np.arange(mel.frames)[:, None] * mel.hop_length
    inside = (samples >= 0) & (samples < mel.audio.clip_samples)
    window = hann(mel.n_fft, np.float32) ** 2
    return inside @ window / window.sum()
