"""Sizes and shapes of the networks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shared import once

from mgc_jax.errors import InputError
from mgc_jax.models import MODELS, count_parameters, cpu_forms, create_model, layers

PARAMETERS = {  # as the source counts its own; musicnn of 50 classes has 787,159
    "baseline_a_1d": 645_080,
    "baseline_a_2d": 661_058,
    "baseline_b": 1_252_162,
    "densenet": 6_955_784,
    "fusionnet": 7_542_552,
    "musicnn": 778_717,
    "temporal_fusion": 1_174_184,
    "probe": 811_237,
}
SHAPES = {"mel": (128, 513), "mel96": (626, 96), "waveform": (160_000,)}
OTHER_SHAPES = {
    "short": {"mel": (77, 513), "mel96": (400, 96), "waveform": (96_000,)},
    "tiny": {"mel": (40, 64), "mel96": (40, 96), "waveform": (30_000,)},
}
# Of DenseNet's 58 layers, which take a minute to compile, eight show what all do.
FEWER_LAYERS = {name: {"block_sizes": (2, 2, 2, 2)} for name in ("densenet", "fusionnet")}


def smaller(name, classes, **fields):
    return create_model(name, classes, **FEWER_LAYERS.get(name, {}), **fields)


@functools.cache
def fresh(name, classes, size):
    """Inputs of four clips for a smaller network, `short` or `tiny`, and its variables."""
    model = smaller(name, classes)
    inputs = [
        jax.random.normal(jax.random.key(i), (4, *OTHER_SHAPES[size][feature])) / 2
        for i, feature in enumerate(model.inputs)
    ]
    init = once(lambda *x: model.init(jax.random.key(0), *x, train=False))
    return inputs, init(*inputs)


def test_no_network_is_missing():
    assert MODELS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    model = create_model(name, 8)
    inputs = [jnp.zeros((1, *SHAPES[feature])) for feature in model.inputs]
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs, train=False))
    assert count_parameters(variables) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_batches_of_any_size_can_be_exported(name):
    model = create_model(name, 8)
    shapes = [SHAPES[feature] for feature in model.inputs]
    (batch,) = jax.export.symbolic_shape("batch")
    inputs = [jax.ShapeDtypeStruct((batch, *shape), jnp.float32) for shape in shapes]
    one = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in shapes]
    variables = jax.eval_shape(lambda *x: model.init(jax.random.key(0), *x, train=False), *one)
    logits = jax.eval_shape(lambda v, *x: model.apply(v, *x, train=False), variables, *inputs)
    assert logits.shape == (batch, 8)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_of_another_length(name, dtype):
    inputs, variables = fresh(name, 5, "short")
    inputs = [x[:2] for x in inputs]
    model = smaller(name, 5, dtype=jnp.dtype(dtype))
    logits = once(lambda v, *x: model.apply(v, *x, train=False))(variables, *inputs)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert not np.allclose(logits[0], logits[1])
    init = functools.partial(model.init, train=False)
    made = jax.eval_shape(init, jax.random.key(0), *inputs)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))


@pytest.mark.parametrize("shape", [(2, 9, 7, 3), (3, 8, 6, 3)])
def test_cpu_forms_equal_the_plain_ones(shape, monkeypatch):
    """Pools and the 1x1 convolution, with their gradients, on odd and even sizes."""
    x = jax.random.normal(jax.random.key(0), shape)
    point = layers.PointConv(5)
    variables = point.init(jax.random.key(1), x)
    stem = layers.StemConv(4)
    stem_variables = stem.init(jax.random.key(2), x[..., :1])
    functions = (
        cpu_forms.max_pool_3x3,
        cpu_forms.avg_pool_2x2,
        lambda x: cpu_forms.max_pool_time(x[:, 0], 2),
        lambda x: point.apply(variables, x),
        lambda x: stem.apply(stem_variables, x[..., :1]),
    )
    for function in functions:
        found = []
        for cpu in (True, False):
            monkeypatch.setattr(cpu_forms, "on_cpu", lambda cpu=cpu: cpu)
            found.append(_with_gradient(function)(x))
        jax.tree.map(
            lambda ours, plain: np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4),
            *found,
        )


@pytest.mark.parametrize("samples", [30, 31, 100, 157])
@pytest.mark.parametrize("width, stride", [(30, 4), (13, 5), (8, 8)])
def test_wave_convolution_equals_flax(samples, width, stride):
    """Down to a single position, with the gradient of the kernel."""
    x = jax.random.normal(jax.random.key(0), (2, samples, 1))
    _check_convolution(layers.TimeConv(3, width, stride), nn.Conv(3, (width,), stride, "VALID"), x)


@pytest.mark.parametrize("frames", [6, 7, 30, 31])
@pytest.mark.parametrize("width", [2, 4, 6])
def test_even_convolution_equals_flax(frames, width):
    """Down to a single position, with the gradient of the kernel."""
    x = jax.random.normal(jax.random.key(0), (2, frames, 5))
    _check_convolution(layers.TimeConv(3, width), nn.Conv(3, (width,), padding="VALID"), x)


@pytest.mark.parametrize("frames", [3, 20])
@pytest.mark.parametrize("size", [(7, 5), (6, 1), (1, 9)])
def test_bands_convolution_equals_flax(frames, size):
    """Of fewer frames than the kernel is wide, too, and of as many bands as it is high."""
    x = jax.random.normal(jax.random.key(0), (2, frames, 9, 1))
    width = size[0]
    padding = (((width - 1) // 2, width // 2), (0, 0))
    _check_convolution(layers.BandsConv(3, size), nn.Conv(3, size, padding=padding), x)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(32, 129), (23, 23), (16, 64), (5, 4)])
def test_square_convolution_equals_flax(size, train):
    x = jax.random.normal(jax.random.key(0), (2, *size, 6))
    flax = nn.Conv(3, (3, 3), padding=1, use_bias=False, kernel_init=nn.initializers.he_normal())
    variables, ours = once(flax.init)(jax.random.key(1), x), layers.SquareConv(3)
    made = once(functools.partial(ours.init, train=train))(jax.random.key(1), x)
    np.testing.assert_array_equal(made["params"]["kernel"], variables["params"]["kernel"])
    found = once(functools.partial(ours.apply, train=train))(variables, x)
    expected = once(flax.apply)(variables, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def _with_gradient(function):
    """The function, compiled, that adds the gradient of the sum of its squares by all arguments."""

    def both(*x):
        arguments = tuple(range(len(x)))
        return function(*x), jax.grad(lambda *x: jnp.sum(function(*x) ** 2), arguments)(*x)

    return once(both)


def _check_convolution(ours, flax, x):
    variables, made = (once(module.init)(jax.random.key(1), x) for module in (flax, ours))
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, made))
    variables["params"]["bias"] = jnp.arange(3.0)
    found, expected = (_with_gradient(module.apply)(variables, x) for module in (ours, flax))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_batch_norm_equals_flax(dtype):
    x = (3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6))).astype(dtype)
    ours = layers.BatchNorm(use_running_average=False, dtype=dtype)
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5, dtype=dtype)
    variables = flax.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, ours.init(jax.random.key(0), x)
    )
    variables["params"] = {"scale": jnp.arange(6.0), "bias": jnp.ones(6)}
    found, expected = (m.apply(variables, x, mutable="batch_stats") for m in (ours, flax))
    assert found[0].dtype == expected[0].dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 0.1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a.astype(np.float32), b.astype(np.float32), atol=tolerance
        ),
        found,
        expected,
    )
    variables["batch_stats"] = {"mean": jnp.arange(6.0), "var": jnp.arange(1, 7.0)}
    fixed = layers.BatchNorm(use_running_average=True).apply(variables, x)
    expected = nn.BatchNorm(use_running_average=True).apply(variables, x)
    np.testing.assert_allclose(fixed, expected.astype(jnp.float32), atol=1e-2)


def test_batch_norm_follows_pytorch():
    """Running mean after one step: 0.9 * 0 + 0.1 * batch mean; normalisation with epsilon 1e-5."""
    x = jnp.array([[1.0], [3.0]])
    norm = layers.BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y[:, 0], np.array([-1, 1]) / np.sqrt(1 + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], [0.2], rtol=1e-6)


@pytest.mark.parametrize("name", PARAMETERS)
def test_training_and_predicting_agree(name):
    """Same shapes and types; with the statistics of a batch in store, nearly the same numbers.

    What a step stores is 0.9 of what was there, and 0.1 of the batch's statistics.
    """
    inputs, variables = fresh(name, 3, "tiny")
    model = smaller(name, 3)
    train = once(lambda v, *x: model.apply(v, *x, train=True, mutable=["batch_stats"]))
    trained, updates = train(variables, *inputs)
    stored = {"batch_stats": variables["batch_stats"]}
    updated = jax.tree.map(lambda before, after: (after - 0.9 * before) / 0.1, stored, updates)
    predict = once(lambda v, *x: model.apply(v, *x, train=False))
    predicted = predict(variables | updated, *inputs)
    assert predicted.dtype == trained.dtype == jnp.float32
    assert predicted.shape == trained.shape == (4, 3)
    np.testing.assert_allclose(predicted, trained, atol=0.05)


@pytest.mark.parametrize("name", sorted(PARAMETERS.keys() - {"probe"}))  # which is not trained
def test_dropout_is_in_training_alone(name):
    inputs, variables = fresh(name, 3, "tiny")
    model = smaller(name, 3, dropout=0.5)

    @once
    def train(variables, key):
        rngs = {"dropout": key}
        return model.apply(variables, *inputs, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    first, second = (train(variables, jax.random.key(i)) for i in (1, 2))
    assert not np.allclose(first, second)
    predictions = [
        once(lambda v, *x, m=m: m.apply(v, *x, train=False))(variables, *inputs)
        for m in (model, smaller(name, 3))
    ]
    np.testing.assert_array_equal(*predictions)


def test_what_is_no_network_is_refused(monkeypatch):
    class Foreign(nn.Module):
        inputs = ("mel",)

    class WithoutInputs(layers.Network):
        pass

    for name, model in (("foreign", Foreign), ("without", WithoutInputs)):
        monkeypatch.setitem(MODELS, name, model)
        with pytest.raises(InputError, match=f"'{name}'.*must derive from .*layers.Network"):
            create_model(name)


def test_unknown_network_and_field():
    with pytest.raises(InputError, match="'resnet' is unknown: one of baseline_a_1d"):
        create_model("resnet")
    with pytest.raises(InputError, match="densenet has no field 'depth'"):
        create_model("densenet", depth=3)
