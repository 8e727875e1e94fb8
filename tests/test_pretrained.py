"""Foreign weights: networks in plain numpy, on the arrays as PyTorch names and lays them out."""

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file

from mgc_jax import console, parallel
from mgc_jax.configs import default
from mgc_jax.errors import InputError
from mgc_jax.models import create_model
from mgc_jax.training.checkpoints import Checkpoints
from mgc_jax.training.pretrained import load_weights

SMALL = {"block_sizes": (2, 3), "growth_rate": 8, "bn_size": 2, "initial_features": 16}
INPUTS = {"mel": (64, 20), "waveform": (3000,)}


def fresh(name, classes=8, inputs=INPUTS, **overrides):
    """Variables of a network, all of them random."""
    model = create_model(name, classes, axis_name=parallel.AXIS, **overrides)
    arrays = [jnp.zeros((1, *inputs[feature])) for feature in model.inputs]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *arrays, train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def conv(name, *shape, bias=False):
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def norm(name, channels):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def densenet_shapes(block_sizes, growth_rate, bn_size, initial_features, channels=3, classes=1000):
    """Names and shapes of torchvision's `DenseNet`, written down from its layer table."""
    c, middle = initial_features, bn_size * growth_rate
    shapes = conv("features.conv0", c, channels, 7, 7) | norm("features.norm0", c)
    for i, size in enumerate(block_sizes, start=1):
        for j in range(1, size + 1):
            layer = f"features.denseblock{i}.denselayer{j}"
            shapes |= norm(f"{layer}.norm1", c) | conv(f"{layer}.conv1", middle, c, 1, 1)
            shapes |= norm(f"{layer}.norm2", middle)
            shapes |= conv(f"{layer}.conv2", growth_rate, middle, 3, 3)
            c += growth_rate
        if i < len(block_sizes):
            shapes |= norm(f"features.transition{i}.norm", c)
            shapes |= conv(f"features.transition{i}.conv", c // 2, c, 1, 1)
            c //= 2
    return shapes | norm("features.norm5", c) | conv("classifier", classes, c, bias=True)


def trunk_shapes():
    channels, widths = (1, 16, 32, 64, 128, 256), (964, 13, 13, 13, 13)
    shapes = {}
    for i in range(5):
        shape = (channels[i + 1], channels[i], widths[i])
        shapes |= conv(f"trunk.conv{i}", *shape, bias=True) | norm(f"trunk.norm{i}", shape[0])
    return shapes


def head_shapes(channels, widths):
    shapes = {}
    for name, width in zip(("dense0", "dense1", "classifier"), widths, strict=True):
        shapes |= conv(f"head.{name}", width, channels, bias=True)
        channels = width
    return shapes


def mel_shapes(channels, mels=20, classes=8):
    """Baseline A (2D) has `channels` (128, 128, 256), Baseline B (256, 256, 256)."""
    shapes, inputs = {}, (mels, *channels)
    for i in range(3):
        shapes |= conv(f"conv{i}", channels[i], inputs[i], 4, bias=True)
        shapes |= norm(f"norm{i}", channels[i])
    return shapes | head_shapes(512, (300, 150, classes))


DENSENET121 = densenet_shapes((6, 12, 24, 16), 32, 4, 64)
FUSIONNET = (
    {
        name.replace("features", "densenet"): shape
        for name, shape in DENSENET121.items()
        if name.startswith("features.")
    }
    | trunk_shapes()
    | conv("classifier", 8, 1536, bias=True)
)
A_1D = trunk_shapes() | head_shapes(256, (150, 150, 8))
A_2D = mel_shapes((128, 128, 256))


def random_state(shapes, seed=1):
    """A state dict whose activations keep their scale and whose statistics are not trivial."""
    rng, state = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7, np.int64)
        elif name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
            state[name] = rng.uniform(0.5, 2, shape).astype(np.float32)
        else:
            scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.3
            state[name] = rng.normal(0, scale, shape).astype(np.float32)
    return state


def floats(state):
    return {name: t for name, t in state.items() if "num_batches" not in name}


@pytest.fixture
def save(tmp_path):
    def save(state):
        save_file(state, tmp_path / "weights.safetensors")
        return tmp_path / "weights.safetensors"

    return save


@pytest.fixture
def lines(monkeypatch):
    """What was logged."""
    lines = []
    monkeypatch.setattr(console.log, "info", lambda text, *values: lines.append(text % values))
    return lines


