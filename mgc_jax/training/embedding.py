"""What a network has before its classifier: vectors whose angles say how alike two clips are."""

import hashlib
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mgc_jax import parallel
from mgc_jax.errors import InputError
from mgc_jax.training.inference import over_clips
from mgc_jax.training.network import Network

_LAYER = "classifier"  # the name of every network's last layer


def size_of(network: Network) -> int:
    """The number of channels that the classifier reads.

    Raises:
        InputError: the network has no layer of this name.
    """
    for path, kernel in flatten_dict(network.shapes["params"]).items():
        if path[-2:] == (_LAYER, "kernel"):
            return kernel.shape[0]
    raise InputError(
        f"config.model={network.config.model!r} has no embedding: none of its layers has the name "
        f"{_LAYER!r}"
    )


def embed_step(variables: Mapping, batch: Mapping[str, jax.Array], network: Network) -> jax.Array:
    """What the classifier reads, of the whole batch: `[batch, channels] float32`.

    Arguments are those of `inference.predict_step`.
    """
    return over_clips(lambda stored: _listen(variables, stored, network)[0], batch, network)


def answer_step(variables: Mapping, batch: Mapping[str, jax.Array], network: Network) -> jax.Array:
    """Log-probabilities, and beside them what the classifier reads: `[batch, genres + channels]`.

    Arguments are those of `inference.predict_step`.
    """

    def both(stored):
        embeddings, logits = _listen(variables, stored, network)
        return jnp.concatenate([jax.nn.log_softmax(logits), embeddings], axis=1)

    found = over_clips(both, batch, network)
    # Means over windows do not sum to one.
    genres = len(network.genres)
    return found.at[:, :genres].set(jax.nn.log_softmax(found[:, :genres]))


def _listen(
    variables: Mapping, stored: Mapping[str, jax.Array], network: Network
) -> tuple[jax.Array, jax.Array]:
    """What the classifier reads, `[clips, channels] float32`, and what it gives."""
    found = []

    def listen(call, args, kwargs, context):
        if context.module.name == _LAYER and context.method_name == "__call__":
            found.append(args[0].astype(jnp.float32))
        return call(*args, **kwargs)

    with nn.intercept_methods(listen):
        inputs = network.inputs(stored).values()
        logits = network.module.apply(variables, *inputs, train=False)
    return found[0], logits


def compile_embed_step(network: Network) -> Callable:
    """`embed_step` over all devices: `(variables, batch) -> embeddings`."""
    return parallel.data_parallel(lambda variables, batch: embed_step(variables, batch, network))


def compile_answer_step(network: Network) -> Callable:
    """`answer_step` over all devices: `(variables, batch) -> rows`."""
    return parallel.data_parallel(lambda variables, batch: answer_step(variables, batch, network))


def fingerprint(variables: Mapping) -> str:
    """A hash of the weights, by which it is known whether two embeddings can be compared."""
    digest = hashlib.sha256()
    for path, array in sorted(flatten_dict(parallel.to_host(variables)).items()):
        digest.update(repr((path, array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
