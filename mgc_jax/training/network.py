"""A network with the settings that it was made for: made once, and handed to whoever needs it."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mgc_jax import parallel
from mgc_jax.data.features import ClipSettings
from mgc_jax.models import count_parameters, create_model


@dataclasses.dataclass(frozen=True)
class Network:
    """What a config makes of a list of genres; without weights.

    Attributes:
        module: the Flax module, its batch norm tied over all replicas.
        settings: rate, clip length and log-mel settings.
        genres: names in label order.
        seed: of the initial parameters.
    """

    module: nn.Module
    settings: ClipSettings
    genres: tuple[str, ...]
    seed: int

    @classmethod
    def from_config(cls, config: ConfigDict, genres: list[str]) -> "Network":
        """The network of a config."""
        module = create_model(
            config.model,
            len(genres),
            dtype=jnp.dtype(config.dtype),
            axis_name=parallel.AXIS,
            **config.model_overrides,
        )
        return cls(module, ClipSettings.from_config(config), tuple(genres), config.seed)

    def init(self) -> dict:
        """Initial parameters and statistics."""
        inputs = [
            jnp.zeros((1, *self.settings.shape(name)), jnp.float32) for name in self.module.inputs
        ]
        # train=False: there are no replicas outside pmap.
        init = jax.jit(lambda key: self.module.init(key, *inputs, train=False))
        return init(jax.random.key(self.seed))

    @functools.cached_property
    def shapes(self) -> dict:
        """Shapes of `init`'s arrays, without computing them."""
        return jax.eval_shape(self.init)

    @property
    def parameters(self) -> int:
        """Their number."""
        return count_parameters(self.shapes)


class TrainedRun(NamedTuple):
    """What a workdir holds of a run: its network with the weights of its best epoch."""

    config: ConfigDict
    network: Network
    variables: dict
    epoch: int


def load_run(workdir: str | os.PathLike) -> TrainedRun:
    """Loads the best checkpoint of a run, as the run's own config says; nothing else is needed.

    Raises:
        InputError: the workdir holds no run, no finished epoch, or damaged files.
    """
    workdir = Path(workdir)
    for part in ("config.json", "genres.json", "checkpoints/best"):
        if not (workdir / part).exists():
            raise InputError(f"{workdir} holds no trained run: there is no {part} in it")
    try:
        config = ConfigDict(json.loads((workdir / "config.json").read_text()))
        genres = json.loads((workdir / "genres.json").read_text())
        network = Network.from_config(config, genres)
        with Checkpoints(workdir) as checkpoints:
            variables, score = checkpoints.restore_best(network.shapes)
    except InputError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        # What json, ml_collections and orbax raise for a damaged file is any of these.
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(f"{workdir}: cannot read this run: {reason}") from error
    return TrainedRun(config, network, variables, score["epoch"])
