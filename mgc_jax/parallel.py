"""Data parallelism: the only place that knows replicas, pmap and hosts.

State is replicated in and out, batches are split over their first axis; no other code sees a device
axis.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mgc_jax.errors import InputError

AXIS = "replicas"


def data_parallel(function: Callable, *, donate: bool = False) -> Callable:
    """Compiles a function to run on all devices, each on its part of the batch.

    The function reduces over replicas itself, by collectives over `AXIS`, so that its results are
    equal on all.

    Args:
        function: takes a replicated tree and a tree of arrays `[batch, ...]`.
        donate: reuse the state's memory; the caller's state is gone after the call.

    Returns:
        A function of the same arguments; its batch is this host's share of the global batch.
    """
    mapped = jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
    )
    return lambda state, batch: mapped(state, _split(batch))


def replicate(tree: Any) -> Any:
    """Copies a tree to every device, as compiled functions return it (else they compile twice)."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def positions(size: int) -> jax.Array:
    """Inside a function over replicas: where its examples are in the global batch, `[size]`."""
    return jax.lax.axis_index(AXIS) * size + jnp.arange(size)


def next_example(batch: Any) -> Any:
    """Inside a function over replicas: a tree of `[batch, ...]`, each example replaced by the one
    after it in the global batch, and the last by the first."""
    replicas = jax.lax.axis_size(AXIS)
    from_next = [((i + 1) % replicas, i) for i in range(replicas)]
    first = jax.lax.ppermute(jax.tree.map(lambda x: x[:1], batch), AXIS, from_next)
    return jax.tree.map(lambda x, new: jnp.concatenate([x[1:], new]), batch, first)


def check_batch_size(batch_size: int) -> None:
    """Raises InputError unless every device gets an equal part of the global batch."""
    devices = jax.device_count()
    if batch_size % devices:
        lower = batch_size // devices * devices
        near = [str(size) for size in (lower, lower + devices) if size]
        raise InputError(
            f"config.batch_size={batch_size} does not divide by {devices} devices: "
            f"use {' or '.join(near)}"
        )


def use_compilation_cache(folder: str | os.PathLike) -> None:
    """Keeps compiled functions in a folder, or in JAX_COMPILATION_CACHE_DIR where that is set."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", os.fspath(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def describe_devices() -> str:
    """For people, such as `8 x TPU v4`."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _split(batch: Mapping[str, np.ndarray]) -> Any:
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
