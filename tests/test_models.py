"""Sizes and shapes of the networks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgc_jax.errors import InputError
from mgc_jax.models import MODELS, count_parameters, create_model
from mgc_jax.models.layers import TimeConv

PARAMETERS = {  # as the source counts them
    "baseline_a_1d": 645_080,
    "baseline_a_2d": 661_058,
    "baseline_b": 1_252_162,
    "densenet": 6_955_784,
    "fusionnet": 7_542_552,
}
SHAPES = {"mel": (128, 513), "waveform": (160_000,)}


def test_no_network_is_missing():
    assert MODELS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    model = create_model(name, 8)
    inputs = [jnp.zeros((1, *SHAPES[feature])) for feature in model.features]
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    assert count_parameters(variables) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_another_length(name, dtype):
    shapes = {"mel": (77, 513), "waveform": (96_000,)}
    model = create_model(name, 5, dtype=jnp.dtype(dtype))
    inputs = [
        jax.random.uniform(jax.random.key(1), (2, *shapes[feature]), minval=-1)
        for feature in model.features
    ]
    variables = jax.jit(lambda *x: model.init(jax.random.key(0), *x, train=False))(*inputs)
    logits = jax.jit(lambda v, *x: model.apply(v, *x, train=False))(variables, *inputs)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert not np.allclose(logits[0], logits[1])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_time_conv_is_a_convolution(padding):
    x = jax.random.normal(jax.random.key(0), (2, 9, 5))
    ours = TimeConv(3, 4, padding)
    variables = ours.init(jax.random.key(1), x)
    reference = nn.Conv(3, (4,), padding=padding)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, reference.init(jax.random.key(1), x)
    )
    variables["params"]["bias"] = jnp.arange(3.0)
    np.testing.assert_allclose(ours.apply(variables, x), reference.apply(variables, x), atol=1e-5)


def test_batch_norm_follows_pytorch():
    """Running mean after one step: 0.9 * 0 + 0.1 * batch mean; normalisation with epsilon 1e-5."""
    from mgc_jax.models.layers import BatchNorm

    x = jnp.array([[1.0], [3.0]])
    norm = BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y[:, 0], np.array([-1, 1]) / np.sqrt(1 + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], [0.2], rtol=1e-6)


def test_unknown_network_and_field():
    with pytest.raises(InputError, match="'resnet' is unknown: one of baseline_a_1d"):
        create_model("resnet")
    with pytest.raises(InputError, match="densenet has no field 'depth'"):
        create_model("densenet", depth=3)
