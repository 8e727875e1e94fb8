"""Layers that several networks share."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp


class BatchNorm(nn.BatchNorm):
    """Batch norm with PyTorch's default momentum and epsilon, over the replicas of `axis_name`."""

    momentum: float = 0.9
    epsilon: float = 1e-5


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
