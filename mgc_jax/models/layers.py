"""Layers that several networks share."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
_POSITIONS = 4  # of a strided convolution's result, computed together
_WINOGRAD_PIXELS = 512  # of the smallest picture for which its sums cost less than they save


def on_cpu() -> bool:
    """Whether to compute in the forms that suit XLA's CPU backend.

    Its 1x1 convolutions are several times slower than the same product, and its pooling windows
    slower than slices and reductions; accelerators have kernels for the plain forms. Parameters and
    results are the same either way, but for rounding.
    """
    return jax.default_backend() == "cpu"


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
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    mean, mean_square = x.mean(axes), jnp.square(x).mean(axes)
    if axis_name is not None:
        mean, mean_square = lax.pmean((mean, mean_square), axis_name)
    return mean, jnp.maximum(mean_square - jnp.square(mean), 0)


class PointConv(nn.Module):
    """1x1 convolution without bias: `[..., channels]` to `[..., features]`.

    Its parameter is that of `nn.Conv`: `kernel` `[1, 1, channels, features]`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if not on_cpu():
            return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_NHWC)
        # Flat, since the gradients of a product with many batch axes are slow.
        y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
        return y.reshape(*x.shape[:-1], self.features)


class SquareConv(nn.Module):
    """3x3 convolution, padding 1, without bias: `[batch, h, w, channels]` to
    `[batch, h, w, features]`.

    Its parameter is that of `nn.Conv`: `kernel` `[3, 3, channels, features]`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        # Winograd's form makes a train step no shorter, and costs bfloat16 digits it has not got.
        large = x.shape[1] * x.shape[2] >= _WINOGRAD_PIXELS
        if train or not large or x.dtype != jnp.float32 or not on_cpu():
            pad = ((1, 1), (1, 1))
            return lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=_NHWC)
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
        return _winograd_conv(x, kernel, axis=1)[:, :height, :width]


class StemConv(nn.Module):
    """7x7 convolution, stride 2, padding 3, without bias, over one channel.

    `[batch, h, w, 1]` to `[batch, (h+1)//2, (w+1)//2, features]`; its parameter is that of
    `nn.Conv`: `kernel` `[7, 7, 1, features]`.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.he_normal(), (7, 7, 1, self.features))
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if not on_cpu():
            pad = ((3, 3), (3, 3))
            return lax.conv_general_dilated(x, kernel, (2, 2), pad, dimension_numbers=_NHWC)
        # As a product with all 7x7 patches: XLA's gradient of this kernel takes four times longer.
        x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
        for axis in (1, 2):
            stop = x.shape[axis] - 6
            parts = [lax.slice_in_dim(x, i, i + stop, 2, axis) for i in range(7)]
            x = jnp.concatenate(parts, axis=-1)
        y = x.reshape(-1, 49) @ kernel.transpose(1, 0, 2, 3).reshape(49, -1)
        return y.reshape(*x.shape[:-1], self.features)


class TimeConv(nn.Module):
    """Convolution over time without padding, with bias: `[batch, time, channels]` to
    `[batch, (time - width) // stride + 1, features]`.

    With a stride, over one channel; else of even width. Its parameters are those of `nn.Conv`:
    `kernel` `[width, channels, features]`, `bias` `[features]`.
    """

    features: int
    width: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.width, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if not on_cpu():
            return _conv_time(x, kernel, self.stride) + bias
        if self.stride > 1:
            return _conv_wave(x, kernel, self.stride) + bias
        return _fast_conv_time(x, kernel) + bias


def _conv_time(x, kernel, stride: int):
    return lax.conv_general_dilated(
        x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )


