"""Fusion over time: a picture's and a waveform's positions of the same instant, side by side.

The source fuses late, after both branches have lost their time axis, and ends with the wish to
"make better use of temporal information". Here both branches keep it:

| layer | output, of A (2D) and the residual blocks |
|---|---|
| inputs | 128 x 513 and 160,000 |
| picture: the convolutions of A (2D), of B, or DenseNet's | 26 x 256 |
| sound: the trunk of A (1D), or residual blocks | 78 x 256 |
| both at the instants of the slower one, concatenated | 26 x 512 |
| join: dense, norm, ReLU, at each position | 26 x 256 |
| back: dense, added to what was concatenated | 26 x 512 |
| scores: dense, softmax over time: the attention of each head | 26 x 4 |
| each head's mean of its share of the channels, beside the maximum over time | 1,024 |
| classifier | 8 |

`back` and `scores` start at zero, so that training starts at the mean and maximum of each branch,
late fusion, and learns what the branches say of the same instant, and which instants matter.

Attention as pooling: Lin et al., "A Structured Self-attentive Sentence Embedding", ICLR 2017. The
residual blocks follow Kim et al., "Sample-level CNN Architectures for Music Auto-tagging Using Raw
Waveforms", ICASSP 2018, with fewer blocks that pool by more. `fusion="late"` pools each branch by
mean and maximum over time instead, and concatenates: what fusion over time is to be measured by.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mgc_jax.errors import InputError, choices
from mgc_jax.models import baseline_a_2d, baseline_b
from mgc_jax.models.baseline_a_1d import WaveformTrunk
from mgc_jax.models.cpu_forms import max_pool_time
from mgc_jax.models.densenet import DenseNetFeatures
from mgc_jax.models.layers import BatchNorm, Network, PointConv, TimeConv, pad_time, pool_mean_max


class Instants(NamedTuple):
    """Where a branch's positions are in its input: `first + step * position`, in frames or samples.

    They are the centres of what positions see.
    """

    first: float
    step: float

    def shares(self, positions: int, length: int) -> np.ndarray:
        """Of so many positions, as shares of an input of a length: `[positions] float64`."""
        return (self.first + self.step * np.arange(positions)) / length


def instants_of(layers: Sequence[tuple[int, int, float]]) -> Instants:
    """Of convolutions and pools after one another: (width, stride, padding before) of each.

    Examples:
        >>> instants_of([(4, 1, 0), (2, 2, 0)])
        Instants(first=2.0, step=2)
    """
    first, step = 0.0, 1
    for width, stride, padding in layers:
        first += ((width - 1) / 2 - padding) * step
        step *= stride
    return Instants(first, step)


_PICTURES = {
    "baseline_a_2d": instants_of([(4, 1, 0), (2, 2, 0), (4, 1, 0), (2, 2, 0), (4, 1, 0)]),
    # Its shortcut sees 1.5 frames on, its two padded convolutions together as well.
    "baseline_b": instants_of([(4, 1, 0), (4, 1, 2), (4, 1, 1)]),
    "densenet": instants_of([(7, 2, 3), (3, 2, 1), (2, 2, 0), (2, 2, 0), (2, 2, 0)]),
}
_SOUNDS = {
    "trunk": instants_of(
        [(964, 16, 0), (4, 4, 0)]
        + [layer for pool in (4, 2, 2, 2) for layer in ((13, 1, 6), (pool, pool, 0))]
    ),
    "residual": instants_of([(16, 8, 0), *[(4, 4, 0)] * 4]),
}
_FUSIONS = ("time", "late")


class TemporalFusion(Network):
    """Two branches joined at each position in time, and pooled by attention.

    Attributes:
        picture: the branch of the log-mel: `baseline_a_2d`, `baseline_b` or `densenet`.
        sound: the branch of the waveform: `trunk`, that of Baseline A (1D), or `residual`.
        fusion: `time`, or `late`, of the same branches.
        width: channels of `join`.
        heads: of the attention; they divide the channels of both branches among them.
    """

    inputs = ("mel", "waveform")

    picture: str = "baseline_a_2d"
    sound: str = "residual"
    fusion: str = "time"
    width: int = 256
    heads: int = 4

    @nn.compact
    def __call__(self, mel, waveform, train: bool):
        """Both inputs, which last equally long, to logits.

        Args:
            mel: `[batch, frames, mels] float32`.
            waveform: `[batch, samples] float32` in [-1, 1].
            train: whether batch norm uses and updates batch statistics.

        Returns:
            `[batch, num_classes] float32`. With `mutable="intermediates"` also `attention`
            `[batch, positions, heads]`, which sums to 1 over positions, and `instants`
            `[positions]`, shares of the clip.
        """
        shared = {"dtype": self.dtype, "axis_name": self.axis_name}
        seen = _Picture(_known(self.picture, _PICTURES), **shared, name="picture")(mel, train)
        if _known(self.sound, _SOUNDS) == "trunk":
            heard = WaveformTrunk(**shared, name="sound")(waveform, train)
        else:
            heard = ResidualTrunk(**shared, name="sound")(waveform, train)
        if _known(self.fusion, _FUSIONS) == "late":
            pooled = jnp.concatenate([pool_mean_max(seen), pool_mean_max(heard)], axis=-1)
            return self.classify(pooled, train)
        of_picture = _PICTURES[self.picture].shares(seen.shape[1], mel.shape[1])
        of_sound = _SOUNDS[self.sound].shares(heard.shape[1], waveform.shape[1])
        instants = min(of_picture, of_sound, key=len)
        x = jnp.concatenate(
            [at_instants(seen, of_picture, instants), at_instants(heard, of_sound, instants)], -1
        )
        joined = nn.Dense(self.width, dtype=self.dtype, name="join")(x)
        joined = nn.relu(self.norm(train)(name="norm")(joined))
        x += self._from_zero(x.shape[-1], name="back")(joined)
        pooled = jnp.concatenate([self._attend(x, instants), x.max(axis=1)], axis=-1)
        return self.classify(pooled, train)

    def _attend(self, x, instants: np.ndarray):
        """Each head's mean over time of its share of the channels, every so many of each branch:
        `[batch, positions, channels]` to `[batch, channels]`."""
        channels = x.shape[-1]
        if channels % self.heads:
            raise InputError(
                f"config.model_overrides: heads={self.heads} does not divide the {channels} "
                "channels of both branches"
            )
        scores = self._from_zero(self.heads, use_bias=False, name="scores")(x)
        attention = jax.nn.softmax(scores.astype(jnp.float32), axis=1)
        self.sow("intermediates", "attention", attention)
        self.sow("intermediates", "instants", jnp.asarray(instants, jnp.float32))
        parts = x.reshape(*x.shape[:2], -1, self.heads)
        pooled = jnp.einsum("bth,btch->bch", attention.astype(x.dtype), parts)
        return pooled.reshape(-1, channels)

    def _from_zero(self, features: int, **kwargs) -> nn.Dense:
        """A dense layer whose weights start at zero."""
        zeros = nn.initializers.zeros
        return nn.Dense(features, dtype=self.dtype, kernel_init=zeros, **kwargs)


class ResidualTrunk(nn.Module):
    """Residual blocks over the waveform: `[batch, samples] float32` to `[batch, positions, 256]`.

    A convolution of 16 samples, 8 apart, to 32 channels; four blocks, to 32, 64, 128 and 256, of
    two convolutions of 3 around a shortcut, and a max-pool of 4.
    """

    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, waveform, train: bool):
        """`waveform` `[batch, samples]` in [-1, 1]; `train` as for every network."""
        kwargs = {"dtype": self.dtype, "axis_name": self.axis_name}
        norm = partial(BatchNorm, use_running_average=not train, **kwargs)
        x = TimeConv(32, 16, 8, dtype=self.dtype, name="stem")(waveform[..., None])
        x = nn.relu(norm(name="norm")(x))
        for i, channels in enumerate((32, 64, 128, 256)):
            y = x
            for j in range(2):
                conv = nn.Conv(
                    channels, (3,), padding="VALID", dtype=self.dtype, name=f"block{i}_conv{j}"
                )
                y = norm(name=f"block{i}_norm{j}")(conv(pad_time(y, 1)))
                y = nn.relu(y) if j == 0 else y
            if x.shape[-1] != channels:
                shortcut = PointConv(channels, dtype=self.dtype, name=f"block{i}_shortcut")
                x = shortcut(x[:, :, None])[:, :, 0]
            x = max_pool_time(nn.relu(x + y), 4)
        return x


class _Picture(nn.Module):
    """One of `_PICTURES`: `[batch, frames, mels]` to `[batch, positions, channels]`."""

    kind: str
    dtype: jnp.dtype
    axis_name: str | None

    @nn.compact
    def __call__(self, mel, train: bool):
        shared = {"dtype": self.dtype, "axis_name": self.axis_name}
        if self.kind == "densenet":
            features = DenseNetFeatures(keeps_time=True, **shared, name="densenet")
            return features(mel[..., None], train)
        norm = partial(BatchNorm, use_running_average=not train, **shared)
        module = {"baseline_a_2d": baseline_a_2d, "baseline_b": baseline_b}[self.kind]
        return module.convolutions(mel, norm, self.dtype)


def at_instants(x, own: np.ndarray, wanted: np.ndarray):
    """A branch at other instants: each the mean of its positions nearby, by how near they are.

    Weights fall linearly to 0 over one step of the coarser of the two, so that a finer branch is
    averaged and a coarser one interpolated; beyond its ends, a branch stays as it is there.

    Args:
        x: `[batch, positions, channels]`.
        own: `[positions]`, the branch's instants, rising.
        wanted: `[count]`, likewise.

    Returns:
        `[batch, count, channels]`.
    """
    steps = [np.diff(instants).max(initial=0.0) for instants in (own, wanted)]
    apart = np.abs(np.clip(wanted, own[0], own[-1])[:, None] - own)
    weights = np.maximum(1 - apart / max(*steps, 1e-9), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return jnp.einsum("ts,bsc->btc", jnp.asarray(weights, x.dtype), x)


def _known(name: str, names: Iterable[str]) -> str:
    """The name; raises InputError where it is none of these."""
    if name not in names:
        raise InputError(f"config.model_overrides: {name!r}: {choices(name, names)}")
    return name