@pytest.fixture(scope="module")
def densenet121():
    return random_state(DENSENET121), fresh("densenet")


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def assert_all_used(variables, state):
    """Our leaves and the state dict's tensors have the same sums (which layouts do not change)."""
    ours = sorted(np.asarray(leaf, np.float64).sum() for leaf in jax.tree.leaves(variables))
    theirs = sorted(t.sum(dtype=np.float64) for t in floats(state).values())
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-4)


def assert_fits(variables, given):
    """The same tree, shapes and dtypes."""
    spec = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (variables, given)]
    assert spec[0] == spec[1]


# The networks in numpy, channels first, float64.


def np_conv(x, weight, bias=None, stride=1, padding=0):
    """`x` `[batch, I, ...]`, `weight` `[O, I, ...]`, over one or two axes."""
    axes = tuple(range(2, x.ndim))
    x = np.pad(x, [(0, 0), (0, 0)] + [(padding, padding)] * len(axes))
    windows = sliding_window_view(x, weight.shape[2:], axes)
    windows = windows[(slice(None), slice(None)) + (slice(None, None, stride),) * len(axes)]
    spatial, taps = ("hw", "kl") if len(axes) == 2 else ("h", "k")
    y = np.einsum(f"bi{spatial}{taps},oi{taps}->bo{spatial}", windows, weight, optimize=True)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(axes))


