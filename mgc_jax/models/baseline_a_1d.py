"""Baseline A (1D), on the waveform. The source does not spell its layers out: this is a
reconstruction with exactly its number of parameters; strides and pools are our choice.

| layer | output | parameters |
|---|---|---|
| input | 160,000 x 1 | |
| conv0 964 samples (60 ms), stride 16, norm0, ReLU | 9,940 x 16 | 15,440 + 32 |
| max-pool 4 | 2,485 x 16 | |
| conv1 13, padding 6, norm1, ReLU, max-pool 4 | 621 x 32 | 6,688 + 64 |
| conv2 13, padding 6, norm2, ReLU, max-pool 2 | 310 x 64 | 26,688 + 128 |
| conv3 13, padding 6, norm3, ReLU, max-pool 2 | 155 x 128 | 106,624 + 256 |
| conv4 13, padding 6, norm4, ReLU, max-pool 2 | 77 x 256 | 426,240 + 512 |
| mean over time | 256 | |
| dense 150, ReLU, 150, ReLU, classes | 8 | 38,550 + 22,650 + 1,208 |
"""

import flax.linen as nn
import jax.numpy as jnp

from mgc_jax.models.cpu_forms import max_pool_time
from mgc_jax.models.layers import BatchNorm, Network, TimeConv, pad_time

# Channels and max-pool.
_LAYERS = ((16, 4), (32, 4), (64, 2), (128, 2), (256, 2))


class WaveformTrunk(nn.Module):
    """The five convolutions: `[batch, samples] float32` to `[batch, positions, 256]`."""

    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, waveform, train: bool):
        x = waveform[..., None]
        for i, (channels, pool) in enumerate(_LAYERS):
            if i == 0:
                x = TimeConv(channels, 964, 16, dtype=self.dtype, name="conv0")(x)
            else:
                conv = nn.Conv(channels, (13,), padding="VALID", dtype=self.dtype, name=f"conv{i}")
                x = conv(pad_time(x, 6))
            norm = BatchNorm(not train, axis_name=self.axis_name, dtype=self.dtype, name=f"norm{i}")
            x = max_pool_time(nn.relu(norm(x)), pool)
        return x


class BaselineA1D(Network):
    """Five convolutions over the waveform, pooled by the mean, and a dense head."""

    inputs = ("waveform",)

    @nn.compact
    def __call__(self, waveform, train: bool):
        """`waveform` `[batch, samples] float32` in [-1, 1] to logits `[batch, classes] float32`."""
        x = WaveformTrunk(self.dtype, self.axis_name, name="trunk")(waveform, train)
        return self.head((150, 150))(x.mean(axis=1), train)
