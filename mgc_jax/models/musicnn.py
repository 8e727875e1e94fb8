"""musicnn: Pons and Serra, "musicnn: Pre-trained convolutional neural networks for music audio
tagging", ISMIR late-breaking 2019, whose weights `mgc_jax weights` fetches.

The front end has filters as tall as timbres (most of the bands) and as long as rhythms (one band);
both find their pattern at any pitch, as only the loudest band counts. A clip is cut into patches of
187 frames (3 s), and its logits are the mean of theirs.

| layer, of one patch | output | parameters |
|---|---|---|
| input | 187 x 96 | |
| input_norm, over the whole picture | 187 x 96 | 2 |
| timbral0 7 frames x 38 bands, ReLU, timbral0_norm, maximum over bands | 187 x 204 | 54,876 + 408 |
| timbral1 7 x 67, ReLU, timbral1_norm, maximum over bands | 187 x 204 | 95,880 + 408 |
| temporal0 128 x 1, ReLU, temporal0_norm, maximum over bands | 187 x 51 | 6,579 + 102 |
| temporal1 64 x 1, the same | 187 x 51 | 3,315 + 102 |
| temporal2 32 x 1, the same | 187 x 51 | 1,683 + 102 |
| front: all these beside each other | 187 x 561 | |
| middle0 7 frames, ReLU, middle0_norm | 187 x 64 | 251,392 + 128 |
| middle1 7, ReLU, middle1_norm, plus middle0's | 187 x 64 | 28,736 + 128 |
| middle2 7, ReLU, middle2_norm, plus middle1's | 187 x 64 | 28,736 + 128 |
| front and the three of them, maximum and mean over time, channel by channel | 1506 | |
| pooled_norm, dropout | 1506 | 3,012 |
| penultimate 200, ReLU, penultimate_norm, dropout | 200 | 301,400 + 400 |
| classifier | 50 | 10,050 |
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mgc_jax.models.layers import BandsConv, Dropout, Network, pad_time

PATCH = 187  # frames


def cut_patches(mel96):
    """Cuts clips into patches that begin and end with the clip, evenly spread.

    As many as fit without an overlap: three in 10 s, with half a second between two. A shorter clip
    is one patch.

    Args:
        mel96: `[batch, frames, mels]`.

    Returns:
        `[batch, patches, 187 frames or fewer, mels]`.
    """
    frames = mel96.shape[1]
    starts = np.linspace(0, max(0, frames - PATCH), max(1, frames // PATCH)).round().astype(int)
    return jnp.stack([mel96[:, start : start + PATCH] for start in starts], axis=1)


class Trunk(nn.Module):
    """All layers but the classifier.

    Attributes:
        norm: makes a batch norm: `norm(name="norm0")(x)`.
        dropout: makes a dropout layer, or is None: `dropout(name="dropout0")(x)`.
        dtype: that it computes in.
    """

    norm: Callable
    dropout: Callable | None = None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, patches):
        """`[n, frames, mels] float32` to what is pooled, `[n, 1506]`, and what the classifier
        reads, `[n, 200]`."""
        x = self.norm(name="input_norm")(patches[..., None])
        front = [
            self._over_bands("timbral0", 204, (7, 38), x),
            self._over_bands("timbral1", 204, (7, 67), x),
            self._over_bands("temporal0", 51, (128, 1), x),
            self._over_bands("temporal1", 51, (64, 1), x),
            self._over_bands("temporal2", 51, (32, 1), x),
        ]
        layers = [jnp.concatenate(front, axis=-1)]
        for i in range(3):
            y = self._over_time(f"middle{i}", layers[-1])
            layers.append(y if i == 0 else y + layers[-1])
        x = jnp.concatenate(layers, axis=-1)
        pooled = jnp.stack([x.max(axis=1), x.mean(axis=1)], axis=-1).reshape(x.shape[0], -1)
        x = self._drop("pooled_dropout", self.norm(name="pooled_norm")(pooled))
        x = nn.relu(nn.Dense(200, dtype=self.dtype, name="penultimate")(x))
        return pooled, self.norm(name="penultimate_norm")(x)

    def _over_bands(self, name: str, features: int, size: tuple[int, int], x):
        """A filter at all places, and its maximum over bands: `[n, frames, mels, 1]` to `[n,
        frames, features]`."""
        return self._normed(name, BandsConv(features, size, dtype=self.dtype, name=name)(x)).max(2)

    def _over_time(self, name: str, x):
        """64 filters of 7 frames, to the same length: `[n, frames, channels]`."""
        x = pad_time(x, 3)
        x = nn.Conv(64, (7,), padding="VALID", dtype=self.dtype, name=name)(x)
        return self._normed(name, x)

    def _normed(self, name: str, x):
        return self.norm(name=f"{name}_norm")(nn.relu(x))

    def _drop(self, name: str, x):
        return x if self.dropout is None else self.dropout(name=name)(x)


class Musicnn(Network):
    """The trunk over all patches of a clip, and one dense layer over the mean of what it gives.

    Attributes:
        freeze_statistics: batch norm keeps its running statistics in training too, and normalises
            by them, so that fine-tuning on few clips does not spoil them.
    """

    inputs = ("mel96",)
    clips_at_once = 1

    freeze_statistics: bool = False

    @nn.compact
    def __call__(self, mel96, train: bool):
        """`mel96` `[batch, frames, mels] float32` to logits `[batch, classes] float32`."""
        patches = cut_patches(mel96)
        norm = partial(self.norm(train and not self.freeze_statistics), epsilon=1e-3)
        dropout = None
        if train and self.dropout:
            dropout = partial(Dropout, self.dropout, self.axis_name)
        trunk = Trunk(norm, dropout, self.dtype, name="trunk")
        _, x = trunk(patches.reshape(-1, *patches.shape[2:]))
        # The mean of the patches' logits, as the classifier is linear.
        return self.classify(x.reshape(*patches.shape[:2], -1).mean(axis=1), train)