def _conv_wave(x, kernel, stride: int):
    """What `_conv_time` gives for one channel, as a convolution over rows of a few strides.

    The rows' channels are as many positions of the result: wide products, of which few factors are
    the zeros that this adds.
    """
    width, _, features = kernel.shape
    rate, per_row = stride * _POSITIONS, _POSITIONS * features
    taps = -(-(width + rate - stride) // rate)
    taps += taps % 2
    shifts = range(0, rate, stride)
    kernel = jnp.stack(
        [jnp.pad(kernel[:, 0], ((i, taps * rate - width - i), (0, 0))) for i in shifts], 1
    )
    positions = (x.shape[1] - width) // stride + 1
    samples = (-(-positions // _POSITIONS) + taps - 1) * rate
    x = jnp.pad(x[:, :samples], ((0, 0), (0, max(0, samples - x.shape[1])), (0, 0)))
    y = _fast_conv_time(x.reshape(x.shape[0], -1, rate), kernel.reshape(taps, rate, per_row))
    return y.reshape(x.shape[0], -1, features)[:, :positions]


def _fast_conv_time(x, kernel):
    """What `_conv_time` gives with a stride of 1, for an even width, from 3/4 of the products.

    This is the fast FIR algorithm (Mou and Duhamel, "Short-length FIR filters and their use in fast
    nonrecursive filtering", 1991): of three convolutions of half the length and width, the even and
    the odd results share one.
    """
    batch, time, channels = x.shape
    width, _, features = kernel.shape
    results = time - width + 1
    half = -(-results // 2)
    x = jnp.pad(x, ((0, 0), (0, 2 * half + width - time), (0, 0)))
    x = x.reshape(batch, -1, 2, channels)
    even, odd, next_even = x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0]
    first, second = kernel[::2], kernel[1::2]
    shared = _conv_time(odd, first + second, 1)
    y_even = shared + _conv_time(even - odd, first, 1)
    y_odd = shared - _conv_time(odd - next_even, second, 1)
    y = jnp.stack([y_even, y_odd], axis=2)
    return y.reshape(batch, 2 * half, features)[:, :results]


def _winograd_conv(x, kernel, axis: int):
    """3x3 convolution of even sizes without padding, from 4/9 of the products.

    This is F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
    CVPR 2016: along each axis from `axis` on, two results from four products instead of six.
    """
    if axis == x.ndim - 1:
        return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)
    results = x.shape[axis] // 2 - 1
    x0, x1, x2, x3 = (lax.slice_in_dim(x, i, i + 2 * results - 1, 2, axis) for i in range(4))
    k0, k1, k2 = kernel
    y0, y1, y2, y3 = (
        _winograd_conv(part, taps, axis + 1)
        for part, taps in (
            (x0 - x2, k0),
            (x1 + x2, (k0 + k1 + k2) / 2),
            (x2 - x1, (k0 - k1 + k2) / 2),
            (x1 - x3, k2),
        )
    )
    y = jnp.stack([y0 + y1 + y2, y1 - y2 - y3], axis + 1)
    return y.reshape(*x.shape[:axis], 2 * results, *y.shape[axis + 2 :])


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


def max_pool_time(x, size: int):
    """Windows that do not overlap: `[batch, time, c]` to `[batch, time // size, c]`."""
    if not on_cpu():
        return nn.max_pool(x, (size,), strides=(size,))
    batch, time, channels = x.shape
    return x[:, : time // size * size].reshape(batch, -1, size, channels).max(axis=2)


def max_pool_3x3(x):
    """3x3 windows, stride 2, padding 1: `[batch, h, w, c]` to `[batch, (h+1)//2, (w+1)//2, c]`."""
    if not on_cpu():
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for axis in (1, 2):
        size = x.shape[axis]
        pad = [(0, 0)] * 4
        pad[axis] = (1, 1)
        padded = jnp.pad(x, pad, constant_values=-jnp.inf)
        parts = [lax.slice_in_dim(padded, i, i + size, 2, axis) for i in range(3)]
        x = jnp.maximum(jnp.maximum(parts[0], parts[1]), parts[2])
    return x


def avg_pool_2x2(x):
    """2x2 windows, stride 2: `[batch, h, w, c]` to `[batch, h // 2, w // 2, c]`."""
    if not on_cpu():
        return nn.avg_pool(x, (2, 2), strides=(2, 2))
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def pool_mean_max(x):
    """Mean beside maximum over time: `[batch, time, channels]` to `[batch, 2 * channels]`."""
    return jnp.concatenate([x.mean(axis=1), x.max(axis=1)], axis=-1)
