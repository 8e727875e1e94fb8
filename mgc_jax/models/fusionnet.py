"""FusionNet: late fusion of DenseNet-121 on the log-mel and Baseline A (1D) on the waveform.

The source does not say how its branches are pooled; this reconstruction has exactly its number of
parameters.

| layer | output | parameters |
|---|---|---|
| inputs | 128 x 513 and 160,000 | |
| densenet: DenseNet-121's layers, mean over the picture | 1024 | 6,947,584 |
| trunk: Baseline A (1D)'s convolutions, mean and max over time | 512 | 582,672 |
| concatenated | 1536 | |
| classifier | 8 | 12,296 |
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from mgc_jax.models.baseline_a_1d import WaveformTrunk
from mgc_jax.models.densenet import BLOCK_SIZES, DenseNetFeatures
from mgc_jax.models.layers import Network, pool_mean_max


class FusionNet(Network):
    """Two branches, concatenated before one dense layer."""

    inputs = ("mel", "waveform")
    clips_at_once = 2

    block_sizes: Sequence[int] = BLOCK_SIZES

    @nn.compact
    def __call__(self, mel, waveform, train: bool):
        """Both inputs to logits.

        Args:
            mel: `[batch, frames, mels] float32` in [-1, 1].
            waveform: `[batch, samples] float32` in [-1, 1].
            train: whether batch norm uses and updates batch statistics.

        Returns:
            `[batch, num_classes] float32`.
        """
        shared = {"dtype": self.dtype, "axis_name": self.axis_name}
        picture = DenseNetFeatures(block_sizes=self.block_sizes, **shared, name="densenet")
        seen = picture(mel[..., None], train)
        heard = pool_mean_max(WaveformTrunk(**shared, name="trunk")(waveform, train))
        return self.classify(jnp.concatenate([seen, heard], axis=-1), train)
