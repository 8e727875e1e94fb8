"""Sizes and shapes of the networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mgc_jax.errors import InputError
from mgc_jax.models import MODELS, count_parameters, create_model

PARAMETERS = {"baseline_a_2d": 661_058, "densenet": 6_955_784}


def test_no_network_is_missing():
    assert MODELS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    model = create_model(name, 8)
    mel = jax.ShapeDtypeStruct((1, 128, 513), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), mel)
    assert count_parameters(variables) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("frames,dtype", [(128, "float32"), (77, "bfloat16")])
def test_logits(name, frames, dtype):
    model = create_model(name, 5, dtype=jnp.dtype(dtype))
    mel = jax.random.uniform(jax.random.key(1), (2, frames, 513), minval=-1)
    variables = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))(mel)
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, mel)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert not np.allclose(logits[0], logits[1])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


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
    with pytest.raises(InputError, match="'resnet' is unknown: one of baseline_a_2d"):
        create_model("resnet")
    with pytest.raises(InputError, match="densenet has no field 'depth'"):
        create_model("densenet", depth=3)
