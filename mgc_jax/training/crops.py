"""Stretches of stored clips: a random one for each step of training, evenly spread ones to predict.

A stretch begins with a whole mel frame, so that a log-mel's and a waveform's are of the same
instants: the waveform's offset is the frame's times the hop.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mgc_jax import parallel
from mgc_jax.data.features import Feature, Mel
from mgc_jax.training.network import Network

# Sets these keys apart from others that are made of the seed and the step.
_STREAM = 2**32 - 2


def random_stretches(
    batch: Mapping[str, jax.Array], step: jax.Array, network: Network
) -> dict[str, jax.Array]:
    """One stretch of each clip of one replica's part of a batch, anywhere in it.

    A clip draws from a key of its own, made of the seed, the step and its place in the global
    batch.

    Args:
        batch: stored features `[batch, *shape]`, among others.
        step: of the training, int32 scalar.
        network: whose `features` say how long a stretch is.

    Returns:
        The same; the network's features are those of stretches, as stored.
    """
    key = jax.random.fold_in(jax.random.key(network.config.seed), _STREAM)
    key = jax.random.fold_in(key, step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, parallel.positions(len(batch["label"])))
    starts = jax.vmap(lambda key: jax.random.randint(key, (), 0, places(network)))(keys)

    def cut(name: str, feature: Feature) -> jax.Array:
        rows = _rows(starts, feature, network)
        slice_of = jax.lax.dynamic_slice_in_dim
        return jax.vmap(lambda clip, row: slice_of(clip, row, feature.shape[0]))(batch[name], rows)

    return {**batch} | {feature.name: cut(feature.name, feature) for feature in network.features}


def windows(stored: Mapping[str, jax.Array], network: Network) -> dict[str, jax.Array]:
    """`config.windows` stretches of each clip, from its start to its end at equal distances.

    Args:
        stored: the network's features, `[clips, *shape]`.
        network: whose `features` say how long a stretch is.

    Returns:
        The features, `[clips * windows, *shape]`, a clip's windows after one another.
    """
    last = places(network) - 1
    count = network.config.windows
    starts = np.linspace(0, last, count) if count > 1 else np.array([last / 2])
    found = {}
    for feature in network.features:
        clips = stored[feature.name]
        rows = _rows(np.round(starts).astype(int), feature, network).tolist()
        parts = [clips[:, row : row + feature.shape[0]] for row in rows]
        found[feature.name] = jnp.stack(parts, 1).reshape(-1, *feature.shape)
    return found


def places(network: Network) -> int:
    """At how many mel frames of a stored clip a stretch can begin."""
    frame = frame_samples(network)
    left = (
        (whole.shape[0] - part.shape[0]) * _samples(part) // frame
        for whole, part in zip(network.stored, network.features, strict=True)
    )
    return 1 + min(left)


def frame_samples(network: Network) -> int:
    """What a stretch begins at a multiple of: the hop of the network's log-mel or the config's."""
    mels = [feature for feature in network.features if isinstance(feature, Mel)]
    return mels[0].hop_length if mels else network.config.mel.hop_length


def _samples(feature: Feature) -> int:
    """Samples from one row of a feature to the next."""
    return feature.hop_length if isinstance(feature, Mel) else 1


def _rows(starts, feature: Feature, network: Network):
    """Starts in frames, as rows of a feature."""
    return starts * frame_samples(network) // _samples(feature)
