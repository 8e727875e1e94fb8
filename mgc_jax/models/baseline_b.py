"""Baseline B: the second network of Zhang et al., "Improved Music Genre Classification with
Convolutional Neural Networks", Interspeech 2016: a residual connection around two convolutions.

| layer | output | parameters |
|---|---|---|
| input | 128 x 513 | |
| conv0 4 frames, norm0, ReLU = a | 125 x 256 | 525,568 + 512 |
| conv1 4, padding 2, norm1, ReLU | 126 x 256 | 262,400 + 512 |
| conv2 4, padding 1, norm2 = c | 125 x 256 | 262,400 + 512 |
| ReLU(a + c) | 125 x 256 | |
| mean and max over time | 512 | |
| dense 300, ReLU, 150, ReLU, classes | 8 | 153,900 + 45,150 + 1,208 |
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from mgc_jax.models.layers import Network, TimeConv, pad_time, pool_mean_max


class BaselineB(Network):
    """A residual block over time, pooled by mean and max, and a dense head."""

    inputs = ("mel",)

    @nn.compact
    def __call__(self, mel, train: bool):
        """`mel` `[batch, frames, mels] float32` in [-1, 1] to logits `[batch, classes] float32`."""
        x = convolutions(mel, self.norm(train), self.dtype)
        return self.head((300, 150))(pool_mean_max(x), train)


def convolutions(mel, norm: Callable, dtype):
    """The residual block, as layers of the module that calls: `[batch, positions, 256]`."""
    conv = partial(TimeConv, 256, 4, dtype=dtype)
    a = nn.relu(norm(name="norm0")(conv(name="conv0")(mel)))
    c = nn.relu(norm(name="norm1")(conv(name="conv1")(pad_time(a, 2))))
    c = norm(name="norm2")(conv(name="conv2")(pad_time(c, 1)))
    return nn.relu(a + c)
