"""Checkpoints of a run: the only place that knows orbax.

checkpoints/last/   the newest whole training states, by step, to resume from
checkpoints/best/   the variables with the lowest validation loss, by epoch, to predict with

Of each kind the last two are kept: one that a crash has torn is passed over for the one before it.
Arrays are stored as one array of bytes (Flax's msgpack): what is torn then is one read that fails,
where orbax leaves a traceback for each of many.
"""

import logging
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from msgpack import UnpackException

from mgc_jax import cli, parallel
from mgc_jax.errors import InputError

_STATE = ("step", "params", "batch_stats", "opt_state", "average")


class Checkpoints:
    """The two kinds of checkpoints in a workdir; as a context manager, waits for open saves."""

    def __init__(self, workdir: str | os.PathLike, *, writing: bool = False):
        """Opens the folders.

        Args:
            workdir: of the run.
            writing: make the folders, and clear away what a killed run left half saved; without it
                nothing is saved or changed, not even by `save_last` and `save_best`.
        """
        logging.getLogger("absl").addFilter(_is_not_orbax)
        # orbax reports a relative path only later, from a background thread.
        root = Path(workdir).absolute() / "checkpoints"
        self._writing = writing
        self._last, self._best = (_open(root / name, writing) for name in ("last", "best"))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._last.close()
        self._best.close()

    def save_last(self, state: Any, progress: dict) -> None:
        """Saves a training state and its JSON `progress` in the background.

        Only what is copied off the devices is waited for, and the save before this one.
        """
        if self._writing:
            _save(self._last, progress["step"], _changing(state), progress)

    def save_best(self, variables: Any, score: dict) -> None:
        """Saves variables and waits for it: `last` must not be ahead of the best that it knows.

        Args:
            variables: `params` and `batch_stats`.
            score: `epoch` and `loss`.
        """
        if self._writing:
            _save(self._best, score["epoch"], variables, score)
            self._best.wait_until_finished()

    def progress(self) -> dict | None:
        """The progress of the newest whole state; None in a fresh workdir."""
        restored = _restore(self._last, None)
        return restored and restored[1]

    def restore_last(self, state: Any) -> tuple[Any, dict] | None:
        """Fills an initialised training state from `last`; None in a fresh workdir.

        Returns:
            The state, of NumPy arrays, and its progress.
        """
        restored = _restore(self._last, _changing(state))
        return restored and (state.replace(**restored[0]), restored[1])

    def restore_best(self, variables: Any) -> tuple[Any, dict]:
        """Variables like these (arrays or shapes) from `best`, as NumPy arrays, and their score.

        Raises:
            InputError: no epoch was finished yet.
        """
        restored = _restore(self._best, variables)
        if restored is None:
            raise InputError(f"no checkpoint in {self._best.directory}: train first")
        return restored


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """orbax logs with a traceback what it then raises."""
    return "orbax" not in record.pathname


def _open(folder: Path, writing: bool) -> ocp.CheckpointManager:
    if writing:
        folder.mkdir(parents=True, exist_ok=True)
    me = jax.process_index()
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        create=False,
        cleanup_tmp_directories=writing,
        # Every process could do this by itself, and one does.
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=me, active_processes={me}
        ),
    )
    return ocp.CheckpointManager(folder, options=options)


def _changing(state: Any) -> dict:
    """The parts of a training state that change."""
    return {name: getattr(state, name) for name in _STATE}


def _save(manager: ocp.CheckpointManager, step: int, arrays: Any, about: dict) -> None:
    manager.wait_until_finished()
    for old in manager.all_steps():
        # Only what was passed over or is done again is not older; orbax would keep that instead.
        if old >= step:
            manager.delete(old)
    data = np.frombuffer(serialization.to_bytes(parallel.to_host(arrays)), np.uint8)
    items = {"arrays": ocp.args.StandardSave([data]), "about": ocp.args.JsonSave(about)}
    manager.save(step, args=ocp.args.Composite(**items))


def _restore(manager: ocp.CheckpointManager, like: Any | None) -> tuple[Any, dict] | None:
    """The newest checkpoint that can be read, and what was saved about it; None if there is none.

    Args:
        manager: of the folder.
        like: arrays or shapes as they were saved; None reads no arrays.

    Raises:
        InputError: none can be read.
    """
    items = {"about": ocp.args.JsonRestore()}
    if like is not None:
        items["arrays"] = ocp.args.StandardRestore()
    steps = sorted(manager.all_steps(), reverse=True)
    for step in steps:
        try:
            restored = manager.restore(step, args=ocp.args.Composite(**items))
            arrays = like and _unpack(restored.arrays[0].tobytes(), like)
            return arrays, restored.about
        except (KeyError, OSError, TypeError, ValueError, UnpackException) as error:
            # What orbax and msgpack raise for a torn checkpoint is any of these.
            reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
            path = manager.directory / str(step)
            cli.log.warning("%s is damaged and passed over (%s)", path, reason)
    if steps:
        raise InputError(
            f"no checkpoint in {manager.directory} can be read ({reason}): "
            "start again in another --workdir"
        )
    return None


def _unpack(data: bytes, like: Any) -> Any:
    """Arrays of the same tree and shapes, as NumPy arrays."""
    shapes = jax.eval_shape(lambda: like)
    arrays = serialization.from_bytes(shapes, data)
    jax.tree.map(_check_shape, shapes, arrays)
    return arrays


def _check_shape(wanted: jax.ShapeDtypeStruct, found: np.ndarray) -> None:
    if wanted.shape != found.shape:
        raise ValueError(f"an array is {found.shape}, expected {wanted.shape}")
