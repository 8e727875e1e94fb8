"""DenseNet-121 on a one-channel picture: Huang et al., "Densely Connected Convolutional Networks",
CVPR 2017.

Layers, their order and their names are torchvision's `densenet121`, so that its weights convert one
for one.

| layer | output | parameters |
|---|---|---|
| input | 128 x 513 x 1 | |
| conv0 7x7 stride 2, norm0, ReLU | 64 x 257 x 64 | 3,136 + 128 |
| pool0: max-pool 3x3 stride 2 | 32 x 129 x 64 | |
| denseblock1, 6 layers | 32 x 129 x 256 | 335,040 |
| transition1 | 16 x 64 x 128 | 33,280 |
| denseblock2, 12 layers | 16 x 64 x 512 | 919,680 |
| transition2 | 8 x 32 x 256 | 132,096 |
| denseblock3, 24 layers | 8 x 32 x 1024 | 2,837,760 |
| transition3 | 4 x 16 x 512 | 526,336 |
| denseblock4, 16 layers | 4 x 16 x 1024 | 2,158,080 |
| norm5, ReLU, mean over the picture | 1024 | 2,048 |
| classifier | 8 | 8,200 |

A dense layer is norm1, ReLU, conv1 1x1 to 4 x growth, norm2, ReLU, conv2 3x3 to growth,
concatenated to its input; a transition is norm, ReLU, conv 1x1 to half the channels, 2x2 mean-pool.
No convolution has a bias.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mgc_jax.models.cpu_forms import avg_pool_2x2, max_pool_3x3
from mgc_jax.models.layers import (
    BatchNorm,
    Network,
    PointConv,
    SquareConv,
    StemConv,
    batch_moments,
)

BLOCK_SIZES = (6, 12, 24, 16)  # layers in each block of DenseNet-121


class DenseLayer(nn.Module):
    """What a layer adds: `[batch, height, width, c]` to `[batch, height, width, growth_rate]`."""

    growth_rate: int
    bn_size: int
    dtype: jnp.dtype
    norm: Any

    @nn.compact
    def __call__(self, x, moments):
        y = nn.relu(self.norm(name="norm1")(x, moments))
        y = PointConv(self.bn_size * self.growth_rate, dtype=self.dtype, name="conv1")(y)
        y = nn.relu(self.norm(name="norm2")(y))
        return SquareConv(self.growth_rate, dtype=self.dtype, name="conv2")(
            y, train=moments is not None
        )


class Transition(nn.Module):
    """Halves height, width and channels."""

    dtype: jnp.dtype
    norm: Any

    @nn.compact
    def __call__(self, x, moments):
        x = nn.relu(self.norm(name="norm")(x, moments))
        # A mean and a 1x1 convolution commute; in this order the products are a quarter as many.
        return PointConv(x.shape[-1] // 2, dtype=self.dtype, name="conv")(avg_pool_2x2(x))


class DenseNetFeatures(nn.Module):
    """DenseNet without its classifier: `[batch, height, width, 1]` to `[batch, channels]`; where it
    keeps time, to `[batch, height // 32, channels]` (with four blocks)."""

    growth_rate: int = 32
    block_sizes: Sequence[int] = BLOCK_SIZES
    bn_size: int = 4
    initial_features: int = 64
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None
    keeps_time: bool = False

    @nn.compact
    def __call__(self, x, train: bool):
        """`x` `[batch, height, width, 1]` in [-1, 1]; `train` as for every network."""
        norm = partial(
            BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name
        )
        x = StemConv(self.initial_features, dtype=self.dtype, name="conv0")(x)
        x = nn.relu(norm(name="norm0")(x))
        x = max_pool_3x3(x)
        layer = partial(DenseLayer, self.growth_rate, self.bn_size, self.dtype, norm)
        moments_of = partial(batch_moments, axis_name=self.axis_name)
        for i, size in enumerate(self.block_sizes, start=1):
            # Once for each channel, whatever the number of layers that read it.
            moments = moments_of(x) if train else None
            for j in range(1, size + 1):
                y = layer(name=f"denseblock{i}_denselayer{j}")(x, moments)
                new_moments = moments_of(y) if train else None
                x = jnp.concatenate([x, y], axis=-1)
                if train:
                    # Mean and variance of the concatenation are those of its parts.
                    pairs = zip(moments, new_moments, strict=True)
                    moments = tuple(jnp.concatenate(pair, axis=-1) for pair in pairs)
            if i < len(self.block_sizes):
                x = Transition(self.dtype, norm, name=f"transition{i}")(x, moments)
        x = nn.relu(norm(name="norm5")(x, moments))
        return x.mean(axis=2 if self.keeps_time else (1, 2))


class DenseNet121(Network):
    """DenseNet-121 over the log-mel as a one-channel picture."""

    inputs = ("mel",)
    clips_at_once = 2

    growth_rate: int = 32
    block_sizes: Sequence[int] = BLOCK_SIZES
    bn_size: int = 4
    initial_features: int = 64

    @nn.compact
    def __call__(self, mel, train: bool):
        """`mel` `[batch, frames, mels] float32` in [-1, 1] to logits `[batch, classes] float32`."""
        x = DenseNetFeatures(
            self.growth_rate,
            self.block_sizes,
            self.bn_size,
            self.initial_features,
            self.dtype,
            self.axis_name,
            name="features",
        )(mel[..., None], train)
        return self.classify(x, train)
