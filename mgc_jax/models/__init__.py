"""The networks, by name. To add one, write its class in a file of its own, and add it here."""

from collections.abc import Mapping

import jax

from mgc_jax.errors import InputError, choices
from mgc_jax.models.baseline_a_1d import BaselineA1D
from mgc_jax.models.baseline_a_2d import BaselineA2D
from mgc_jax.models.baseline_b import BaselineB
from mgc_jax.models.densenet import DenseNet121
from mgc_jax.models.fusionnet import FusionNet
from mgc_jax.models.layers import Network
from mgc_jax.models.musicnn import Musicnn
from mgc_jax.models.probe import Probe
from mgc_jax.models.temporal_fusion import TemporalFusion

MODELS = {
    "baseline_a_1d": BaselineA1D,
    "baseline_a_2d": BaselineA2D,
    "baseline_b": BaselineB,
    "densenet": DenseNet121,
    "fusionnet": FusionNet,
    "musicnn": Musicnn,
    "probe": Probe,
    "temporal_fusion": TemporalFusion,
}


def create_model(name: str, num_classes: int = 8, **overrides) -> Network:
    """Makes a network.

    Args:
        name: a key of `MODELS`.
        num_classes: number of logits.
        **overrides: fields of the network's class, e.g. `dtype`.

    Raises:
        InputError: unknown name or field, or a class that is no network.
    """
    model = _find(name)
    unknown = overrides.keys() - model.__dataclass_fields__.keys()
    if unknown:
        raise InputError(f"config.model_overrides: {name} has no field {sorted(unknown)[0]!r}")
    return model(num_classes=num_classes, **overrides)


def inputs_of(name: str) -> tuple[str, ...]:
    """Names of the stored features that a network reads, in order."""
    return _find(name).inputs


def count_parameters(variables: Mapping) -> int:
    """Trainable parameters of a network's variables."""
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _find(name: str) -> type[Network]:
    """The class of this name, if it keeps the contract of `Network`."""
    if name not in MODELS:
        raise InputError(f"config.model={name!r} is unknown: {choices(name, MODELS)}")
    model = MODELS[name]
    if not (isinstance(model, type) and issubclass(model, Network) and model.inputs):
        raise InputError(
            f"config.model={name!r}: {model!r} must derive from mgc_jax.models.layers.Network "
            "and name its inputs"
        )
    return model
