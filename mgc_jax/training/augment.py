"""Augmentation of training clips: on the device, inside the compiled step, drawn anew every step.

Every clip draws from a key of its own, made of the seed, the step and the clip's position in the
global batch, so that what it gets does not depend on the number of devices, nor on where a run was
interrupted. A network with two inputs gets one draw for both. All of it works on network inputs
(`Feature.network_input`): waveforms, and log-mels scaled to [-1, 1]. What is switched off is
not in the compiled step at all.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mgc_jax import parallel
from mgc_jax.data.features import Feature, Mel
from mgc_jax.data.spectrum import hann, stft
from mgc_jax.errors import InputError
from mgc_jax.models.cpu_forms import on_cpu
from mgc_jax.training.noise import add_noise_to_mel, cut, make_noise, places

# Sets these keys apart from others that are made of the seed and the step, which is never so large.
_STREAM = 2**32 - 1
_KEYS = ("stretch", "rate", "shift", "gain", "noise", "snr", "place", "frames", "bands", "mix")


class Draw(NamedTuple):
    """What one clip gets.

    Attributes:
        rate: of time stretching, above 1 is faster; float32 scalar.
        shift: circular, earlier by so many mel frames; int32 scalar.
        gain: factor of the waveform; float32 scalar.
        noise_start: where in the noise its own begins, in mel frames; int32 scalar.
        noise_level: its root mean square over the clip's, 0 for none; float32 scalar.
        masked: what SpecAugment hides of each log-mel, by its name: `[frames, mels] bool`.
        mix: share of the clip that mixup leaves, float32 scalar in [0, 1].
    """

    rate: jax.Array
    shift: jax.Array
    gain: jax.Array
    noise_start: jax.Array
    noise_level: jax.Array
    masked: dict[str, jax.Array]
    mix: jax.Array


class Augmenter:
    """Draws and applies what the `augment` part of a config asks for."""

    def __init__(self, config: ConfigDict, features: Sequence[Feature]):
        """Checks the strengths.

        Args:
            config: as in `configs/default.py`.
            features: the network's inputs.

        Raises:
            InputError: a strength is out of its range.
        """
        self._config = config.augment
        self._seed = config.seed
        self._features = {feature.name: feature for feature in features}
        self._audio = features[0].audio
        self._mels = [feature for feature in features if isinstance(feature, Mel)]
        # Shifts are whole frames of a log-mel, and a waveform is stretched in its windows, be it
        # that the network sees the waveform alone.
        frame = Mel.from_config(config).lasting(self._audio.clip_seconds)
        self._frame = self._mels[0] if self._mels else frame
        _check(config.augment, self._mels, self._frame)

    def is_on(self) -> bool:
        """Whether clips are changed at all."""
        c = self._config
        return bool(
            c.noise_probability
            or c.stretch_probability
            or c.shift_seconds
            or c.gain_db
            or c.time_masks
            or c.mel_masks
            or c.mixup_alpha
        )

    def noise(self) -> dict[str, np.ndarray]:
        """What the noise of all clips is cut from, if there is any: to be kept on the devices."""
        if not self._config.noise_probability:
            return {}
        return make_noise(tuple(self._features.values()), self._seed)

    def __call__(
        self, batch: Mapping[str, jax.Array], step: jax.Array, noise: Mapping[str, jax.Array]
    ) -> dict[str, jax.Array]:
        """Augments one replica's part of a batch.

        Mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018) blends each
        clip with the next one in the global batch, which the shuffle has made a random one.

        Args:
            batch: the features, `[batch, *shape] float32` as the network takes them; `label`
                `[batch] int32`.
            step: of the training, int32 scalar.
            noise: of `self.noise()`.

        Returns:
            The same, augmented; with mixup also `share` `[batch] float32` of each clip in its
            blend, and `other_label` `[batch] int32` of the rest: see `soft_labels`.
        """
        if not self.is_on():
            return dict(batch)
        key = jax.random.fold_in(jax.random.key(self._seed), _STREAM)
        key = jax.random.fold_in(key, step)
        positions = parallel.positions(len(batch["label"]))
        draws = jax.vmap(self.draw)(jax.vmap(jax.random.fold_in, (None, 0))(key, positions))
        inputs = {}
        for name, feature in self._features.items():
            apply = functools.partial(self.apply, feature, noise.get(name))
            # One clip after another, a CPU leaves out what it does not get.
            over_clips = jax.lax.map if on_cpu() else lambda f, clips: jax.vmap(f)(clips)
            inputs[name] = over_clips(lambda clip, apply=apply: apply(*clip), (draws, batch[name]))
        if not self._config.mixup_alpha:
            return {**batch, **inputs}
        others = parallel.next_example({**batch, **inputs})

        def blend(x, other):
            share = draws.mix.reshape(-1, *[1] * (x.ndim - 1))
            return share * x + (1 - share) * other

        inputs = {name: blend(x, others[name]) for name, x in inputs.items()}
        return {**batch, **inputs, "share": draws.mix, "other_label": others["label"]}

    def draw(self, key: jax.Array) -> Draw:
        """Draws for one clip from its key, using no key twice."""
        c = self._config
        keys = dict(zip(_KEYS, jax.random.split(key, len(_KEYS)), strict=True))
        uniform = jax.random.uniform
        chosen = jax.random.bernoulli
        max_rate = c.stretch_max_rate if c.stretch_probability else 1.0
        log_rate = math.log(max_rate) * uniform(keys["rate"], minval=-1)
        shift = round(c.shift_seconds * self._audio.sample_rate / self._frame.hop_length)
        snr_db = uniform(keys["snr"], minval=c.noise_min_snr_db, maxval=c.noise_max_snr_db)
        masked = {}
        for mel in self._mels:
            frames = _mask(keys["frames"], c.time_masks, c.time_mask_frames, mel.frames)
            bands = _mask(keys["bands"], c.mel_masks, c.mel_mask_bands, mel.n_mels)
            masked[mel.name] = frames[:, None] | bands
        alpha = c.mixup_alpha
        starts = places(self._frame, self._frame.hop_length)
        return Draw(
            rate=jnp.where(chosen(keys["stretch"], c.stretch_probability), jnp.exp(log_rate), 1.0),
            shift=jax.random.randint(keys["shift"], (), -shift, shift + 1),
            gain=_from_db(c.gain_db * uniform(keys["gain"], minval=-1)),
            noise_start=jax.random.randint(keys["place"], (), 0, starts),
            noise_level=_from_db(-snr_db) * chosen(keys["noise"], c.noise_probability),
            masked=masked,
            mix=jax.random.beta(keys["mix"], alpha, alpha) if alpha else 1.0,
        )

    def apply(self, feature: Feature, noise: jax.Array | None, draw: Draw, x: jax.Array):
        """Applies a draw to one clip of a feature, `[*shape] float32` as the network takes it."""
        frame = self._frame
        if noise is not None:
            noise = cut(noise, draw.noise_start * frame.hop_length, feature)
        if isinstance(feature, Mel):
            return self._apply_to_mel(feature, noise, draw, x)
        return self._apply_to_waveform(noise, draw, x)

    def _apply_to_waveform(self, noise: jax.Array | None, draw: Draw, x: jax.Array) -> jax.Array:
        """Applies a draw to `[samples] float32`."""
        c = self._config
        if c.shift_seconds:
            x = jnp.roll(x, -draw.shift * self._frame.hop_length)
        if c.stretch_probability:
            n_fft = self._frame.n_fft
            x = _if(draw.rate != 1, lambda x: stretch_waveform(x, draw.rate, n_fft), x)
        if c.gain_db:
            x = x * draw.gain
        if c.noise_probability:
            scale = draw.noise_level * jnp.sqrt(jnp.mean(x**2))
            x = _if(draw.noise_level > 0, lambda x: x + noise * scale, x)
        return x

    def _apply_to_mel(
        self, mel: Mel, noise: jax.Array | None, draw: Draw, x: jax.Array
    ) -> jax.Array:
        """Applies a draw to `[frames, mels] float32` in [-1, 1].

        A gain leaves no trace in a mel that is relative to its own maximum.
        """
        c = self._config
        if c.shift_seconds:
            x = jnp.roll(x, -draw.shift * self._frame.hop_length // mel.hop_length, axis=0)
        if c.stretch_probability:
            x = _if(draw.rate != 1, lambda x: stretch_mel(x, draw.rate, mel), x)
        if c.gain_db and mel.reference == "fixed":
            x = mel.from_power(mel.to_power(x) * draw.gain**2)
        if c.noise_probability:
            level = draw.noise_level
            x = _if(level > 0, lambda x: add_noise_to_mel(x, noise, level, mel), x)
        if c.time_masks or c.mel_masks:
            x = jnp.where(draw.masked[mel.name], x.mean(), x)
        return x


def _if(condition: jax.Array, change: Callable, x: jax.Array) -> jax.Array:
    """`change(x)` or `x`; over all clips at once, both are computed."""
    return jax.lax.cond(condition, change, lambda x: x, x)


def augmented_forms(
    config: ConfigDict, feature: Feature, x: np.ndarray
) -> list[tuple[str, np.ndarray]]:
    """A clip under each augmentation that a config has on, alone and at its strongest, to look at.

    Args:
        config: as in `configs/default.py`.
        feature: what `x` is of.
        x: `[*shape] float32` as the network takes it.

    Returns:
        Names, and arrays of the same shape.
    """
    c = config.augment
    augmenter = Augmenter(config, [feature])
    if not augmenter.is_on():
        return []
    draw = jax.jit(augmenter.draw)(jax.random.key(config.seed))
    unmasked = jax.tree.map(jnp.zeros_like, draw.masked)
    plain = Draw(1.0, 0, 1.0, draw.noise_start, 0.0, unmasked, 1.0)
    forms = {}
    if c.noise_probability:
        level = _from_db(-c.noise_min_snr_db)
        forms[f"white noise, SNR {c.noise_min_snr_db:g} dB"] = plain._replace(noise_level=level)
    if c.stretch_probability:
        for rate in (c.stretch_max_rate, 1 / c.stretch_max_rate):
            forms[f"time-stretched, rate {rate:.3g}"] = plain._replace(rate=rate)
    if c.gain_db and (not isinstance(feature, Mel) or feature.reference == "fixed"):
        forms[f"gain {c.gain_db:g} dB"] = plain._replace(gain=_from_db(c.gain_db))
    if isinstance(feature, Mel) and (c.time_masks or c.mel_masks):
        forms["masks"] = plain._replace(masked=draw.masked)
    apply = jax.jit(
        functools.partial(augmenter.apply, feature, augmenter.noise().get(feature.name))
    )
    return [(name, np.asarray(apply(form, x))) for name, form in forms.items()]


def soft_labels(batch: Mapping[str, jax.Array], classes: int) -> jax.Array:
    """The labels of a batch, blended as `Augmenter` blended its inputs: `[batch, classes]
    float32`."""
    labels = jax.nn.one_hot(batch["label"], classes)
    if "share" not in batch:
        return labels
    share = batch["share"][:, None]
    return share * labels + (1 - share) * jax.nn.one_hot(batch["other_label"], classes)


def stretch_mel(x: jax.Array, rate: jax.Array, mel: Mel) -> jax.Array:
    """Plays a log-mel faster (rate above 1) or slower, its amplitudes interpolated over time.

    What runs off the end starts again from the beginning.

    Args:
        x: `[frames, mels] float32` in [-1, 1].
        rate: scalar.
        mel: how the log-mel was made.

    Returns:
        The same shape, relative to its own maximum.
    """
    amplitude = jnp.sqrt(mel.to_power(x))
    before, after, weight = _positions(len(x), rate)
    amplitude = (1 - weight) * amplitude[before] + weight * amplitude[after]
    return mel.from_power(amplitude**2)


def stretch_waveform(x: jax.Array, rate: jax.Array, n_fft: int) -> jax.Array:
    """Plays `[samples] float32` faster (rate above 1) or slower at the same pitch.

    A phase vocoder over frames a quarter of `n_fft` apart, as `librosa.effects.time_stretch`. What
    runs off the end starts again from the beginning.
    """
    hop = n_fft // 4
    spectrum = phase_vocoder(stft(x, n_fft, hop), rate)
    frames = jnp.fft.irfft(spectrum, n_fft) * hann(n_fft, np.float32)
    # Windows weigh each sample by the sum of their squares, of which the frames hold one factor.
    weight = _overlap_add(np.broadcast_to(hann(n_fft, np.float32) ** 2, frames.shape), np)
    return (_overlap_add(frames, jnp) / np.maximum(weight, 1e-9))[n_fft // 2 :][: len(x)]


def phase_vocoder(spectrum: jax.Array, rate: jax.Array) -> jax.Array:
    """Resamples a spectrum in time: magnitudes interpolated, phases advanced as between the frames
    read (D. Ellis, "A Phase Vocoder in Matlab", 2002).

    Equals `librosa.phase_vocoder` up to the last frame. Unwrapping the phases, as is done there,
    only adds full turns, so unit vectors are multiplied instead of angles added.

    Args:
        spectrum: `[frames, bins] complex64`.
        rate: scalar.

    Returns:
        The same shape; what runs off the end starts again from the first frame.
    """
    before, after, weight = _positions(len(spectrum), rate)
    # By parts, and one frame after another: on a CPU, complex magnitudes and quotients and a
    # cumulative product take ten times longer.
    magnitude = jnp.sqrt(spectrum.real**2 + spectrum.imag**2)
    inverse = 1 / jnp.where(magnitude > 0, magnitude, 1)
    unit = jnp.where(magnitude > 0, spectrum, 1)
    unit = jax.lax.complex(unit.real * inverse, unit.imag * inverse)

    def turn(phase, frames):
        return phase * unit[frames[1]] * unit[frames[0]].conj(), phase

    phase = jax.lax.scan(turn, unit[0], (before, after))[1]
    magnitude = (1 - weight) * magnitude[before] + weight * magnitude[after]
    return jax.lax.complex(magnitude * phase.real, magnitude * phase.imag)


def _overlap_add(frames, xp):
    """Sums `[frames, n_fft]`, a quarter of n_fft apart, to `[samples]`, in numpy or jax.numpy."""
    parts = xp.reshape(frames, (len(frames), 4, -1))
    return sum(xp.pad(parts[:, i], ((i, 3 - i), (0, 0))) for i in range(4)).ravel()


def _positions(frames: int, rate: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Where each frame of a stretched clip reads: the frame before, the one after, its weight."""
    position = jnp.arange(frames) * rate
    before = jnp.floor(position)
    index = before.astype(jnp.int32)
    return index % frames, (index + 1) % frames, (position - before)[:, None]


