"""What is checked before a run begins, and whose a workdir is.

Nothing is written until all checks are passed: a start that failed leaves the workdir as it was.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from mgc_jax import parallel
from mgc_jax.errors import InputError, choices
from mgc_jax.files import take_lock
from mgc_jax.results import files
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.levels import as_json, is_fixed
from mgc_jax.training.network import Network, check_numbers, with_defaults
from mgc_jax.training.optimizer import learning_rate_schedule, make_optimizer
from mgc_jax.training.progress import KEEP
from mgc_jax.training.public_weights import PUBLIC_WEIGHTS

# What may change between two starts of a run.
_MAY_DIFFER = {"data_dir", "checkpoint_every_minutes", "profile", "skip_nonfinite", "device_cache"}
# Types that a network computes in.
_DTYPES = ("float32", "bfloat16", "float16")


def check_config(config: ConfigDict) -> None:
    """Raises InputError for a setting that cannot be met, before any data are made or read."""
    if config.model == "probe":
        raise InputError("config.model='probe' is not trained, but fitted by `mgc_jax probe`")
    check_numbers(config)
    parallel.check_batch_size(config.batch_size, config.optimizer.accumulate)
    if config.dtype not in _DTYPES:
        meant = {"bf16": "use bfloat16", "fp16": "use float16", "fp32": "use float32"}
        said = meant.get(config.dtype) or choices(config.dtype, _DTYPES)
        raise InputError(f"config.dtype={config.dtype!r}: {said}")
    if config.keep not in KEEP:
        raise InputError(f"config.keep={config.keep!r}: {choices(config.keep, KEEP)}")
    start = config.init_from
    if start and start not in PUBLIC_WEIGHTS and not os.path.exists(start):
        raise InputError(
            f"config.init_from={start!r}: no such file or folder, and none of the published "
            f"weights: {choices(start, PUBLIC_WEIGHTS)}"
        )
    # A network of two genres has all the fields and settings that one of any number has.
    network = Network.from_config(config, ["one", "other"])
    Augmenter(config, network.features)
    make_optimizer(config, learning_rate_schedule(config, 1), network.shapes["params"])


def check_workdir(workdir: Path, config: ConfigDict, *, new: bool) -> None:
    """Raises InputError where the workdir is another config's, or cannot be written to.

    A workdir without a checkpoint is free: a start that failed does not claim it.
    """
    if not (workdir / files.CONFIG).exists():
        if not new:
            raise InputError(f"no run in {workdir} (it has no config.json): train first")
        return
    if not os.access(workdir, os.W_OK):
        if not new and files.has_report(workdir):
            return  # its scores can be shown
        raise InputError(f"cannot write to --workdir={workdir}: permission denied")
    if not any((workdir / "checkpoints").glob("*/*")):
        return
    stored = _flatten(json.loads(with_defaults(files.read_config(workdir)).to_json()))
    wanted = _flatten(json.loads(config.to_json()))
    differing = {key for key in wanted if stored.get(key) != wanted[key]} - _MAY_DIFFER
    longer = wanted["num_epochs"] > stored.get("num_epochs", 0)
    if longer and "num_epochs" in differing:
        if wanted["optimizer.schedule"] == "constant":
            differing.remove("num_epochs")
        elif differing == {"num_epochs"}:
            raise InputError(
                f"{workdir} holds a run of {stored['num_epochs']} epochs, {wanted['num_epochs']} "
                f"are wanted: under config.optimizer.schedule={wanted['optimizer.schedule']!r} "
                "every step would have had another learning rate. Train anew in another --workdir"
            )
    if differing:
        differences = [
            f"{key} is {stored.get(key)!r} there, {wanted[key]!r} now" for key in sorted(differing)
        ]
        raise InputError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}. "
            "Give another --workdir, or the same config"
        )


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps a workdir for this process, or this job of several; the lock ends with the process.

    Raises:
        InputError: another process trains there; or, whatever was raised within, the workdir is no
            longer where it was.
    """
    problem = ""
    lock = workdir / ".lock"
    with contextlib.ExitStack() as stack:
        if parallel.is_main():
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(lock, "a+", encoding="utf-8", errors="replace"))
                if holder := take_lock(file):
                    problem = f"{workdir} is trained in by {holder}"
            except OSError as error:
                problem = f"cannot write to --workdir={workdir}: {error.strerror}"
        # On several hosts, all stop.
        shared = parallel.share_text(problem or "free")
        if shared != "free":
            raise InputError(shared)
        try:
            yield
        except Exception as error:
            if lock.exists() or not parallel.is_main():
                raise
            raise InputError(
                f"{workdir} was moved or deleted while it was trained in; the same command goes on "
                "once it is back"
            ) from error


def claim_workdir(workdir: Path, network: Network, data: Mapping[str, str]) -> None:
    """Writes config, genres, levels and data into a workdir; its run must be of these data.

    Args:
        workdir: of the run.
        network: to be trained.
        data: `ClipDataset.fingerprint` of what it is trained on.

    Raises:
        InputError: the workdir's run was trained on other genres or data, or it is read-only.
    """
    if any((workdir / "checkpoints").glob("*/*")):
        genres = files.read_genres(workdir)
        if genres != list(network.genres):
            raise InputError(
                f"{workdir} was trained on the genres {genres}, the data set now has "
                f"{list(network.genres)}"
            )
        stored = files.read_data(workdir)
        if stored is None:
            raise InputError(
                f"{workdir} was trained on records of an older version, without the tails of "
                "tracks: it predicts, but cannot go on with these. Train anew in another --workdir"
            )
        if stored["hash"] != data["hash"]:
            raise InputError(
                f"{workdir} was trained on other data: {stored['summary']} there, "
                f"{data['summary']} now. Give another --workdir, or the same records"
            )
    stored = files.read_data(workdir) or {}
    run = stored.get("run") or uuid.uuid4().hex
    try:
        files.write_config(workdir, json.loads(network.config.to_json()))
        files.write_genres(workdir, network.genres)
        fixed = {f.name: f.levels for f in network.features if is_fixed(f) and f.levels}
        files.write_levels(workdir, as_json(fixed))
        files.write_data(workdir, {**data, "run": run})
    except OSError as error:
        raise InputError(f"cannot write to --workdir={workdir}: {error.strerror}") from None


def _flatten(tree: dict, prefix: str = "") -> dict:
    """Nested dictionaries to one with dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
