"""Checkpoints of a run: the only place that knows orbax.

checkpoints/last/   the newest whole training states, by step, to resume from
checkpoints/best/   the variables of the epoch that config.keep says, by epoch, to predict with

Of each kind the last two are kept: one that a crash has torn, or in which a bit has changed, is
passed over for the one before it. So is one that belongs to another run.
"""

import os
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mgc_jax import console, parallel, process
from mgc_jax.data.features import FEATURES
from mgc_jax.errors import InputError
from mgc_jax.files import misfit
from mgc_jax.results.files import read_config, read_data, read_genres

# What the JSON in a checkpoint holds at least.
_FORMS = {
    "progress": {"step": int},
    "score": {"epoch": int, "loss": int | float},
    "proof": {"run": str},
}
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
        # orbax reports a relative path only later, from a background thread.
        root = Path(workdir).absolute() / "checkpoints"
        self._writing = writing
        self._run = run_id(workdir)
        self._settings = _settings(workdir) if self._run else {}
        process.quiet_orbax()
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
            arrays = parallel.to_host({name: getattr(state, name) for name in _STATE})
            _save(
                self._last,
                progress["step"],
                state=ocp.args.StandardSave(arrays),
                progress=ocp.args.JsonSave(progress),
                proof=self._proof(state=arrays, progress=progress),
            )

    def save_best(self, variables: Any, score: dict) -> None:
        """Saves variables and waits for it: `last` must not be ahead of the best that it knows.

        Args:
            variables: `params` and `batch_stats`.
            score: `epoch` and `loss`.
        """
        if self._writing:
            arrays = parallel.to_host(variables)
            _save(
                self._best,
                score["epoch"],
                variables=ocp.args.StandardSave(arrays),
                score=ocp.args.JsonSave(score),
                proof=self._proof(variables=arrays, score=score),
            )
            self._best.wait_until_finished()

    def progress(self) -> dict | None:
        """The progress of the newest whole state; None in a fresh workdir."""
        restored = self._restore(self._last, progress=ocp.args.JsonRestore())
        return restored and restored.progress

    def restore_last(self, state: Any) -> tuple[Any, dict] | None:
        """Fills an initialised training state from `last`; None in a fresh workdir.

        Returns:
            The state, of NumPy arrays, and its progress.
        """
        targets = _shapes({name: getattr(state, name) for name in _STATE})
        restored = self._restore(
            self._last,
            state=ocp.args.StandardRestore(targets),
            progress=ocp.args.JsonRestore(),
        )
        return restored and (state.replace(**restored.state), restored.progress)

    def restore_best(self, variables: Any) -> tuple[Any, dict]:
        """Variables like these (arrays or shapes) from `best`, as NumPy arrays, and their score.

        Raises:
            InputError: no epoch was finished yet.
        """
        restored = self._restore(
            self._best,
            variables=ocp.args.StandardRestore(_shapes(variables)),
            score=ocp.args.JsonRestore(),
        )
        if restored is None:
            raise InputError(f"no checkpoint in {self._best.directory}: train first")
        return restored.variables, restored.score

    def _restore(self, manager: ocp.CheckpointManager, **items: Any) -> Any | None:
        """Items of the newest checkpoint that can be read; None where there is none at all.

        Raises:
            InputError: none can be read.
        """
        steps = sorted(manager.all_steps(), reverse=True)
        for step in steps:
            try:
                proof = {}
                if (manager.directory / str(step) / "proof").exists():  # not of older versions
                    proof = {"proof": ocp.args.JsonRestore()}
                restored = manager.restore(step, args=ocp.args.Composite(**items, **proof))
                _check_forms(items | proof, restored)
                if proof:
                    self._check_proof(items, restored)
                return restored
            except Exception as error:  # what orbax raises for a damaged checkpoint may be anything
                reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
                path = manager.directory / str(step)
                console.log.warning("%s is damaged and passed over (%s)", path, reason)
        if steps:
            raise InputError(
                f"no checkpoint in {manager.directory} can be read ({reason}): "
                "start again in another --workdir"
            )
        return None

    def _proof(self, **items: Any) -> ocp.args.JsonSave:
        """What is saved beside items, to tell later that they are these, and this run's."""
        checksums = {name: _checksums(item) for name, item in items.items()}
        return ocp.args.JsonSave({"run": self._run, "settings": self._settings, **checksums})

    def _check_proof(self, items: dict, restored: Any) -> None:
        """Raises ValueError for items that are not those saved, or not of this run."""
        proof = restored.proof
        if self._run and proof.get("run") != self._run:
            raise ValueError("it is of another run")
        settings = proof.get("settings", {}) if self._run else {}
        for key, value in settings.items():
            if value != self._settings.get(key):
                raise ValueError(
                    f"it was trained with {key} {value}, not {self._settings.get(key)}"
                )
        for name in items:
            if name in proof and proof[name] != _checksums(restored[name]):
                raise ValueError(f"its {name} have changed since they were saved")


def run_id(workdir: str | os.PathLike) -> str:
    """What a run calls itself in its checkpoints; empty in workdirs of older versions."""
    data = read_data(workdir)
    return data.get("run", "") if data else ""


def _settings(workdir: str | os.PathLike) -> dict[str, Any]:
    """What decides, besides the weights, what a run's network says; by the keys of its config."""
    config = read_config(workdir)
    parts = ("model", "model_overrides", "dtype", "crop_seconds", "audio", *FEATURES)
    return {key: config[key] for key in parts if key in config} | {"genres": read_genres(workdir)}


def has_best(workdir: str | os.PathLike) -> bool:
    """Whether a workdir has a checkpoint to predict with."""
    return any(Path(workdir, "checkpoints", "best").glob("*/*"))


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


def _save(manager: ocp.CheckpointManager, step: int, **items: Any) -> None:
    manager.wait_until_finished()
    if not manager.directory.exists():  # orbax would make it again, without what was there
        raise InputError(f"{manager.directory} is gone: was the workdir moved or deleted?")
    for old in manager.all_steps():
        # Only what is passed over or done again is newer; orbax would not save it a second time.
        if old >= step:
            manager.delete(old)
    manager.save(step, args=ocp.args.Composite(**items))


def _checksums(tree: Any) -> dict[str, int]:
    """CRC-32 of each array of a tree, by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(leaf)) for path, leaf in leaves
    }


def _shapes(tree: Any) -> Any:
    """What to restore: NumPy arrays of these shapes."""
    return jax.tree.map(lambda x: np.empty(x.shape, x.dtype), jax.eval_shape(lambda: tree))


def _check_forms(wanted: dict, restored: Any) -> None:
    """Raises ValueError for foreign JSON, and for arrays of other shapes, which orbax gives without
    a word."""
    for name, args in wanted.items():
        if isinstance(args, ocp.args.StandardRestore):
            jax.tree.map(_check_shape, args.item, restored[name])
        elif problem := misfit(restored[name], _FORMS[name]):
            raise ValueError(f"its {name}: {problem}")


def _check_shape(wanted: np.ndarray, found: np.ndarray) -> None:
    if wanted.shape != found.shape:
        raise ValueError(f"an array is {found.shape}, expected {wanted.shape}")
