"""The class of all networks, and the layers that several of them share.

How a convolution is computed stands in `cpu_forms`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mgc_jax.models import cpu_forms


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, as PyTorch's defaults: `[..., channels]` to the same.

    Parameters and statistics are those of `nn.BatchNorm`, with which a step of DenseNet takes an
    eighth longer on the CPU. Statistics are float32, over the replicas of `axis_name`. `moments`
    are the input's own, where the caller has them.
    """

    use_running_average: bool
    axis_name: str | None = None
    dtype: jnp.dtype = jnp.float32
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x, moments: tuple[jax.Array, jax.Array] | None = None):
        """Normalises `x`, by its own moments in training, else by the running ones."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if self.use_running_average:
            moments = mean.value, var.value
        else:
            moments = batch_moments(x, self.axis_name) if moments is None else moments
            if not self.is_initializing():
                mean.value, var.value = (
                    self.momentum * old.value + (1 - self.momentum) * new
                    for old, new in zip((mean, var), moments, strict=True)
                )
        scale = scale * lax.rsqrt(moments[1] + self.epsilon)
        return (x * scale + (bias - moments[0] * scale)).astype(self.dtype)


def batch_moments(x, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over all axes but the last, and over replicas: `[channels] float32`."""
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    mean_square = jnp.square(x).mean(axes)
    if axis_name is not None:
        mean, mean_square = lax.pmean((mean, mean_square), axis_name)
    return mean, jnp.maximum(mean_square - jnp.square(mean), 0)


class Conv(nn.Module):
    """A convolution by one of `cpu_forms`, with the parameters of `nn.Conv`.

    `kernel` `[*size, channels, features]`, and `bias` `[features]` where `use_bias` is set.

    Attributes:
        features: channels of the result.
        size: of the kernel.
        form: what computes it, from the input and the kernel.
        use_bias: whether a bias is added.
        kernel_init: draws the kernel.
        dtype: that it computes in.
    """

    features: int
    size: tuple[int, ...]
    form: Callable
    use_bias: bool = False
    kernel_init: Callable = nn.initializers.he_normal()
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, **how):
        kernel = self.param("kernel", self.kernel_init, (*self.size, x.shape[-1], self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        y = self.form(x, kernel, **how)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(y.dtype)
        return y


PointConv = partial(Conv, size=(1, 1), form=cpu_forms.conv_point)
SquareConv = partial(Conv, size=(3, 3), form=cpu_forms.conv_square)
StemConv = partial(Conv, size=(7, 7), form=cpu_forms.conv_stem)
BandsConv = partial(
    Conv,
    form=cpu_forms.conv_bands,
    use_bias=True,
    kernel_init=nn.initializers.lecun_normal(),
)


def TimeConv(features: int, width: int, stride: int = 1, **kwargs) -> Conv:
    """A convolution over time without padding, with bias.

    `[batch, time, channels]` to `[batch, (time - width) // stride + 1, features]`.
    """
    form = partial(cpu_forms.conv_time, stride=stride)
    kernel_init = nn.initializers.lecun_normal()
    return Conv(features, (width,), form, use_bias=True, kernel_init=kernel_init, **kwargs)


class Network(nn.Module):
    """What every network has.

    A new network derives from this class, names its inputs, and has a `__call__` that takes them in
    this order, `[batch, ...] float32` each, and `train: bool`; it returns logits
    `[batch, num_classes] float32`, for any batch and any length in time.

    Attributes:
        inputs: names of stored features.
        clips_at_once: how many clips a CPU predicts together: as many as its caches hold the
            pictures of, or None for a whole batch.
        num_classes: number of logits.
        dtype: that the network computes in; parameters are float32.
        axis_name: of the replicas that share batch statistics, or None.
        dropout: share of the values zeroed in training, after each hidden dense layer, or before
            the classifier where there is none.
    """

    inputs: ClassVar[tuple[str, ...]] = ()
    clips_at_once: ClassVar[int | None] = None

    num_classes: int = 8
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0

    def norm(self, train: bool):
        """A batch norm for this network: `norm(train)(name="norm0")(x)`."""
        kwargs = {"dtype": self.dtype, "axis_name": self.axis_name}
        return partial(BatchNorm, use_running_average=not train, **kwargs)

    def head(self, hidden: Sequence[int]):
        """This network's dense head, with hidden layers of these widths."""
        rest = (self.num_classes, self.dtype, self.dropout, self.axis_name)
        return DenseHead(hidden, *rest, name="head")

    def classify(self, x, train: bool):
        """One dense layer: `[batch, channels]` to logits `[batch, num_classes] float32`."""
        if train and self.dropout:
            x = Dropout(self.dropout, self.axis_name, name="dropout")(x)
        x = nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x)
        return x.astype(jnp.float32)


class Dropout(nn.Module):
    """Zeroes a share `rate` of the values and scales up the rest: `[batch, ...]` to the same.

    Each clip's mask comes from the key `dropout` and the clip's place in the global batch, so that
    the number of devices does not change it.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        key = self.make_rng("dropout")
        first = 0 if self.axis_name is None else lax.axis_index(self.axis_name) * len(x)

        def keep(place):
            clip_key = jax.random.fold_in(key, place)
            return jax.random.bernoulli(clip_key, 1 - self.rate, x.shape[1:])

        return jnp.where(jax.vmap(keep)(first + jnp.arange(len(x))), x / (1 - self.rate), 0)


class DenseHead(nn.Module):
    """Dense layers with ReLU (and dropout) between them, ending in logits.

    Input `[batch, channels]`, output `[batch, num_classes] float32`.
    """

    hidden: Sequence[int]
    num_classes: int
    dtype: jnp.dtype = jnp.float32
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x))
            if train and self.dropout:
                x = Dropout(self.dropout, self.axis_name, name=f"dropout{i}")(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x).astype(
            jnp.float32
        )


def pad_time(x, size: int):
    """Zeros before and after: `[batch, time, channels]` to `[batch, time + 2 * size, channels]`.

    For a convolution without padding of its own, whose gradient is many times slower on the CPU.
    """
    return jnp.pad(x, ((0, 0), (size, size), (0, 0)))


def pool_mean_max(x):
    """Mean beside maximum over time: `[batch, time, channels]` to `[batch, 2 * channels]`."""
    return jnp.concatenate([x.mean(axis=1), x.max(axis=1)], axis=-1)
