"""Stored features of a clip: one class each, with all that the rest of the package asks of it.

A feature is a record of its settings. It says how a clip's waveform becomes what is stored, what a
network sees of that, and how to draw it. To add one, write its class, give it a line in `FEATURES`
and, for its settings, a part of its own name in `configs/default.py`.

Worker processes start with this module, so it imports numpy and scipy alone; what runs on a device
gets its arrays from there, or imports JAX when it is called. librosa is the reference that the
tests compare with.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.sparse

from mgc_jax.data.spectrum import hann, mel_filterbank, stft
from mgc_jax.errors import InputError, choices

# power_to_db's floor: silence is 1e-10, so that a silent clip is 0 dB below its own maximum
# everywhere, as in librosa.
MIN_POWER = 1e-10
# The power that is 0 dB where levels are fixed: a tone at full scale has 47 dB in the bands of the
# default, the loudest frame of a piece of music 20 to 41.
FULL_SCALE = 1e5
REFERENCES = ("max", "fixed")
# Of a log-mel's settings, those that older records and configs lack: they were made so.
ADDED = {"reference": "max"}
# Bounds of settings, beyond which memory ends before anything is heard; of those not named below.
_LARGEST = {"sample_rate": 384_000, "clip_seconds": 600, "n_fft": 65_536}
_LARGEST_OTHERS = 1_000_000
# What the powers of `Mel96` are multiplied by: a part of its definition, as its paper has it.
_MEL96_GAIN = 10_000


@dataclasses.dataclass(frozen=True)
class AudioSettings:
    """How audio becomes clips: the part `audio` of a config.

    Attributes:
        sample_rate: of the waveform, in Hz.
        clip_seconds: length of a clip, in s.
    """

    sample_rate: int
    clip_seconds: float

    def __post_init__(self):
        _check_settings("audio", self)

    @classmethod
    def from_config(cls, config: Mapping) -> "AudioSettings":
        """Reads `config.audio`; raises InputError for a missing, unknown or impossible setting."""
        return cls(**_pick("audio", config["audio"], [f.name for f in dataclasses.fields(cls)]))

    @property
    def clip_samples(self) -> int:
        """Length of a clip."""
        return round(self.clip_seconds * self.sample_rate)


class Levels(NamedTuple):
    """Mean and deviation of each band of a log-mel in [-1, 1]: `[mels] float32`."""

    mean: np.ndarray
    deviation: np.ndarray


@dataclasses.dataclass(frozen=True)
class Feature(abc.ABC):
    """What every stored feature has; its fields, but `audio` and those that are not compared, are
    its part of the config.

    Attributes:
        name: of the feature, in records, folder names and configs; without an underscore, which
            joins names.
        dtype: that is stored.
        unit: of `decode`'s values, for a colour bar.
        audio: rate and length of the clips.
    """

    name: ClassVar[str]
    dtype: ClassVar[type[np.generic]]
    unit: ClassVar[str] = ""

    audio: AudioSettings

    @classmethod
    def from_config(cls, config: Mapping) -> "Feature":
        """Reads a config's parts `audio` and, if the feature has settings, that of its name.

        Raises:
            InputError: a setting is missing, unknown or impossible.
        """
        names = _setting_names(cls)
        added = {name: ADDED[name] for name in names if name in ADDED}
        given = _pick(cls.name, {**added, **config.get(cls.name, {})}, names) if names else {}
        return cls(AudioSettings.from_config(config), **given)

    @property
    def settings(self) -> dict[str, Any]:
        """Its own settings, by name."""
        return {name: getattr(self, name) for name in _setting_names(type(self))}

    def lasting(self, seconds: float) -> "Feature":
        """The same feature of a stretch of a clip, so many seconds long."""
        return dataclasses.replace(
            self, audio=dataclasses.replace(self.audio, clip_seconds=seconds)
        )

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one clip, without the batch axis."""

    @abc.abstractmethod
    def encode(self, clip: np.ndarray, precision: type[np.floating] = np.float32) -> np.ndarray:
        """One clip `[samples] float32` to what is stored, `[*shape] dtype`, computed on the host.

        In float64 a few bytes round to their neighbours.
        """

    @abc.abstractmethod
    def encode_on_device(self, clips):
        """As `encode` for `[batch, samples] float32` in JAX: the numbers stored, as floats.

        In float64 where JAX has it enabled.
        """

    @abc.abstractmethod
    def network_input(self, stored):
        """`[batch, *shape]` as stored to float32 as a network sees it; NumPy or JAX alike."""

    @abc.abstractmethod
    def decode(self, x):
        """`[..., *shape] float32` as a network sees it to values in `unit`, to be drawn."""

    @abc.abstractmethod
    def describe(self) -> str:
        """For people."""

    @abc.abstractmethod
    def plot(self, axes, values: np.ndarray, seconds: float | None = None) -> None:
        """Draws values of `decode`, which last so many seconds (default: a clip), on axes."""


