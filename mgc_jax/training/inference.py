"""Predicting: the step that all devices run on clips, without anything that only training needs.

So a prediction does not wait for optax and the augmentation to be imported.
"""

import math
from collections.abc import Callable, Mapping

import jax

from mgc_jax import parallel
from mgc_jax.models.cpu_forms import on_cpu
from mgc_jax.models.musicnn import cut_patches
from mgc_jax.training.crops import windows
from mgc_jax.training.network import Network


def predict_step(variables: Mapping, batch: Mapping[str, jax.Array], network: Network) -> jax.Array:
    """Log-probabilities of the whole batch, on every replica: `[batch, classes] float32`."""

    def log_probs(stored):
        inputs = network.inputs(stored).values()
        return jax.nn.log_softmax(network.module.apply(variables, *inputs, train=False))

    found = over_clips(log_probs, batch, network)
    # Means over windows do not sum to one.
    return jax.nn.log_softmax(found) if network.config.crop_seconds else found


def tag_step(variables: Mapping, batch: Mapping[str, jax.Array], network: Network) -> jax.Array:
    """How far each tag holds, by itself, in [0, 1]: `[batch, tags] float32`, on every replica.

    The mean over a clip's patches; only musicnn has tags.
    """

    def activations(stored):
        patches = cut_patches(*network.inputs(stored).values())
        flat = patches.reshape(-1, *patches.shape[2:])
        logits = network.module.apply(variables, flat, train=False)
        return jax.nn.sigmoid(logits).reshape(*patches.shape[:2], -1).mean(axis=1)

    return over_clips(activations, batch, network)


def over_clips(function: Callable, batch: Mapping[str, jax.Array], network: Network) -> jax.Array:
    """A function's results for the whole batch, on every replica: `[batch, width]`.

    Of networks that see stretches of clips, the means over a clip's windows.

    Args:
        function: from stored features `[clips, ...]` to `[clips, width]`.
        batch: one replica's part of the stored features.
        network: says which features it reads, and how many clips a CPU takes at once.
    """

    def in_parts(stored):
        (size,) = {len(array) for array in stored.values()}
        clips_at_once = network.module.clips_at_once
        at_once = math.gcd(size, clips_at_once) if clips_at_once and on_cpu() else size
        if at_once == size:
            return function(stored)
        parts = jax.tree.map(lambda x: x.reshape(-1, at_once, *x.shape[1:]), stored)
        return jax.lax.map(function, parts).reshape(size, -1)  # one after another

    stored = {name: batch[name] for name in network.module.inputs}
    outputs = over_windows(in_parts, stored, network)
    return jax.lax.all_gather(outputs, parallel.AXIS, tiled=True)


def over_windows(
    function: Callable, stored: Mapping[str, jax.Array], network: Network
) -> jax.Array:
    """A function's results for clips, `[clips, width]`: of networks that see stretches of clips,
    the means over a clip's windows.

    Args:
        function: from stored features, of clips or stretches `[n, ...]`, to `[n, width]`.
        stored: the features of whole clips.
        network: says what it sees of them.
    """
    if not network.config.crop_seconds:
        return function(stored)
    outputs = function(windows(stored, network))
    return outputs.reshape(-1, network.config.windows, outputs.shape[-1]).mean(axis=1)


def compile_predict_step(network: Network) -> Callable:
    """`predict_step` over all devices, `(variables, batch) -> log_probs`; of tags, `tag_step`."""
    step = tag_step if network.tagging else predict_step
    return parallel.data_parallel(lambda variables, batch: step(variables, batch, network))
