"""Checkpoints of a run: the only place that knows orbax.

checkpoints/last/   the newest whole training state, to resume from
checkpoints/best/   the variables with the lowest validation loss, to evaluate and predict with
"""

import os
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from mgc_jax.errors import InputError


class Checkpoints:
    """The two kinds of checkpoints in a workdir; as a context manager, waits for open saves."""

    def __init__(self, workdir: str | os.PathLike):
        # orbax reports a relative path only later, from a background thread.
        root = Path(workdir).absolute() / "checkpoints"
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        self._last = ocp.CheckpointManager(root / "last", options=options)
        self._best = ocp.CheckpointManager(root / "best", options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._last.close()
        self._best.close()

    @property
    def epochs_done(self) -> int:
        """Epochs that `last` holds; 0 for a fresh workdir."""
        return self._last.latest_step() or 0

    @property
    def best(self) -> dict | None:
        """`epoch` and `loss` of the best epoch so far."""
        epoch = self._best.latest_step()
        if epoch is None:
            return None
        return self._best.restore(
            epoch, args=ocp.args.Composite(score=ocp.args.JsonRestore())
        ).score

    def save_last(self, epoch: int, state: Any) -> None:
        """Saves a training state in the background."""
        self._last.save(epoch, args=ocp.args.Composite(state=ocp.args.StandardSave(_arrays(state))))

    def save_best(self, epoch: int, variables: Any, loss: float) -> None:
        """Saves variables and waits for it: `last` must not be ahead of the best that it knows."""
        score = {"epoch": epoch, "loss": loss}
        self._best.save(
            epoch,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables), score=ocp.args.JsonSave(score)
            ),
        )
        self._best.wait_until_finished()

    def restore_last(self, state: Any) -> Any:
        """Fills an initialised training state from `last`."""
        restored = self._last.restore(
            self.epochs_done,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(_targets(_arrays(state)))),
        )
        return state.replace(**restored.state)

    def restore_best(self, variables: Any) -> Any:
        """Fills variables (arrays or shapes) from `best`.

        Raises:
            InputError: no epoch was finished yet.
        """
        epoch = self._best.latest_step()
        if epoch is None:
            raise InputError(f"no checkpoint in {self._best.directory}: train first")
        args = ocp.args.Composite(variables=ocp.args.StandardRestore(_targets(variables)))
        return self._best.restore(epoch, args=args).variables


def _arrays(state: Any) -> dict:
    """The parts of a training state that change."""
    return {name: getattr(state, name) for name in ("step", "params", "batch_stats", "opt_state")}


def _targets(tree: Any) -> Any:
    """Shapes to restore into; only with a sharding does orbax compare them with the file's."""
    sharding = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: tree),
    )
