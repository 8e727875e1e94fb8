"""A network with the settings that it was made for: made once, and handed to whoever needs it."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mgc_jax import parallel
from mgc_jax.configs import default
from mgc_jax.data.features import Feature, Levels, make_features
from mgc_jax.errors import InputError
from mgc_jax.models import count_parameters, create_model
from mgc_jax.results.files import (
    CONFIG,
    GENRES,
    LEVELS,
    read_config,
    read_genres,
    read_levels,
    read_temperature,
)
from mgc_jax.training.checkpoints import Checkpoints
from mgc_jax.training.levels import from_json, is_fixed

# What settings stay below; others below what 32 bits count.
_LARGEST = {"num_epochs": 1_000_000, "label_smoothing": 1, "average_decay": 1, "b1": 1, "b2": 1}


@dataclasses.dataclass(frozen=True)
class Network:
    """What a config makes of a list of genres; without weights.

    Attributes:
        config: as in `configs/default.py`.
        genres: names in label order.
        module: the Flax module, its batch norm tied over all replicas.
        stored: the features of records that it reads, in the order of the module's `inputs`.
        features: the same, as long as it sees them: see `config.crop_seconds`.
        tagging: whether `genres` are tags, each of which is true or not by itself, as those of
            public weights are; such a network is never trained here.
    """

    config: ConfigDict
    genres: tuple[str, ...]
    module: nn.Module
    stored: tuple[Feature, ...]
    features: tuple[Feature, ...]
    tagging: bool = False

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        genres: Sequence[str],
        tagging: bool = False,
        levels: Mapping[str, Levels] | None = None,
    ) -> "Network":
        """Makes the network of a config.

        Args:
            config: as in `configs/default.py`.
            genres: names in label order.
            tagging: whether they are tags.
            levels: by a feature's name, what it is standardised by: see `training.levels`.

        Raises:
            InputError: the config asks for a network, a field or a feature that there is not.
        """
        module = create_model(
            config.model,
            len(genres),
            dtype=jnp.dtype(config.dtype),
            axis_name=parallel.AXIS,
            **config.model_overrides,
        )
        stored = make_features(module.inputs, config)
        seen = _seen(stored, config)
        for name, found in (levels or {}).items():
            seen = [replace(f, levels=found) if f.name == name else f for f in seen]
        return cls(config, tuple(genres), module, stored, tuple(seen), tagging)

    def inputs(self, stored: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the network sees of stored clips.

        Args:
            stored: the features, `[batch, *shape]` as stored, among others; stretches of them if
                it sees such.

        Returns:
            The features alone, `[batch, *shape] float32`, in the order of the module's arguments.
        """
        return {f.name: f.network_input(stored[f.name]) for f in self.features}

    def init(self) -> dict:
        """Initial `params` and `batch_stats` (empty where there are none), by `config.seed`."""
        return self._init(jax.random.key(self.config.seed))

    @functools.cached_property
    def shapes(self) -> dict:
        """Shapes of `init`'s arrays, without computing them."""
        return jax.eval_shape(self._init, jax.eval_shape(jax.random.key, self.config.seed))

    @functools.cached_property
    def _init(self) -> Callable:
        """`init` of a key, compiled; traced once."""

        def init(key):
            inputs = [jnp.zeros((1, *feature.shape), jnp.float32) for feature in self.features]
            # train=False: there are no replicas outside pmap.
            variables = self.module.init(key, *inputs, train=False)
            return {name: variables.get(name, {}) for name in ("params", "batch_stats")}

        return jax.jit(init)

    @functools.cached_property
    def predict_step(self) -> Callable:
        """See `inference.compile_predict_step`; compiled once, for all that predict with it."""
        from mgc_jax.training.inference import compile_predict_step  # it imports this module

        return compile_predict_step(self)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters."""
        return count_parameters(self.shapes)


def _seen(stored: Sequence[Feature], config: ConfigDict) -> list[Feature]:
    """Features of records, as long as a network sees them; raises InputError where none fits."""
    if not config.crop_seconds:
        return list(stored)
    clip_seconds = stored[0].audio.clip_seconds
    if not 0 < config.crop_seconds <= clip_seconds:
        raise InputError(
            f"config.crop_seconds={config.crop_seconds:g} is not between 0 and "
            f"config.audio.clip_seconds={clip_seconds:g}"
        )
    if config.windows < 1:
        raise InputError(f"config.windows={config.windows}: at least 1")
    seen = [feature.lasting(config.crop_seconds) for feature in stored]
    for whole, part in zip(stored, seen, strict=True):
        if not 0 < part.shape[0] <= whole.shape[0]:
            raise InputError(
                f"config.crop_seconds={config.crop_seconds:g} are {part.shape[0]} frames, but "
                f"config.{whole.name}.frames={whole.shape[0]} are stored of a clip: store more"
            )
    return seen


class TrainedRun(NamedTuple):
    """What a workdir holds of a run: its network with the weights of its best epoch.

    `temperature` is what the network's logits are to be divided by: see `results.calibration`.
    """

    network: Network
    variables: dict
    epoch: int
    temperature: float = 1.0


def load_run(workdir: str | os.PathLike) -> TrainedRun:
    """Loads the best checkpoint of a run, as the run's own config says; nothing else is needed.

    Raises:
        InputError: the workdir holds no run, no finished epoch, or damaged files.
    """
    workdir = Path(workdir)
    with _reading(workdir):
        config = with_defaults(read_config(workdir))
        levels = from_json(read_levels(workdir))
        network = Network.from_config(config, read_genres(workdir), levels=levels)
    variables, epoch = load_best(workdir, network)
    return TrainedRun(network, variables, epoch, read_temperature(workdir, epoch))


def load_best(workdir: Path, network: Network) -> tuple[dict, int]:
    """The variables of a run's best epoch, as NumPy arrays, and which epoch it is.

    Args:
        workdir: of the run.
        network: the run's own.

    Raises:
        InputError: as `load_run` does.
    """
    with _reading(workdir), Checkpoints(workdir) as checkpoints:
        levels = read_levels(workdir)
        for feature in network.features:
            if is_fixed(feature) and feature.name not in levels:
                raise InputError(f"{workdir / LEVELS} is missing: copy it back from the run")
        variables, score = checkpoints.restore_best(network.shapes)
    return variables, score["epoch"]


@contextlib.contextmanager
def _reading(workdir: Path) -> Iterator[None]:
    """Says in one line that a workdir holds no run, or a damaged one."""
    for part in (CONFIG, GENRES, "checkpoints/best"):
        if not (workdir / part).exists():
            raise InputError(f"{workdir} holds no trained run: there is no {part} in it")
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # What ml_collections and orbax raise for a damaged file is any of these.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{workdir}: cannot read this run: {reason}") from error


def with_defaults(stored: Mapping) -> ConfigDict:
    """A stored config, with the default of every key that it lacks.

    So an older run goes on as it was: a new key's default is what was done before there was one.

    Raises:
        InputError: a value is of another type than the default, or no run can have it.
    """
    config = default.get_config()
    try:
        config.update(stored)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # What ml_collections raises for a value of another type is any of these.
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"the stored config does not fit this version: {reason}") from None
    check_numbers(config)
    return config


def check_numbers(config: Mapping, above: str = "config.") -> None:
    """Raises InputError for a setting that no run can have, such as one that is not finite.

    Some have closer bounds where they are used.
    """
    for key, value in config.items():
        if isinstance(value, list | tuple):
            value = {str(place): number for place, number in enumerate(value)}
        if isinstance(value, Mapping | ConfigDict):
            check_numbers(value, f"{above}{key}.")
        elif isinstance(value, int | float):
            # Ratios in dB may be negative; shares of 1 stop short of it.
            low = -1000 if key.endswith("_db") else 0
            high = _LARGEST.get(key, 2**31)
            if not low <= value < high:
                raise InputError(f"{above}{key}={value!r}: need {low:,} to below {high:,}")
        elif not isinstance(value, str):
            raise InputError(f"{above}{key}={value!r} is neither a number nor a text")
