"""The networks, by name.

Each class says its inputs, in order, as `features`, and as `clips_at_once` how many clips a CPU had
best predict together: as many as its caches hold the pictures of, or None for a whole batch.
"""

from collections.abc import Mapping

import flax.linen as nn

from mgc_jax.errors import InputError
from mgc_jax.models.baseline_a_1d import BaselineA1D
from mgc_jax.models.baseline_a_2d import BaselineA2D
from mgc_jax.models.baseline_b import BaselineB
from mgc_jax.models.densenet import DenseNet121
from mgc_jax.models.fusionnet import FusionNet

MODELS = {
    "baseline_a_1d": BaselineA1D,
    "baseline_a_2d": BaselineA2D,
    "baseline_b": BaselineB,
    "densenet": DenseNet121,
    "fusionnet": FusionNet,
}


def create_model(name: str, num_classes: int = 8, **overrides) -> nn.Module:
    """Makes a network.

    Args:
        name: a key of `MODELS`.
        num_classes: number of logits.
        **overrides: fields of the network's class, e.g. `dtype`.

    Raises:
        InputError: unknown name or field.
    """
    model = _find(name)
    unknown = overrides.keys() - model.__dataclass_fields__.keys()
    if unknown:
        raise InputError(f"config.model_overrides: {name} has no field {sorted(unknown)[0]!r}")
    return model(num_classes=num_classes, **overrides)


def inputs_of(name: str) -> tuple[str, ...]:
    """The inputs of a network, in order: `mel` and/or `waveform`."""
    return _find(name).inputs


def count_parameters(variables: Mapping) -> int:
    """Trainable parameters of a network's variables."""
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def _find(name: str) -> type[nn.Module]:
    if name not in MODELS:
        raise InputError(f"config.model={name!r} is unknown: one of {', '.join(MODELS)}")
    return MODELS[name]
