"""Convolutions and pools, each in the plain form and in one that suits XLA's CPU backend.

XLA's 1x1 convolutions on a CPU are several times slower than the same product, and its pooling
windows are slower than slices and reductions; accelerators have kernels for the plain forms.
Results are the same either way, but for rounding: tests/test_models.py compares each pair. Nothing
here has parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

_NHWC = ("NHWC", "HWIO", "NHWC")
_POSITIONS = 4  # of a strided convolution's result, computed together
_WINOGRAD_PIXELS = 512  # of the smallest picture for which its sums cost less than they save


def on_cpu() -> bool:
    """Whether to compute in the forms that suit a CPU."""
    return jax.default_backend() == "cpu"


def conv_point(x, kernel):
    """1x1: `[..., channels]`, `[1, 1, channels, features]` to `[..., features]`."""
    if not on_cpu():
        return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=_NHWC)
    # Flat, since the gradients of a product with many batch axes are slow.
    y = x.reshape(-1, x.shape[-1]) @ kernel[0, 0]
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def conv_square(x, kernel, train: bool):
    """3x3, padding 1: `[batch, h, w, channels]` to `[batch, h, w, features]`."""
    # Winograd's form makes a train step no shorter, and costs bfloat16 digits it has not got.
    large = x.shape[1] * x.shape[2] >= _WINOGRAD_PIXELS
    if train or not large or x.dtype != jnp.float32 or not on_cpu():
        return lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=_NHWC
        )
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (1, 1 + width % 2), (0, 0)))
    return _winograd_conv(x, kernel, axis=1)[:, :height, :width]


def conv_stem(x, kernel):
    """7x7, stride 2, padding 3, over one channel."""
    if not on_cpu():
        return lax.conv_general_dilated(
            x, kernel, (2, 2), ((3, 3), (3, 3)), dimension_numbers=_NHWC
        )
    # As a product with all 7x7 patches: XLA's gradient of this kernel takes four times longer.
    x = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    for axis in (1, 2):
        stop = x.shape[axis] - 6
        parts = [lax.slice_in_dim(x, i, i + stop, 2, axis) for i in range(7)]
        x = jnp.concatenate(parts, axis=-1)
    y = x.reshape(-1, 49) @ kernel.transpose(1, 0, 2, 3).reshape(49, -1)
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


def conv_time(x, kernel, stride: int):
    """Over time, no padding, for an even width or one channel.

    `[batch, time, channels]` to `[batch, (time - width) // stride + 1, features]`.
    """
    if not on_cpu():
        return _conv_time(x, kernel, stride)
    return _conv_wave(x, kernel, stride) if stride > 1 else _fast_conv_time(x, kernel)


def conv_bands(x, kernel):
    """Over time, to the same length, and over bands without padding, of one channel.

    `[batch, time, bands, 1]`, `[width, height, 1, features]` to
    `[batch, time, bands - height + 1, features]`.
    """
    return _conv_bands_by_products(x, kernel) if on_cpu() else _conv_bands(x, kernel)


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


def _conv_bands(x, kernel):
    padding = (_same(kernel), (0, 0))
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_NHWC)


def _same(kernel) -> tuple[int, int]:
    """Padding before and after, for a result as long as the input."""
    return (kernel.shape[0] - 1) // 2, kernel.shape[0] // 2


@jax.custom_vjp
def _conv_bands_by_products(x, kernel):
    """`_conv_bands`, whose gradients are products: XLA's take three times as long."""
    return _conv_bands(x, kernel)


def _conv_bands_forward(x, kernel):
    return _conv_bands(x, kernel), (x, kernel)


def _conv_bands_backward(seen, gradient):
    """Of one picture after another, whose windows fit into the caches."""
    x, kernel = seen

    def add(total, example):
        """Adds to the kernel's gradient what a picture gives; beside the sum, the picture's own."""
        picture, gradient = example
        of_picture, of_kernel = jax.vjp(_bands_product, picture, kernel)[1](gradient)
        return total + of_kernel, of_picture

    total, of_x = lax.scan(add, jnp.zeros(kernel.shape), (x, gradient))
    return of_x, total.astype(kernel.dtype)


def _bands_product(picture, kernel):
    """What `_conv_bands` gives for one picture `[time, bands, 1]`: a product with its windows."""
    width, height, _, features = kernel.shape
    time, bands, _ = picture.shape
    places = bands - height + 1
    padded = jnp.pad(picture[..., 0], (_same(kernel), (0, 0)))
    windows = jnp.stack([padded[:, band : band + places] for band in range(height)], axis=-1)
    windows = jnp.stack([windows[i : i + time] for i in range(width)], axis=2)
    y = windows.reshape(-1, width * height) @ kernel.reshape(-1, features)
    return y.reshape(time, places, features)


_conv_bands_by_products.defvjp(_conv_bands_forward, _conv_bands_backward)


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
