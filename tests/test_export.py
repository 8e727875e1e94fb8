"""Exported networks, against the package's own features and predictions."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from child import assert_one_error, call
from shared import write_audio

import mgc_jax
from mgc_jax.configs import default
from mgc_jax.data import audio
from mgc_jax.data.features import make_features
from mgc_jax.exporter import export_run, write_onnx
from mgc_jax.predictor import Predictor
from mgc_jax.training.network import Network, TrainedRun

MEL, WAVEFORM = make_features(("mel", "waveform"), default.get_config())
RATE = MEL.audio.sample_rate
LOADERS = {
    "network.jax_export": """
from jax import export
file = export.deserialize(bytearray(open(f"{out}/network.jax_export", "rb").read()))
call = lambda clips: np.asarray(file.call(clips))
""",
    "saved_model": """
import tensorflow as tf
model = tf.saved_model.load(f"{out}/saved_model")
call = lambda clips: model.predict(clips).numpy()
""",
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "song.flac"
    write_audio(path, 31.0)
    return np.stack([clip.samples for clip in audio.read_clips(path, RATE, MEL.audio.clip_samples)])


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("a folder") / "exported"
    done = call("export", f"--workdir={workdir}", out)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr
    return out


@pytest.mark.parametrize(
    "changes", [{}, {"n_mels": 128, "frames": 513, "hop_length": 312}, {"top_db": 60.0}]
)
def test_log_mel_is_that_of_the_features(clips, changes):
    mel = dataclasses.replace(MEL, **changes)
    with jax.enable_x64(True):
        found = np.asarray(mel.encode_on_device(np.concatenate([clips, 0 * clips[:1]])))
    expected = [mel.log_mel(clip, np.float64) for clip in [*clips, 0 * clips[0]]]
    assert found.dtype == np.float32
    # The bytes of the records, but where rounding to them is a matter of the last digit.
    unrounded = (np.array(expected) + mel.top_db) * (255 / mel.top_db)
    assert np.abs(found - unrounded).max() < 0.5 + 1e-4


def test_waveforms_are_rounded_as_they_are_stored(clips):
    loud = clips * 3
    assert np.abs(loud).max() > 1
    expected = [WAVEFORM.encode(clip) for clip in loud]
    np.testing.assert_array_equal(WAVEFORM.encode_on_device(loud), expected)


def test_fresh_processes_give_the_same_numbers(workdir, exported, clips, tmp_path):
    """Without this package, for batches of one and of three."""
    np.save(tmp_path / "clips.npy", clips)
    found = {}
    for name, loader in LOADERS.items():
        code = f"""
import sys
import numpy as np
sys.modules["mgc_jax"] = None
out = sys.argv[1]
{loader}
clips = np.load("clips.npy")
np.save("{name}.npy", np.concatenate([call(clips), call(clips[:1])]))
"""
        command = [sys.executable, "-c", code, str(exported)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[name] = np.load(tmp_path / f"{name}.npy")
    ours, theirs = found.values()
    assert ours.shape == (4, 8)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(ours[0], ours[3], atol=1e-5)
    np.testing.assert_allclose(ours.sum(axis=1), 1, atol=1e-5)
    about = json.loads((exported / "model.json").read_text())
    (own,) = mgc_jax.load(workdir).predict(clips.ravel(), about["sample_rate"])
    assert tuple(about["genres"]) == own.genres and about["clip_samples"] == clips.shape[1]
    np.testing.assert_allclose(ours[:3], own.timeline, atol=1e-5)


@pytest.mark.parametrize(
    "arguments,says",
    [
        (("out",), "--workdir=... is missing"),
        (("--workdir=W",), "one folder to write to"),
        (("--workdir=/no/such/run", "out"), "no trained run"),
        (("--workdir=W", "README.md/out"), "cannot write to README.md/out"),
    ],
)
def test_bad_use_is_one_line(arguments, says):
    done = call("export", *arguments)
    assert_one_error(done, says)


def test_onnxruntime_gives_the_same_numbers(workdir, clips, tmp_path):
    """Of batches of one and of three, in float32."""
    pytest.importorskip("jax2onnx")
    import onnxruntime

    export_run(workdir, tmp_path, onnx=True)
    session = onnxruntime.InferenceSession(
        tmp_path / "network.onnx", providers=["CPUExecutionProvider"]
    )
    (expected,) = mgc_jax.load(workdir).predict((RATE, clips[:3].ravel()))
    for batch in (clips[:1], clips[:3]):
        (found,) = session.run(None, {"clips": batch})
        np.testing.assert_allclose(found, expected.timeline[: len(batch)], atol=1e-4)


@pytest.mark.parametrize(
    "model,overrides", [("densenet", {"block_sizes": (1, 1, 2)}), ("musicnn", {})]
)
def test_onnx_of_the_other_networks(model, overrides, clips, tmp_path):
    """Fewer layers of each kind, so that it is quick; random weights and statistics."""
    pytest.importorskip("jax2onnx")
    import onnxruntime

    config = default.get_config()
    config.model = model
    config.model_overrides.update(overrides)
    network = Network.from_config(config, [f"genre {i}" for i in range(8)])
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10
        return (rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(drawn, network.shapes)
    run = TrainedRun(network, variables, epoch=1, temperature=2.0)
    write_onnx(run, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(
        tmp_path / "network.onnx", providers=["CPUExecutionProvider"]
    )
    (expected,) = Predictor(run).predict((RATE, clips[:3].ravel()))
    assert np.ptp(expected.timeline, axis=1).min() > 0.01
    for batch in (clips[:1], clips[:3]):
        (found,) = session.run(None, {"clips": batch})
        np.testing.assert_allclose(found, expected.timeline[: len(batch)], atol=1e-4)
