"""Clips to log-mel pictures, their compact storage form, and back to network inputs on the device.

The host side is numpy and scipy only (worker processes start with it); the device side uses nothing
but array operators, so the same function serves numpy and JAX arrays. librosa is the reference that
the tests compare with.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.fft
import scipy.sparse

from mgc_jax.errors import InputError

# power_to_db's floor: silence is 1e-10, so that a silent clip is 0 dB below its own maximum
# everywhere, as in librosa.
MIN_POWER = 1e-10


@dataclasses.dataclass(frozen=True)
class ClipSettings:
    """How audio becomes clips and pictures; stored with the data and with every run.

    Attributes:
        sample_rate: of the waveform, in Hz.
        clip_seconds: length of a clip, in s.
        n_fft: window of a frame, in samples.
        hop_length: distance of two frames, in samples.
        n_mels: bands.
        frames: frames kept, counted from the start of the clip.
        top_db: range of the log-mel; it lies in [-top_db, 0] dB.
    """

    sample_rate: int
    clip_seconds: float
    n_fft: int
    hop_length: int
    n_mels: int
    frames: int
    top_db: float

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"{name}={value!r}: need a number above 0")
        available = 1 + self.clip_samples // self.hop_length
        if not 0 < self.frames <= available:
            raise InputError(
                f"mel.frames={self.frames}, but a clip of {self.clip_seconds:g} s gives "
                f"{available} frames at mel.hop_length={self.hop_length}: lower one of the two"
            )

    @classmethod
    def from_config(cls, config: Mapping) -> "ClipSettings":
        """Picks the settings out of a config's `audio` and `mel` parts.

        Raises:
            InputError: a setting is missing, unknown or impossible.
        """
        given = {**config["audio"], **config["mel"]}
        names = {field.name for field in dataclasses.fields(cls)}
        if different := sorted(given.keys() ^ names):
            problem = "unknown" if different[0] in given else "missing"
            raise InputError(f"the setting {different[0]} of audio or mel is {problem}")
        return cls(**given)

    @property
    def clip_samples(self) -> int:
        return round(self.clip_seconds * self.sample_rate)

    def shape(self, feature: str) -> tuple[int, ...]:
        """The shape of one clip's `mel` or `waveform`, without the batch axis."""
        return {"mel": (self.frames, self.n_mels), "waveform": (self.clip_samples,)}[feature]


class LogMel:
    """Log-mel of clips, with window and filterbank made once."""

    def __init__(self, settings: ClipSettings, dtype: type[np.floating] = np.float32):
        """Computes in a type: float32 as librosa does, float64 for less rounding."""
        self._settings, self._dtype = settings, dtype
        # Periodic Hann. (Importing scipy.signal takes half a second.)
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(settings.n_fft) / settings.n_fft)
        self.window = hann.astype(dtype)
        self.filterbank = scipy.sparse.csr_array(
            mel_filterbank(settings.sample_rate, settings.n_fft, settings.n_mels)
        )

    def __call__(self, clip: np.ndarray) -> np.ndarray:
        """Computes one clip's log-mel.

        Equals librosa's `melspectrogram(power=2)`, first `frames` frames, `power_to_db(ref=max,
        top_db)`, transposed. In float32 it is 2e-3 dB from it at most; float64 leaves 1e-5 dB of
        rounding and takes nearly twice the time.

        Args:
            clip: `[samples] float32`.

        Returns:
            `[frames, mels] float32`, dB in [-top_db, 0], relative to the clip's own maximum.
        """
        s = self._settings
        padded = np.pad(clip, s.n_fft // 2)
        windows = np.lib.stride_tricks.sliding_window_view(padded, s.n_fft)[:: s.hop_length]
        windows = windows[: s.frames]
        spectrum = scipy.fft.rfft(windows * self.window, axis=1, overwrite_x=True)
        power = spectrum.real**2 + spectrum.imag**2
        mel = np.maximum((self.filterbank @ power.T).T, self._dtype(MIN_POWER))
        db = np.maximum(10 * np.log10(mel / mel.max()), self._dtype(-s.top_db))
        return db.astype(np.float32, copy=False)


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
    """Triangular filters of unit area between `mel_edges`: `[mels, 1 + n_fft // 2] float32`."""
    edges = mel_edges(sample_rate, n_mels)
    ramps = edges[:, None] - np.fft.rfftfreq(n_fft, 1 / sample_rate)[None, :]
    widths = np.diff(edges)[:, None]
    rising = -ramps[:-2] / widths[:-1]
    falling = ramps[2:] / widths[1:]
    weights = np.maximum(0, np.minimum(rising, falling))
    return (weights * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def encode_mel(db: np.ndarray, top_db: float) -> np.ndarray:
    """Log-mel to its storage form: `[...] float32`, dB in [-top_db, 0], to `[...] uint8`."""
    return np.round((db + top_db) * (255 / top_db)).astype(np.uint8)


def encode_waveform(waveform: np.ndarray) -> np.ndarray:
    """Samples to their storage form, clipping overshoot: `[...] float32` to `[...] int16`."""
    return np.clip(np.round(waveform * 32768.0), -32768, 32767).astype(np.int16)


def to_network_input(feature: str, stored):
    """Storage form to what a network sees; numpy or JAX arrays alike.

    Args:
        feature: `mel` or `waveform`.
        stored: `[batch, frames, mels] uint8` or `[batch, samples] int16`.

    Returns:
        The same shape, float32, in [-1, 1].
    """
    if feature == "mel":
        return stored.astype("float32") / 255 * 2 - 1
    return stored.astype("float32") / 32768


def mel_to_db(x, top_db: float):
    """Undoes `to_network_input` of a mel: `[...] float32` in [-1, 1] to dB in [-top_db, 0], at most
    `top_db / 510` off what was stored."""
    return (x - 1) * (top_db / 2)
