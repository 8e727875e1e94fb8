"""A probe: published networks as they are, and a small head on what they say of a track.

`mgc_jax probe` fits the head; nothing of it is trained step by step. Each network is musicnn's
trunk. Its pooled and its penultimate layer give 1706 numbers a patch, of which the head sees the
mean and the standard deviation over all patches that it is given.

| layer | output | parameters |
|---|---|---|
| trunks_0, trunks_1, ..., of one patch | 1706 a network | 777,109 a network |
| mean and deviation over patches | width = 3412 a network | |
| standardise | width | 2 x width |
| classifier, linear | classes | (width + 1) x classes |
| or classifier, a radial machine | classes | (width + classes) x support + 1 + classes |
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from mgc_jax.models.layers import Network
from mgc_jax.models.musicnn import Trunk, cut_patches

# Of the head, whose products are few: in full precision on all devices.
_EXACT = lax.Precision.HIGHEST


class Standardise(nn.Module):
    """Takes off a mean and divides by a scale: `[n, width]` to the same."""

    @nn.compact
    def __call__(self, x):
        mean = self.param("mean", nn.initializers.zeros, x.shape[-1:])
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return (x - mean) / scale


class RadialMachine(nn.Module):
    """Sums of bells around support vectors: `[n, width]` to decision values `[n, features]`.

    A bell is exp(-gamma |x - v|^2). The vectors v are the columns of `kernel` `[width, support]`.

    Attributes:
        features: decision values.
        support: vectors.
    """

    features: int
    support: int

    @nn.compact
    def __call__(self, x):
        width = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.normal(1.0), (width, self.support))
        gamma = self.param("gamma", nn.initializers.constant(1 / width), ())
        products = jnp.matmul(x, kernel, precision=_EXACT)
        squares = jnp.square(x).sum(axis=-1, keepdims=True) + jnp.square(kernel).sum(axis=0)
        bells = jnp.exp(-gamma * jnp.maximum(squares - 2 * products, 0))
        return nn.Dense(self.features, precision=_EXACT, name="coefficients")(bells)


class Probe(Network):
    """Frozen networks and a head.

    Attributes:
        networks: how many trunks there are.
        support: vectors of a radial machine; 0 for a linear head.
    """

    inputs = ("mel96",)
    clips_at_once = 1

    networks: int = 1
    support: int = 0

    def setup(self):
        """Makes the layers."""
        norm = partial(self.norm(train=False), epsilon=1e-3)
        self.trunks = [Trunk(norm, dtype=self.dtype) for _ in range(self.networks)]
        self.standardise = Standardise()
        if self.support:
            self.classifier = RadialMachine(self.num_classes, self.support)
        else:
            self.classifier = nn.Dense(self.num_classes, precision=_EXACT)

    def __call__(self, mel96, train: bool):
        """`mel96` `[batch, frames, mels] float32` to logits `[batch, classes] float32`.

        They are those of each clip by itself. `train` changes nothing.
        """
        return self.decide(self.statistics(mel96))

    def statistics(self, mel96):
        """Mean and deviation over each clip's patches: `[batch, frames, mels]` to `[batch, width]`.

        The means of all networks come first, then their deviations, divided by the number of
        patches, not by one less; float32.
        """
        patches = cut_patches(mel96)
        flat = patches.reshape(-1, *patches.shape[2:])
        layers = [layer for trunk in self.trunks for layer in trunk(flat)]
        x = jnp.concatenate(layers, axis=-1).astype(jnp.float32)
        x = x.reshape(*patches.shape[:2], -1)
        return jnp.concatenate([x.mean(axis=1), x.std(axis=1)], axis=-1)

    def decide(self, statistics):
        """Statistics of clips or of tracks, `[n, width] float32`, to logits `[n, classes]`."""
        return self.classifier(self.standardise(statistics))