def _mask(key: jax.Array, count: int, longest: int, size: int) -> jax.Array:
    """Some stretches of 0 to `longest` places, anywhere in `[size] bool` (D. Park et al.,
    "SpecAugment", Interspeech 2019)."""
    width_key, start_key = jax.random.split(key)
    width = jax.random.randint(width_key, (count, 1), 0, longest + 1)
    start = jax.random.randint(start_key, (count, 1), 0, size - width + 1)
    places = jnp.arange(size)
    return ((places >= start) & (places < start + width)).any(axis=0)


def _from_db(db: jax.Array) -> jax.Array:
    """The ratio of amplitudes."""
    return jnp.exp(db * (math.log(10) / 20))


def _check(c: ConfigDict, mels: Sequence[Mel], frame: Mel) -> None:
    """Raises InputError for a strength out of its range; what is off is not looked at."""
    ranges = {
        "noise_probability": (0, 1),
        "stretch_probability": (0, 1),
        "gain_db": (0, math.inf),
        "shift_seconds": (0, frame.audio.clip_seconds),
        "time_masks": (0, math.inf),
        "mel_masks": (0, math.inf),
        "mixup_alpha": (0, math.inf),
    }
    if c.noise_probability:
        ranges["noise_max_snr_db"] = (c.noise_min_snr_db, math.inf)
    if c.stretch_probability:
        ranges["stretch_max_rate"] = (1, math.inf)
    for mel in mels:
        if c.time_masks:
            ranges["time_mask_frames"] = (0, mel.frames)
        if c.mel_masks:
            ranges["mel_mask_bands"] = (0, mel.n_mels)
    for name, (low, high) in ranges.items():
        if not low <= c[name] <= high:
            raise InputError(
                f"config.augment.{name}={c[name]:g} is not between {low:g} and {high:g}"
            )
    if c.stretch_probability and frame.n_fft % 4:
        raise InputError(
            f"time stretching needs a {frame.name}.n_fft that divides by 4, not {frame.n_fft}"
        )