@dataclasses.dataclass(frozen=True)
class Waveform(Feature):
    """The samples, stored as int16; a network sees `[batch, samples] float32` in [-1, 1]."""

    name = "waveform"
    dtype = np.int16

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.audio.clip_samples,)

    def encode(self, clip: np.ndarray, precision: type[np.floating] = np.float32) -> np.ndarray:
        return self._round(clip, np).astype(np.int16)

    def encode_on_device(self, clips):
        import jax.numpy as jnp

        return self._round(clips, jnp)

    def network_input(self, stored):
        return stored.astype("float32") / 32768

    def decode(self, x):
        return x

    def describe(self) -> str:
        return f"waveform at {self.audio.sample_rate:,} Hz"

    def plot(self, axes, values: np.ndarray, seconds: float | None = None) -> None:
        seconds = seconds or self.audio.clip_seconds
        axes.plot(np.arange(len(values)) * (seconds / len(values)), values, linewidth=0.5)
        axes.set(xmargin=0, ylabel="amplitude")

    @staticmethod
    def _round(samples, xp):
        """Overshoot is clipped."""
        return xp.clip(xp.round(samples * 32768.0), -32768, 32767)


@dataclasses.dataclass(frozen=True)
class Mel(Feature):
    """The log-mel spectrogram, stored as uint8.

    A network sees `[batch, frames, mels] float32` in [-1, 1], linear in dB; with `levels`, each
    band less its mean and by its deviation. A mel of another compression is a subclass with its own
    `name`, `limits`, `compress` and inverses.

    Attributes:
        n_fft: window of a frame, in samples.
        hop_length: distance of two frames, in samples.
        n_mels: bands.
        frames: frames kept, counted from the start of the clip.
        top_db: range of the log-mel; it lies in [-top_db, 0] dB.
        reference: what 0 dB is: the clip's own maximum (max), or `FULL_SCALE` (fixed).
        levels: of the bands, where a network sees them standardised.
    """

    name = "mel"
    dtype = np.uint8
    unit = "dB"

    n_fft: int
    hop_length: int
    n_mels: int
    frames: int
    top_db: float
    reference: str = "max"
    levels: Levels | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        _check_settings(self.name, self)
        _check_settings(self.name, self, n_mels=self.n_fft // 2 + 1)
        if "reference" in self.settings and self.reference not in REFERENCES:
            known = choices(self.reference, REFERENCES)
            raise InputError(f"{self.name}.reference={self.reference!r}: {known}")
        available = 1 + self.audio.clip_samples // self.hop_length
        if self.frames > available:
            raise InputError(
                f"{self.name}.frames={self.frames}, but a clip of {self.audio.clip_seconds:g} s "
                f"gives {available} frames at {self.name}.hop_length={self.hop_length}: lower one "
                "of the two"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.frames, self.n_mels)

    def lasting(self, seconds: float) -> "Mel":
        audio = dataclasses.replace(self.audio, clip_seconds=seconds)
        frames = audio.clip_samples // self.hop_length
        return dataclasses.replace(self, audio=audio, frames=frames)

    @property
    def limits(self) -> tuple[float, float]:
        """The lowest and the highest value of `compress`, which become bytes 0 and 255."""
        return (-self.top_db, 0.0)

    def compress(self, power, xp):
        """Powers in mel bands to what is stored of them, here dB.

        As librosa's `power_to_db(ref=max, top_db=top_db)`; of fixed levels, with a `ref` of
        `FULL_SCALE` and cut off at both ends.

        Args:
            power: `[..., frames, mels]`, not negative.
            xp: numpy, or jax.numpy.

        Returns:
            The same shape, dB in [-top_db, 0].
        """
        power = xp.maximum(power, power.dtype.type(MIN_POWER))
        if self.reference == "max":
            db = 10 * xp.log10(power / power.max(axis=(-2, -1), keepdims=True))
        else:
            highest = power.dtype.type(FULL_SCALE)
            db = 10 * xp.log10(xp.minimum(power, highest) / highest)
        return xp.maximum(db, power.dtype.type(-self.top_db))

    def log_mel(self, clip: np.ndarray, precision: type[np.floating] = np.float32) -> np.ndarray:
        """Computes one clip's log-mel on the host.

        Equals librosa's `melspectrogram(power=2)`, first `frames` frames, `power_to_db(ref=max,
        top_db)`, transposed. In float32 it is 2e-3 dB from it at most; float64 leaves 1e-5 dB of
        rounding and takes nearly twice the time.

        Args:
            clip: `[samples] float32`.
            precision: float32 as librosa computes, or float64.

        Returns:
            `[frames, mels] float32`, values of `compress`.
        """
        padded = np.pad(clip, self.n_fft // 2)
        used = (self.frames - 1) * self.hop_length + self.n_fft
        power = self.power(padded[:used], precision)
        return self.compress(power, np).astype(np.float32, copy=False)

    def power(self, samples: np.ndarray, precision: type[np.floating] = np.float32) -> np.ndarray:
        """Powers in the mel bands of all whole windows in some samples, on the host.

        Args:
            samples: `[samples] float32`; the first window begins with them.
            precision: float32 or float64.

        Returns:
            `[frames, mels]` of that precision.
        """
        window, filters = _window_and_filters(self, precision)
        windows = np.lib.stride_tricks.sliding_window_view(samples, self.n_fft)
        windows = windows[:: self.hop_length]
        spectrum = _rfft(windows * window)
        power = spectrum.real**2 + spectrum.imag**2
        return (filters @ power.T).T

    def encode(self, clip: np.ndarray, precision: type[np.floating] = np.float32) -> np.ndarray:
        return self._to_bytes(self.log_mel(clip, precision), np).astype(np.uint8)

    def encode_on_device(self, clips):
        import jax.numpy as jnp

        clips = clips.astype(jnp.result_type(float))
        filters = mel_filterbank(self.audio.sample_rate, self.n_fft, self.n_mels)
        spectrum = stft(clips, self.n_fft, self.hop_length, self.frames)
        power = spectrum.real**2 + spectrum.imag**2
        mel = self.compress(power @ filters.T.astype(clips.dtype), jnp)
        return self._to_bytes(mel.astype(jnp.float32), jnp)

    def network_input(self, stored):
        return self._standardise(stored.astype("float32") / 255 * 2 - 1)

    def decode(self, x):
        low, high = self.limits
        if self.levels is not None:
            x = x * self.levels.deviation + self.levels.mean
        return (x - 1) * ((high - low) / 2) + high

    def to_power(self, x):
        """What a network sees, `[frames, mels]`, to power in JAX; 1 is what 0 dB is."""
        import jax.numpy as jnp

        return jnp.exp(self.decode(x) * (math.log(10) / 20)) ** 2

    def from_power(self, power):
        """Undoes `to_power`, relative to the maximum unless levels are fixed: `[frames, mels]` as a
        network sees it."""
        import jax.numpy as jnp

        floor = 10 ** (-self.top_db / 10)
        power = power / power.max() if self.reference == "max" else jnp.minimum(power, 1)
        db = 10 * jnp.log10(jnp.maximum(power, floor))
        return self._standardise(db / (self.top_db / 2) + 1)

    def describe(self) -> str:
        about = f"log-mel of {self.frames} frames x {self.n_mels} bands"
        return f"{about}, levels fixed, bands standardised" if self.levels else about

    def plot(self, axes, values: np.ndarray, seconds: float | None = None) -> None:
        """Draws `[frames, mels]` over seconds and Hz, on a mel scale."""
        from librosa import display

        if seconds is None:
            seconds = len(values) * self.hop_length / self.audio.sample_rate
        low, high = self.limits
        # The places of the frames' centres, from half a frame to half a frame before the end.
        places = (np.arange(len(values)) + 0.5) * (seconds / len(values))
        display.specshow(
            values.T,
            x_coords=places,
            x_axis="s",
            y_axis="mel",
            sr=self.audio.sample_rate,
            fmax=self.audio.sample_rate / 2,
            ax=axes,
            cmap="magma",
            vmin=low,
            vmax=high,
        )
        axes.set(xlabel="")

    def _standardise(self, x):
        if self.levels is None:
            return x
        return (x - self.levels.mean) / self.levels.deviation

    def _to_bytes(self, values, xp):
        low, high = self.limits
        return xp.round((values - low) * (255 / (high - low)))


@dataclasses.dataclass(frozen=True)
class Mel96(Mel):
    """The log-mel that musicnn hears: log10(1 + 10000 x) of the powers x, whatever their maximum.

    Source: Pons et al., "End-to-end learning for music audio tagging at scale", ISMIR 2018. It is
    stored as uint8, like the other; a network sees the logarithms, `[batch, frames, mels] float32`.

    Attributes:
        top_db: the highest value of 10 log10(1 + 10000 x), above which it is cut off; the lowest
            is 0.
    """

    name = "mel96"
    reference: ClassVar[str] = "power 1"

    @property
    def limits(self) -> tuple[float, float]:
        return (0.0, self.top_db)

    def compress(self, power, xp):
        db = 10 * xp.log10(1 + _MEL96_GAIN * power)
        return xp.minimum(db, power.dtype.type(self.top_db))

    def network_input(self, stored):
        return stored.astype("float32") * (self.top_db / 2550)

    def decode(self, x):
        return 10 * x

    def to_power(self, x):
        import jax.numpy as jnp

        return jnp.expm1(x * math.log(10)) / _MEL96_GAIN

    def from_power(self, power):
        import jax.numpy as jnp

        return self.compress(power, jnp) / 10


FEATURES = {feature.name: feature for feature in (Mel, Mel96, Waveform)}


def make_features(names: Sequence[str], config: Mapping) -> tuple[Feature, ...]:
    """The features of these names, with a config's settings.

    Raises:
        InputError: an unknown name, or a setting that is missing, unknown or impossible.
    """
    for name in names:
        if name not in FEATURES:
            raise InputError(f"no stored feature {name!r}: {choices(name, FEATURES)}")
    return tuple(FEATURES[name].from_config(config) for name in names)


def folder_name(names: Sequence[str], settings: Mapping) -> str:
    """The folder of records that hold these features; log-mels of fixed levels have one of their
    own.

    Args:
        names: of the features.
        settings: by the features' names, as in a config or of `settings_of`.

    Examples:
        >>> folder_name(["mel", "waveform"], {})
        'mel_waveform'
        >>> folder_name(["mel", "waveform"], {"mel": {"reference": "fixed"}})
        'melfixed_waveform'
    """
    fixed = {name for name in names if settings.get(name, {}).get("reference") == "fixed"}
    return "_".join(f"{name}fixed" if name in fixed else name for name in names)


def settings_of(features: Sequence[Feature]) -> dict[str, dict[str, Any]]:
    """All settings of features, by the part of the config: what is stored with records."""
    parts = {feature.name: feature.settings for feature in features if feature.settings}
    return {"audio": dataclasses.asdict(features[0].audio)} | parts


def _rfft(windows: np.ndarray) -> np.ndarray:
    """Spectra of windows `[frames, n_fft]`, which may be overwritten, in their precision.

    SciPy's is faster in float32. In float64 NumPy's gives the same numbers as fast: predicting,
    which computes in float64, need not wait 0.05 s for the import of SciPy's.
    """
    if windows.dtype == np.float64:
        return np.fft.rfft(windows, axis=1)
    from scipy.fft import rfft

    return rfft(windows, axis=1, overwrite_x=True)


@functools.cache
def _window_and_filters(
    mel: Mel, precision: type[np.floating]
) -> tuple[np.ndarray, scipy.sparse.csr_array]:
    """A log-mel's window and filterbank, made once a process."""
    filters = mel_filterbank(mel.audio.sample_rate, mel.n_fft, mel.n_mels)
    return hann(mel.n_fft, precision), scipy.sparse.csr_array(filters)


def _setting_names(feature: type[Feature]) -> list[str]:
    """The fields of a feature that are its part of a config."""
    return [f.name for f in dataclasses.fields(feature) if f.name != "audio" and f.compare]


def _pick(part: str, given: Mapping, names: Sequence[str]) -> dict[str, Any]:
    """The settings of these names; raises InputError if they are not exactly those given."""
    given = dict(given)
    if different := sorted(given.keys() ^ set(names)):
        problem = "unknown" if different[0] in given else "missing"
        raise InputError(f"the setting {part}.{different[0]} is {problem}")
    return {name: given[name] for name in names}


def _check_settings(part: str, settings: Any, **largest: float) -> None:
    """Raises InputError for a setting that is no number of its type above 0, or is too large."""
    for field in dataclasses.fields(settings):
        if field.type not in (int, float):
            continue
        value = getattr(settings, field.name)
        kind, types = ("number", int | float) if field.type is float else ("whole number", int)
        limit = (_LARGEST | largest).get(field.name, _LARGEST_OTHERS)
        fits = isinstance(value, types) and not isinstance(value, bool)
        if not (fits and 0 < value <= limit):
            raise InputError(
                f"{part}.{field.name}={value!r}: need a {kind} above 0, {limit:,} at most"
            )
