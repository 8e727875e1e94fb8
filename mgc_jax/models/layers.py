"""Layers that several networks share."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp


class BatchNorm(nn.BatchNorm):
    """Batch norm with PyTorch's default momentum and epsilon, over the replicas of `axis_name`."""

    momentum: float = 0.9
    epsilon: float = 1e-5


class TimeConv(nn.Module):
    """Convolution over time: `[batch, time, channels]` to `[batch, time', features]`.

    Its parameters are those of `nn.Conv`: `kernel` `[width, channels, features]`, `bias`.
    """

    features: int
    width: int
    padding: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.width, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        x = jnp.pad(x, ((0, 0), (self.padding, self.padding), (0, 0)))
        # One product for all taps, then their sum, each shifted by its place. XLA's convolutions on
        # the CPU are several times slower.
        taps = jnp.einsum("btc,kcf->kbtf", x, kernel)
        length = x.shape[1] - self.width + 1
        return sum(taps[k, :, k : k + length] for k in range(self.width)) + bias


class DenseHead(nn.Module):
    """Dense layers with ReLU between them, ending in logits.

    Input `[batch, channels]`, output `[batch, num_classes] float32`.
    """

    hidden: Sequence[int]
    num_classes: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.hidden):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x).astype(
            jnp.float32
        )


def pool_mean_max(x):
    """Mean beside maximum over time: `[batch, time, channels]` to `[batch, 2 * channels]`."""
    return jnp.concatenate([x.mean(axis=1), x.max(axis=1)], axis=-1)
