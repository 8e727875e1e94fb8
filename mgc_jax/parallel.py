"""Data parallelism: the only place that knows replicas, pmap and hosts.

State is replicated in and out, batches are split over their first axis; no other code sees a device
axis. Every process holds the whole state, so that process 0 alone reads and writes the workdir.
"""

import ctypes
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mgc_jax.errors import InputError
from mgc_jax.files import user_cache

AXIS = "replicas"
# Steps that may be under way before a loop waits for the oldest: enough to keep a device busy.
STEPS_IN_FLIGHT = 4
# Of malloc.h: no mappings of their own for large blocks, one arena for all threads, which grows by
# 64 MiB at least and never shrinks (M_MMAP_MAX, M_ARENA_MAX, M_TOP_PAD, M_TRIM_THRESHOLD).
_MALLOC_OPTIONS = {-4: 0, -8: 1, -2: 2**26, -1: -1}


def join_hosts() -> None:
    """Makes one job of all processes that run this command; before any device is touched.

    TPU slices and clusters such as SLURM say by themselves who takes part; elsewhere
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID do.

    Raises:
        InputError: nobody says it, or the processes do not find each other.
    """
    count, index = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=count and int(count), process_id=index and int(index)
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--multihost: the processes of this job do not meet: {reason}") from error


def is_main() -> bool:
    """Whether this is process 0, the only one that writes."""
    return jax.process_index() == 0


def data_parallel(function: Callable, *, donate: bool = False, kept: Any = None) -> Callable:
    """Compiles a function to run on all devices, each on its part of the batch.

    The function reduces over replicas itself, by collectives over `AXIS`, so that its results are
    equal on all.

    Args:
        function: takes a replicated tree and a tree of arrays `[batch, ...]`.
        donate: reuse the state's memory; the caller's state is gone after the call.
        kept: a tree that lies on all devices, equal on all hosts: the function's third argument.

    Returns:
        A function of state and batch; its batch is this host's share of the global batch. Its
        `lower` is as that of `jax.jit`.
    """
    more = () if kept is None else (replicate(kept),)
    mapped = jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(None, 0, *[None] * len(more)),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
    )

    compiled = False

    def lower(state, batch):
        return mapped.lower(state, _split(batch), *more)

    def call(state, batch):
        nonlocal compiled
        if not compiled:
            lower(state, batch).compile()
            give_memory_back()
            compiled = True
        return mapped(state, _split(batch), *more)

    call.lower = lower
    return call


def replicate(tree: Any) -> Any:
    """Copies a tree to every device, as compiled functions return it (else they compile twice)."""
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def fill(shapes: Any, blocks: Iterable[tuple[int, Any]]) -> Any:
    """Arrays on every device, filled block by block, so that a host never holds all of them.

    Args:
        shapes: a tree of `jax.ShapeDtypeStruct`, rows first.
        blocks: the row that a block begins at, and a tree of arrays `[rows of the block, ...]`.
    """
    sharding = replicate(np.zeros(())).sharding

    def put(whole, first, block):
        return jax.tree.map(
            lambda x, rows: jax.lax.dynamic_update_slice_in_dim(x, rows, first, 0), whole, block
        )

    def zeros():
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    put = jax.jit(put, donate_argnums=0, out_shardings=sharding)
    whole = jax.jit(zeros, out_shardings=sharding)()
    for first, block in blocks:
        whole = put(whole, *replicate((np.int32(first), block)))
    return whole


def device_memory() -> int:
    """Of each device, in bytes; 0 where it is the host's own, as a CPU's, or nobody says."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return int(share_text(str(min(stat.get("bytes_limit", 0) for stat in stats))))


def to_host(tree: Any) -> Any:
    """A replicated tree as NumPy arrays of its own, which no later step overwrites."""
    return jax.tree.map(np.array, jax.device_get(tree))


def host_share(rows: np.ndarray) -> np.ndarray:
    """This host's part of a global batch: `[batch]` to `[batch / hosts]`."""
    return np.split(rows, jax.process_count())[jax.process_index()]


def share_arrays(tree: Any) -> Any:
    """Process 0's arrays, on every process; the others give a tree of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def share_text(text: str) -> str:
    """Process 0's text, on every process."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(share_arrays(np.int32(len(data))))
    return share_arrays(np.resize(data, size)).tobytes().decode()


def wait_for_main(name: str) -> None:
    """Returns once all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


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


def check_batch_size(batch_size: int, parts: int = 1) -> None:
    """Raises InputError unless each device gets an equal share of each part of the global batch."""
    devices = jax.device_count()
    unit = devices * parts
    if batch_size < 1 or batch_size % unit:
        lower = batch_size // unit * unit
        near = [str(size) for size in (lower, lower + unit) if size > 0]
        pieces = f"{devices} devices"
        if parts > 1:
            pieces += f" x {parts} parts (optimizer.accumulate)"
        raise InputError(
            f"config.batch_size={batch_size} does not divide by {pieces}: use {' or '.join(near)}"
        )


def compilation_cache() -> str:
    """The folder that compiled functions are kept in."""
    return jax.config.jax_compilation_cache_dir or "memory"


def use_compilation_cache() -> None:
    """Keeps compiled functions for the next start, small ones too, in the user's own cache folder.

    They are code: none is read from a workdir, which may come from somewhere else.
    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(user_cache("jax")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def keep_memory() -> None:
    """Has glibc keep what a step frees for the next one; before any device is touched.

    Otherwise a CPU gets a train step's memory from the system anew each time, and clearing the
    pages takes up to a fifth of DenseNet's step. Predicting needs little, and gains nothing.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in _MALLOC_OPTIONS.items():
            libc.mallopt(option, value)


def give_memory_back() -> None:
    """Gives free memory back to the system: after compiling DenseNet's train step, a gigabyte."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def describe_devices() -> str:
    """For people, such as `8 x TPU v4 on 2 hosts`."""
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}{hosts}"


def _split(batch: Mapping[str, np.ndarray]) -> Any:
    devices = jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)