def np_norm(x, state, name):
    weight, bias, mean, var = (
        np.float64(state[f"{name}.{leaf}"]).reshape(-1, *[1] * (x.ndim - 2))
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def np_relu(x):
    return np.maximum(x, 0)


def np_dense(x, state, name):
    return x @ np.float64(state[f"{name}.weight"]).T + state[f"{name}.bias"]


def np_densenet(x, state, block_sizes):
    """`x` `[batch, channels, height, width]` to logits."""
    x = np_conv(x, state["features.conv0.weight"], stride=2, padding=3)
    x = np_relu(np_norm(x, state, "features.norm0"))
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    x = sliding_window_view(x, (3, 3), (2, 3))[:, :, ::2, ::2].max(axis=(-2, -1))
    for i, size in enumerate(block_sizes, start=1):
        for j in range(1, size + 1):
            layer = f"features.denseblock{i}.denselayer{j}"
            y = np_relu(np_norm(x, state, f"{layer}.norm1"))
            y = np_conv(y, state[f"{layer}.conv1.weight"])
            y = np_relu(np_norm(y, state, f"{layer}.norm2"))
            y = np_conv(y, state[f"{layer}.conv2.weight"], padding=1)
            x = np.concatenate([x, y], axis=1)
        if i < len(block_sizes):
            x = np_relu(np_norm(x, state, f"features.transition{i}.norm"))
            x = np_conv(x, state[f"features.transition{i}.conv.weight"])
            x = sliding_window_view(x, (2, 2), (2, 3))[:, :, ::2, ::2].mean(axis=(-2, -1))
    x = np_relu(np_norm(x, state, "features.norm5")).mean(axis=(2, 3))
    return np_dense(x, state, "classifier")


def np_baseline_a_2d(mel, state):
    """`mel` `[batch, frames, mels]` to logits."""
    x = mel.swapaxes(1, 2)
    for i in range(3):
        x = np_conv(x, state[f"conv{i}.weight"], state[f"conv{i}.bias"])
        x = np_relu(np_norm(x, state, f"norm{i}"))
        if i < 2:
            x = x[..., : x.shape[-1] // 2 * 2]
            x = np.maximum(x[..., ::2], x[..., 1::2])
    x = np.concatenate([x.mean(axis=2), x.max(axis=2)], axis=1)
    for name in ("head.dense0", "head.dense1"):
        x = np_relu(np_dense(x, state, name))
    return np_dense(x, state, "head.classifier")


def logits(name, variables, x, classes=8, **overrides):
    model = create_model(name, classes, axis_name=parallel.AXIS, **overrides)
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, np.float32(x))


@pytest.mark.parametrize("channels", [1, 3])
def test_densenet_computes_what_torch_does(save, lines, channels):
    """Odd sizes throughout; three channels see the picture three times."""
    state = random_state(densenet_shapes(**SMALL, channels=channels, classes=5))
    variables = load_weights(save(state), "densenet", fresh("densenet", 5, **SMALL))
    mel = np.random.default_rng(2).uniform(-1, 1, (2, 61, 77))
    expected = np_densenet(mel[:, None].repeat(channels, axis=1), state, SMALL["block_sizes"])
    assert expected.std() > 0.1
    actual = logits("densenet", variables, mel, 5, **SMALL)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert_all_used(variables, state)
    assert lines[-1].endswith("weights.safetensors: everything, with the classifier of 5 classes")


def test_baseline_a_2d_computes_what_torch_does(save):
    state = random_state(A_2D)
    variables = load_weights(save(state), "baseline_a_2d", fresh("baseline_a_2d"))
    mel = np.random.default_rng(2).uniform(-1, 1, (2, 63, 20))
    expected = np_baseline_a_2d(mel, state)
    assert expected.std() > 0.1
    actual = logits("baseline_a_2d", variables, mel)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert_all_used(variables, state)


def test_baseline_a_1d_computes_what_torch_does(save):
    """The first layer, with its norm; the others are compared with the state dict below."""
    state = random_state(A_1D)
    variables = load_weights(save(state), "baseline_a_1d", fresh("baseline_a_1d"))
    assert_all_used(variables, state)
    model = create_model("baseline_a_1d")
    wave = np.random.default_rng(2).uniform(-1, 1, (2, 3000))
    _, seen = jax.jit(
        lambda v, x: model.apply(
            v, x, train=False, capture_intermediates=lambda layer, _: layer.name == "norm0"
        )
    )(variables, np.float32(wave))
    x = np_conv(wave[:, None], state["trunk.conv0.weight"], state["trunk.conv0.bias"], stride=16)
    expected = np_norm(x, state, "trunk.norm0").swapaxes(1, 2)
    actual = seen["intermediates"]["trunk"]["norm0"]["__call__"][0]
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    kernel = variables["params"]["trunk"]["conv3"]["kernel"]
    assert kernel[12, 5, 100] == state["trunk.conv3.weight"][100, 5, 12]
    assert kernel[0, 63, 7] == state["trunk.conv3.weight"][7, 63, 0]


def test_torchvision_densenet121(save, densenet121, lines):
    state, given = densenet121
    assert sum(t.size for name, t in floats(state).items() if "running" not in name) == 7_978_856
    path = save(state)
    variables = load_weights(path, "densenet", given)
    assert_fits(variables, given)
    features = {name: t for name, t in state.items() if name.startswith("features")}
    assert_all_used([tree["features"] for tree in variables.values()], features)
    assert_equal(variables["params"]["classifier"], given["params"]["classifier"])
    assert lines == [
        f"weights   {path}: everything but the classifier, fresh: 1000 classes there, 8 here"
    ]

    params, stats = (variables[name]["features"] for name in ("params", "batch_stats"))
    conv0 = state["features.conv0.weight"]
    np.testing.assert_allclose(
        params["conv0"]["kernel"][3, 6, 0, 50], conv0[50, :, 3, 6].sum(), rtol=1e-6
    )
    theirs = state["features.denseblock3.denselayer17.conv2.weight"]
    ours = params["denseblock3_denselayer17"]["conv2"]["kernel"]
    assert ours[0, 2, 127, 31] == theirs[31, 127, 0, 2]
    assert ours[2, 0, 3, 4] == theirs[4, 3, 2, 0]
    for ours, theirs in (
        (params["transition2"]["conv"]["kernel"][0, 0], "transition2.conv.weight"),
        (
            params["denseblock4_denselayer16"]["norm2"]["scale"],
            "denseblock4.denselayer16.norm2.weight",
        ),
        (stats["norm0"]["var"], "norm0.running_var"),
        (stats["transition1"]["norm"]["mean"], "transition1.norm.running_mean"),
        (params["norm5"]["bias"], "norm5.bias"),
    ):
        np.testing.assert_array_equal(ours, state[f"features.{theirs}"].squeeze().T)


def test_names_of_data_parallel(save):
    state = random_state(A_2D)
    given = fresh("baseline_a_2d")
    expected = load_weights(save(state), "baseline_a_2d", given)
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    assert_equal(load_weights(save(wrapped), "baseline_a_2d", given), expected)


def test_torchvision_old_spelling(save, densenet121):
    state, given = densenet121
    old = {}
    for name, tensor in state.items():
        if "denselayer" in name and "num_batches" not in name:
            for part in ("norm1", "norm2", "conv1", "conv2"):
                name = name.replace(f".{part}.", f".{part[:4]}.{part[4]}.")
        if "num_batches" not in name:  # older than the counter, too
            old[name] = tensor
    assert old["features.denseblock1.denselayer1.norm.1.weight"].shape == (64,)
    expected = load_weights(save(state), "densenet", given)
    assert_equal(load_weights(save(old), "densenet", given), expected)
    twice = old | {"features.denseblock1.denselayer1.norm1.bias": np.zeros(64, np.float32)}
    path = save(twice)
    message = "tensor 'features.denseblock1.denselayer1.norm.1.bias' [64] is unknown"
    assert_error(path, "densenet", given, f"{path} does not fit densenet: {message}")


def test_fusionnet_from_a_densenet_and_whole(save, densenet121, lines):
    state, densenet = densenet121
    given = fresh("fusionnet")
    variables = load_weights(save(state), "fusionnet", given)
    assert_fits(variables, given)
    expected = load_weights(save(state), "densenet", densenet)
    for name in ("params", "batch_stats"):
        assert_equal(variables[name]["densenet"], expected[name]["features"])
        assert_equal(variables[name]["trunk"], given[name]["trunk"])
    assert_equal(variables["params"]["classifier"], given["params"]["classifier"])
    assert lines[0].endswith("the DenseNet branch; the rest is fresh")

    whole = random_state(FUSIONNET)
    path = save(whole)
    variables = load_weights(path, "fusionnet", given)
    assert_fits(variables, given)
    summed = whole | {"densenet.conv0.weight": whole["densenet.conv0.weight"].sum(1)}
    assert_all_used(variables, summed)
    params = variables["params"]
    assert params["classifier"]["kernel"][1500, 3] == whole["classifier.weight"][3, 1500]
    assert params["trunk"]["conv0"]["kernel"][900, 0, 9] == whole["trunk.conv0.weight"][9, 0, 900]
    mean = variables["batch_stats"]["densenet"]["denseblock2_denselayer12"]["norm1"]["mean"]
    assert mean[3] == whole["densenet.denseblock2.denselayer12.norm1.running_mean"][3]


@pytest.mark.parametrize(
    "name, channels", [("baseline_a_2d", (128, 128, 256)), ("baseline_b", (256, 256, 256))]
)
def test_first_convolution_over_a_picture(save, name, channels):
    state, given = random_state(mel_shapes(channels)), fresh(name)
    expected = load_weights(save(state), name, given)
    assert_all_used(expected, state)
    picture = state["conv0.weight"].swapaxes(1, 2)[:, None]  # [O, 1, frames, mels]
    state["conv0.weight"] = np.ascontiguousarray(picture)
    variables = load_weights(save(state), name, given)
    assert_equal(variables, expected)
    kernel = variables["params"]["conv0"]["kernel"]
    assert kernel[2, 17, 99] == picture[99, 0, 2, 17]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_float_types(save, dtype):
    state, given = floats(random_state(A_2D)), fresh("baseline_a_2d")
    variables = load_weights(
        save({k: t.astype(dtype) for k, t in state.items()}), "baseline_a_2d", given
    )
    assert_fits(variables, given)
    bias = variables["params"]["conv1"]["bias"]
    np.testing.assert_array_equal(bias, state["conv1.bias"].astype(dtype).astype(np.float32))


@pytest.mark.parametrize("classes", [7, 8])
def test_classifier_of_a_baseline(save, lines, classes):
    state, given = (
        random_state(mel_shapes((128, 128, 256), classes=classes)),
        fresh("baseline_a_2d"),
    )
    head = load_weights(save(state), "baseline_a_2d", given)["params"]["head"]
    np.testing.assert_array_equal(head["dense1"]["kernel"], state["head.dense1.weight"].T)
    if classes == 8:
        np.testing.assert_array_equal(
            head["classifier"]["kernel"], state["head.classifier.weight"].T
        )
        np.testing.assert_array_equal(head["classifier"]["bias"], state["head.classifier.bias"])
    else:
        assert_equal(head["classifier"], given["params"]["head"]["classifier"])
        assert "7 classes there, 8 here" in lines[0]


def make_run(workdir, config, variables, classes=8):
    workdir.mkdir()
    (workdir / "config.json").write_text(config.to_json())
    (workdir / "genres.json").write_text(json.dumps([f"genre {i}" for i in range(classes)]))
    with Checkpoints(workdir, writing=True) as checkpoints:
        checkpoints.save_best(variables, {"epoch": 3, "loss": 0.5})
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of baseline_a_2d, and the variables it saved."""
    config = default.get_config()
    config.model = "baseline_a_2d"
    variables = fresh("baseline_a_2d", inputs={"mel": (128, 513)})
    return make_run(tmp_path_factory.mktemp("runs") / "a", config, variables), variables


def test_run_to_the_same_network(run, lines):
    workdir, stored = run
    zeros = jax.tree.map(jnp.zeros_like, stored)
    variables = load_weights(workdir, "baseline_a_2d", zeros)
    assert_fits(variables, zeros)
    assert_equal(variables, stored)

    classifier = {"kernel": jnp.ones((150, 5)), "bias": jnp.ones(5)}
    zeros["params"]["head"]["classifier"] = classifier
    variables = load_weights(str(workdir), "baseline_a_2d", zeros)
    assert_equal(variables["params"]["head"]["classifier"], classifier)
    stored = flatten_dict(stored) | flatten_dict({"params": {"head": {"classifier": classifier}}})
    assert_equal(variables, unflatten_dict(stored))
    assert "8 classes there, 5 here" in lines[-1]


def test_densenet_run_to_fusionnet(tmp_path):
    config = default.get_config()
    config.model_overrides.update(SMALL)
    stored = fresh("densenet", 3, **SMALL)
    workdir = make_run(tmp_path / "densenet", config, stored, classes=3)
    given = {  # a FusionNet with that branch
        "params": {
            "densenet": jax.tree.map(jnp.zeros_like, stored["params"]["features"]),
            "trunk": {"conv0": {"bias": jnp.ones(16)}},
            "classifier": {"kernel": jnp.ones((70, 8)), "bias": jnp.ones(8)},
        },
        "batch_stats": {
            "densenet": jax.tree.map(jnp.zeros_like, stored["batch_stats"]["features"]),
            "trunk": {"norm0": {"mean": jnp.ones(16)}},
        },
    }
    expected = {name: dict(tree) for name, tree in given.items()}
    for name in expected:
        expected[name]["densenet"] = stored[name]["features"]
    assert_equal(load_weights(workdir, "fusionnet", given), expected)


def assert_error(path, name, given, message):
    with pytest.raises(InputError) as error:
        load_weights(path, name, given)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def without(*names):
    return lambda state: {name: t for name, t in state.items() if name not in names}


def with_shape(**shapes):
    changed = {name.replace("__", "."): np.zeros(s, np.float32) for name, s in shapes.items()}
    return lambda state: state | changed


@pytest.mark.parametrize(
    "change, message",
    [
        (
            without("conv1.weight"),
            "tensor 'conv1.weight' [128, 128, 4] is missing",
        ),
        (
            without("norm2.running_var", "norm1.bias"),
            "tensor 'norm1.bias' [128] is missing",
        ),
        (without("head.classifier.bias"), "tensor 'head.classifier.bias' [8] is missing"),
        (without("head.classifier.weight"), "tensor 'head.classifier.weight' [8, 150] is missing"),
        (
            with_shape(conv0__weight=(128, 21, 4)),
            "tensor 'conv0.weight' is [128, 21, 4], expected [128, 20, 4]",
        ),
        (
            with_shape(conv0__weight=(128, 1, 20, 4)),
            "tensor 'conv0.weight' is [128, 1, 20, 4], expected [128, 20, 4]",
        ),
        (
            with_shape(norm0__running_mean=(1,)),
            "tensor 'norm0.running_mean' is [1], expected [128]",
        ),
        (
            with_shape(head__classifier__weight=(8, 99)),
            "tensor 'head.classifier.weight' is [8, 99], expected [8, 150]",
        ),
        (
            with_shape(head__classifier__weight=(5, 99), head__classifier__bias=(5,)),
            "tensor 'head.classifier.bias' is [5], expected [8]",
        ),
        (
            with_shape(head__classifier__weight=(5, 150)),
            "tensor 'head.classifier.weight' is [5, 150], expected [8, 150]",
        ),
        (with_shape(z__w=(3,), x__w=(2, 1)), "tensor 'x.w' [2, 1] is unknown"),
    ],
)
def test_wrong_tensor_is_named(save, change, message):
    path = save(change(random_state(A_2D)))
    message = f"{path} does not fit baseline_a_2d: {message}"
    assert_error(path, "baseline_a_2d", fresh("baseline_a_2d"), message)


def test_integers_are_no_weights(save):
    path = save(random_state(A_2D) | {"conv0.bias": np.zeros(128, np.int8)})
    message = f"{path}: tensor 'conv0.bias' is int8, expected floats"
    assert_error(path, "baseline_a_2d", fresh("baseline_a_2d"), message)


def test_wrong_densenet_is_named(save, densenet121):
    _, given = densenet121
    wide = save(random_state(densenet_shapes((6, 12, 24, 16), 48, 4, 96)))  # as densenet161
    message = "tensor 'features.conv0.weight' is [96, 3, 7, 7], expected [64, 1, 7, 7]"
    assert_error(wide, "densenet", given, f"{wide} does not fit densenet: {message}")
    assert_error(wide, "fusionnet", fresh("fusionnet"), f"{wide} does not fit fusionnet: {message}")
    layer = "features.denseblock2.denselayer4.norm1"
    path = save(random_state(densenet_shapes(**SMALL) | norm(layer, 4)))
    message = f"{path} does not fit densenet: tensor '{layer}.bias' [4] is unknown"
    assert_error(path, "densenet", fresh("densenet", **SMALL), message)
    path = save(random_state(A_2D))
    message = "tensor 'features.conv0.weight' [64, 1, 7, 7] is missing"
    assert_error(path, "densenet", given, f"{path} does not fit densenet: {message}")


def test_unreadable_file(tmp_path):
    missing, text = tmp_path / "no.safetensors", tmp_path / "weights.pth"
    assert_error(missing, "densenet", {"params": {}}, f"no such file or folder: {missing}")
    text.write_text("PK, as a pickle begins, and then something else")
    assert_error(text, "densenet", {"params": {}}, f"{text} is not a safetensors file (")
    text.write_bytes(b"")
    assert_error(text, "densenet", {"params": {}}, f"{text} is not a safetensors file (")


def test_unfit_run(run, tmp_path):
    workdir, stored = run
    message = f"{workdir} holds a run of baseline_a_2d, whose weights do not fit"
    assert_error(workdir, "baseline_b", fresh("baseline_b"), f"{message} baseline_b")
    other_size = fresh("baseline_a_2d")
    message = (
        f"{workdir} does not fit baseline_a_2d: tensor 'conv0.weight' is [128, 513, 4], expected"
    )
    assert_error(workdir, "baseline_a_2d", other_size, message)

    broken = tmp_path / "broken"
    broken.mkdir()
    for part in ("config.json", "genres.json"):
        message = f"{broken} holds no trained run: there is no {part} in it"
        assert_error(broken, "baseline_a_2d", stored, message)
        (broken / part).write_text((workdir / part).read_text())
    message = f"{broken} holds no trained run: there is no checkpoints/best in it"
    assert_error(broken, "baseline_a_2d", stored, message)
    assert not (broken / "checkpoints").exists()
    (broken / "checkpoints" / "best").mkdir(parents=True)
    assert_error(broken, "baseline_a_2d", stored, "no checkpoint in")
    message = f"{broken}/config.json "
    for config in ("", "[]", "{}", '{"model": "baseline_a_2d"}', "null"):
        (broken / "config.json").write_text(config)
        assert_error(broken, "baseline_a_2d", stored, message)
    (broken / "config.json").write_text((workdir / "config.json").read_text())
    message = f"{broken}/genres.json "
    for genres in ("[", "3", "[3]"):
        (broken / "genres.json").write_text(genres)
        assert_error(broken, "baseline_a_2d", stored, message)


def test_damaged_checkpoint(run, tmp_path):
    """Of other layers than the config says; without its arrays."""
    workdir, stored = run
    broken = shutil.copytree(workdir, tmp_path / "broken")
    message = f"no checkpoint in {broken}/checkpoints/best can be read ("
    config = json.loads((broken / "config.json").read_text())
    config |= {"model": "densenet", "model_overrides": SMALL}
    (broken / "config.json").write_text(json.dumps(config))
    assert_error(broken, "densenet", stored, message)
    shutil.copy(workdir / "config.json", broken)
    load_weights(broken, "baseline_a_2d", stored)
    shutil.rmtree(broken / "checkpoints" / "best" / "3" / "variables")
    assert_error(broken, "baseline_a_2d", stored, message)


def test_loads_no_tensorflow():
    modules = "mgc_jax.training.pretrained, mgc_jax.training.step"
    code = f"import sys, {modules}; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
