"""Baseline A (2D): the first network of Zhang et al., "Improved Music Genre Classification with
Convolutional Neural Networks", Interspeech 2016.

Every filter of the first layer sees all mel bands at once, so convolutions run over time alone.

| layer | output | parameters |
|---|---|---|
| input | 128 x 513 | |
| conv0 4 frames, norm0, ReLU | 125 x 128 | 262,784 + 256 |
| max-pool 2 | 62 x 128 | |
| conv1 4, norm1, ReLU | 59 x 128 | 65,664 + 256 |
| max-pool 2 | 29 x 128 | |
| conv2 4, norm2, ReLU | 26 x 256 | 131,328 + 512 |
| mean and max over time | 512 | |
| dense 300, ReLU, 150, ReLU, classes | 8 | 153,900 + 45,150 + 1,208 |
"""

from collections.abc import Callable

import flax.linen as nn

from mgc_jax.models.cpu_forms import max_pool_time
from mgc_jax.models.layers import Network, pool_mean_max


class BaselineA2D(Network):
    """Three convolutions over time, pooled by mean and max, and a dense head."""

    inputs = ("mel",)

    @nn.compact
    def __call__(self, mel, train: bool):
        """`mel` `[batch, frames, mels] float32` in [-1, 1] to logits `[batch, classes] float32`."""
        x = convolutions(mel, self.norm(train), self.dtype)
        return self.head((300, 150))(pool_mean_max(x), train)


def convolutions(mel, norm: Callable, dtype):
    """The three convolutions, as layers of the module that calls: `[batch, positions, 256]`."""
    x = mel
    for i, channels in enumerate((128, 128, 256)):
        x = nn.Conv(channels, (4,), padding=0, dtype=dtype, name=f"conv{i}")(x)
        x = nn.relu(norm(name=f"norm{i}")(x))
        if i < 2:
            x = max_pool_time(x, 2)
    return x
