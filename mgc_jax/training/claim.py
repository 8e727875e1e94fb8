"""What is checked before a run begins, and whose a workdir is.

Nothing is written until all checks are passed: a start that failed leaves the workdir as it was.
"""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from mgc_jax import parallel
from mgc_jax.errors import InputError, choices
from mgc_jax.results import files
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.network import Network, with_defaults
from mgc_jax.training.optimizer import learning_rate_schedule, make_optimizer

# What may change between two starts of a run.
_MAY_DIFFER = {"data_dir", "checkpoint_every_minutes", "profile", "skip_nonfinite"}
# Types that a network computes in.
_DTYPES = ("float32", "bfloat16", "float16")


def check_config(config: ConfigDict) -> None:
    """Raises InputError for a setting that cannot be met, before any data are made or read."""
    parallel.check_batch_size(config.batch_size, config.optimizer.accumulate)
    if config.dtype not in _DTYPES:
        raise InputError(f"config.dtype={config.dtype!r}: {choices(config.dtype, _DTYPES)}")
    if config.init_from and not os.path.exists(config.init_from):
        raise InputError(f"config.init_from={config.init_from!r}: no such file or folder")
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
        raise InputError(f"cannot write to --workdir={workdir}: permission denied")
    if not any((workdir / "checkpoints").glob("*/*")):
        return
    stored = _flatten(json.loads(with_defaults(files.read_config(workdir)).to_json()))
    wanted = _flatten(json.loads(config.to_json()))
    differences = [
        f"{key} is {stored.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key) and key not in _MAY_DIFFER
    ]
    if differences:
        raise InputError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}. "
            "Give another --workdir, or the same config"
        )


def claim_workdir(workdir: Path, network: Network) -> None:
    """Writes config and genres into a fresh workdir; checks that an old one is of these genres."""
    if any((workdir / "checkpoints").glob("*/*")):
        stored = files.read_genres(workdir)
        if stored != list(network.genres):
            raise InputError(
                f"{workdir} was trained on the genres {stored}, the data set now has "
                f"{list(network.genres)}"
            )
        return
    try:
        files.write_config(workdir, json.loads(network.config.to_json()))
        files.write_genres(workdir, network.genres)
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
