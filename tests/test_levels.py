"""Log-mels of absolute levels, whose bands a network sees standardised."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from child import ROOT, call
from jax import export as jax_export
from shared import write_audio

import mgc_jax
from mgc_jax.configs import default
from mgc_jax.data import audio, preparation
from mgc_jax.data.clips import iter_clips
from mgc_jax.data.features import Levels, make_features
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError
from mgc_jax.exporter import export_run
from mgc_jax.training import levels
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.evaluate import best_variables
from mgc_jax.training.network import load_run


def fixed_config():
    config = default.get_config()
    config.model = "baseline_a_2d"
    config.mel.update(reference="fixed", top_db=100.0)
    return config


@pytest.fixture(scope="module")
def run(prepared, corpus, tmp_path_factory):
    """Config and workdir of a run on fixed levels, whose records lie beside the others."""
    config = fixed_config()
    config.data_dir = str(tmp_path_factory.mktemp("fixed"))
    shutil.copytree(prepared.data_dir, config.data_dir, dirs_exist_ok=True)
    preparation.prepare(config, ("mel",), audio_dir=corpus / "fma_small", workers=2)
    workdir = tmp_path_factory.mktemp("runs") / "run"
    flags = [f"--config={ROOT}/configs/baseline_a_2d.py", f"--workdir={workdir}"]
    for key in ("data_dir", "mel.reference", "mel.top_db"):
        flags.append(f"--config.{key}={_get(config, key)}")
    flags += ["--config.batch_size=8", "--config.num_epochs=1", "--config.augment.gain_db=3"]
    call("main", *flags).check_returncode()
    return config, workdir


def _get(config, key):
    for name in key.split("."):
        config = config[name]
    return config


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("song") / "song.flac"
    write_audio(path, 21.0)
    return path


@pytest.mark.parametrize("gain", [1.0, 0.01])
def test_decibels_are_librosas(song, gain):
    (mel,) = make_features(("mel",), fixed_config())
    clip = gain * next(audio.read_clips(song, 16000, 160_000)).samples
    power = librosa.feature.melspectrogram(
        y=clip, sr=16000, n_fft=2048, hop_length=1250, n_mels=513
    )
    expected = librosa.power_to_db(power.T[:128], ref=1e5, amin=1e-10, top_db=None)
    expected = np.clip(expected, -100, 0)
    assert np.abs(mel.log_mel(clip) - expected).max() < 0.01
    stored = mel.encode(clip)
    assert np.abs(mel.decode(mel.network_input(stored)) - expected).max() < 0.5 * 100 / 255 + 0.02
    with jax.enable_x64(True):
        on_device = np.asarray(mel.encode_on_device(clip[None]))[0]
    assert np.abs(on_device - stored).max() <= 1


def test_records_of_both_references_lie_apart(run, prepared):
    config, _ = run
    fixed = open_dataset(config, ("mel",))
    assert fixed.path.parent.name == "melfixed"
    assert fixed.metadata["settings"]["mel"]["reference"] == "fixed"
    config = prepared.copy_and_resolve_references()
    config.data_dir = str(fixed.path.parents[2])
    other = open_dataset(config, ("mel",))
    assert other.path.parent.name == "mel_waveform"
    assert not np.array_equal(
        *(d.splits["test"].gather(np.arange(2))["mel"] for d in (fixed, other))
    )


def test_older_records_and_configs_are_relative_to_the_maximum(own_data):
    path = open_dataset(own_data, ("mel",)).path / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["checksum"]  # which older ones have not
    assert metadata["settings"]["mel"].pop("reference") == "max"
    path.write_text(json.dumps(metadata))
    open_dataset(own_data, ("mel",))
    stored = own_data.to_dict()
    del stored["mel"]["reference"]
    assert make_features(("mel",), stored)[0].reference == "max"
    metadata["settings"]["mel"]["reference"] = "fixed"
    path.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="mel.reference is fixed there, max in the config"):
        open_dataset(own_data, ("mel",))


def test_bands_of_the_training_split_are_standardised(run):
    config, workdir = run
    network = load_run(workdir).network
    train = open_dataset(config, ("mel",)).splits["train"]
    x = network.inputs(train.gather(np.arange(len(train))))["mel"].reshape(-1, 513)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-3)
    stored = train.gather(np.arange(len(train)))["mel"].reshape(-1, 513)
    varied = stored.std(axis=0) > 1
    assert varied.sum() > 500
    np.testing.assert_allclose(x.std(axis=0)[varied], 1, atol=1e-3)
    found = levels.measure(train, network.features[0])
    np.testing.assert_allclose(found.mean, stored.mean(axis=0) / 127.5 - 1, atol=1e-6)
    assert (found.deviation >= np.float32(2 / 255)).all()
    kept = network.features[0].levels
    for one, other in zip(found, kept, strict=True):  # to the bit, after a way through JSON
        np.testing.assert_array_equal(one, other)


def test_predict_and_export_standardise(run, song, tmp_path):
    _, workdir = run
    network, variables, *_, temperature = load_run(workdir)
    stored = np.stack([c.features["mel"] for c in iter_clips(str(song), network.stored)])
    kept = json.loads((workdir / "levels.json").read_text())["mel"]
    x = (stored / 127.5 - 1 - np.array(kept["mean"])) / np.array(kept["deviation"])
    logits = network.module.apply(variables, x.astype(np.float32), train=False)
    expected = np.asarray(jax.nn.softmax(logits / temperature))
    (found,) = mgc_jax.load(workdir).predict(song)
    np.testing.assert_allclose(found.timeline, expected, atol=1e-4)
    export_run(workdir, tmp_path)
    data = bytearray((tmp_path / "network.jax_export").read_bytes())
    clips = np.stack([clip.samples for clip in audio.read_clips(song, 16000, 160_000)])
    exported = np.asarray(jax_export.deserialize(data).call(clips))
    np.testing.assert_allclose(exported, expected, atol=1e-3)


def test_a_run_without_its_levels_is_refused(run, tmp_path):
    """Also to be evaluated, where they could be measured anew."""
    _, workdir = run
    network = load_run(workdir).network
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "levels.json").unlink()
    with pytest.raises(InputError, match="levels.json is missing"):
        load_run(tmp_path / "run")
    with pytest.raises(InputError, match="levels.json is missing"):
        best_variables(tmp_path / "run", network)


def test_augmentation_keeps_levels(song):
    """Of a quiet clip, seen standardised: a gain is heard, and a maximum is not raised to 0 dB."""
    config = fixed_config()
    config.augment.update(gain_db=6.0, stretch_probability=0.5)
    (mel,) = make_features(("mel",), config)
    rng = np.random.default_rng(0)
    found = Levels(*np.float32([rng.uniform(-1, 1, 513), rng.uniform(0.1, 1, 513)]))
    mel = dataclasses.replace(mel, levels=found)
    clip = 0.05 * next(audio.read_clips(song, 16000, 160_000)).samples
    x = mel.network_input(mel.encode(clip))
    np.testing.assert_allclose(mel.from_power(mel.to_power(x)), x, atol=1e-3)
    augmenter = Augmenter(config, [mel])
    draw = augmenter.draw(jax.random.key(0))._replace(rate=jnp.float32(1.0), gain=jnp.float32(2.0))
    louder = mel.decode(np.asarray(augmenter.apply(mel, None, draw, x)))
    before = mel.decode(x)
    inside = before > -90
    np.testing.assert_allclose((louder - before)[inside], 20 * np.log10(2), atol=0.01)


def test_unknown_reference():
    config = fixed_config()
    config.mel.reference = "fix"
    with pytest.raises(InputError, match="mel.reference='fix': "):
        make_features(("mel",), config)
