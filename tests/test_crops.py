"""Stretches of stored clips: what a step trains on, and what is averaged to predict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export
from shared import train, write_audio

import mgc_jax
from mgc_jax import parallel
from mgc_jax.configs import default, recipe
from mgc_jax.data import audio, preparation
from mgc_jax.data.clips import iter_clips
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError
from mgc_jax.exporter import export_run
from mgc_jax.models import MODELS
from mgc_jax.results.files import write_config, write_genres
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.claim import check_config
from mgc_jax.training.crops import places, random_stretches
from mgc_jax.training.network import Network, load_run
from mgc_jax.training.step import create_train_state, train_step

CLIPS = 400


def small(model="fusionnet", **changes):
    """A config of clips of 3 s in 30 frames, of which a network sees 1 s."""
    config = default.get_config()
    config.audio.update(sample_rate=1000, clip_seconds=3.0)
    config.mel.update(n_fft=256, hop_length=100, n_mels=8, frames=30)
    config.update(model=model, crop_seconds=1.0, **changes)
    return config


def stretches(config, batch, step):
    network = Network.from_config(config, ["one", "other"])

    def function(step, batch):
        found = random_stretches(batch, step, network)
        return jax.tree.map(lambda x: jax.lax.all_gather(x, parallel.AXIS, tiled=True), found)

    return jax.tree.map(np.asarray, parallel.data_parallel(function)(jnp.int32(step), batch))


def test_both_inputs_are_of_the_same_instants():
    """Frames and samples that hold their own number."""
    samples = np.broadcast_to(np.arange(3000, dtype=np.int16), (CLIPS, 3000))
    frames = np.broadcast_to(np.arange(30, dtype=np.uint8)[:, None], (CLIPS, 30, 8))
    batch = {"mel": frames, "waveform": samples, "label": np.zeros(CLIPS, np.int32)}
    found = stretches(small(), batch, 0)
    starts = found["mel"][:, 0, 0].astype(int)
    assert found["mel"].shape == (CLIPS, 10, 8) and found["mel"].dtype == np.uint8
    np.testing.assert_array_equal(found["mel"][:, :, 3], starts[:, None] + np.arange(10))
    expected = 100 * starts[:, None] + np.arange(1000)
    np.testing.assert_array_equal(found["waveform"], expected)
    # Each of the 21 places about 19 times.
    counts = np.bincount(starts, minlength=21)
    assert len(counts) == 21 and counts.min() > 4 and counts.max() < 45
    again = stretches(small(), batch, 1)["mel"][:, 0, 0].astype(int)
    assert abs(np.corrcoef(starts, again)[0, 1]) < 0.2
    # A waveform alone has the same places.
    alone = {name: batch[name] for name in ("waveform", "label")}
    other = stretches(small("baseline_a_1d"), alone, 0)["waveform"]
    np.testing.assert_array_equal(other, found["waveform"])


def steps(config, dataset):
    """The parameters after two steps."""
    network = Network.from_config(config, dataset.genres)
    augmenter = Augmenter(config, network.features)

    def step(state, batch, noise):
        return train_step(state, batch, network, lambda b, s: augmenter(b, s, noise))

    step = parallel.data_parallel(step, kept=augmenter.noise())
    state = create_train_state(network)
    for number in range(2):
        batch = dataset.splits["train"].gather(np.arange(8) + 8 * number)
        state, _ = step(state, {"mel": batch["mel"], "label": batch["label"]})
    return jax.tree.map(np.asarray, state.params)


def test_stretches_as_long_as_the_clip_are_the_clip(config, dataset):
    """To the bit; noise and mixup draw from other keys."""
    config.augment.update(noise_probability=0.5, mixup_alpha=0.4)
    off = steps(config, dataset)
    config.crop_seconds = 10.0
    jax.tree.map(np.testing.assert_array_equal, steps(config, dataset), off)


@pytest.fixture(scope="module")
def tracks(prepared, corpus, tmp_path_factory):
    """The config of records of whole tracks, and a run of two epochs on stretches of them."""
    config = prepared.copy_and_resolve_references()
    config.data_dir = str(tmp_path_factory.mktemp("tracks"))
    config.update(model="baseline_a_2d", crop_seconds=5.0, windows=3)
    config.update(batch_size=8, num_epochs=2, learning_rate=1e-3)
    config.audio.clip_seconds = 20.0
    config.mel.frames = 256
    config.augment.update(noise_probability=0.5, stretch_probability=0.5, mixup_alpha=0.2)
    config.augment.update(time_masks=1, mel_masks=1, shift_seconds=1.0)
    preparation.prepare(config, ("mel",), audio_dir=corpus / "fma_small", workers=2)
    workdir = tmp_path_factory.mktemp("runs") / "run"
    train(config, workdir)
    write_config(workdir, config.to_dict())
    write_genres(workdir, open_dataset(config, ("mel",)).genres)
    return config, workdir


def by_hand(run, stored):
    """Log-probabilities of clips `[clips, 256, 513] uint8`: starts 0, 96 and 192 of 64 frames."""
    found = []
    for start in (0, 96, 192):
        x = stored[:, start : start + 64] / np.float32(255) * 2 - 1
        found.append(jax.nn.log_softmax(run.network.module.apply(run.variables, x, train=False)))
    return np.asarray(jax.nn.log_softmax(np.mean(found, axis=0)))


def test_evaluation_averages_windows(tracks):
    config, workdir = tracks
    run = load_run(workdir)
    assert [f.shape for f in run.network.features] == [(64, 513)]
    test = open_dataset(config, ("mel",)).splits["test"]
    batch = test.gather(np.arange(len(test)))
    predict = run.network.predict_step
    found = np.asarray(predict(parallel.replicate(run.variables), batch))
    np.testing.assert_allclose(found, by_hand(run, batch["mel"]), atol=1e-4)


def test_predict_and_export_average_windows(tracks, tmp_path):
    _, workdir = tracks
    write_audio(tmp_path / "song.flac", 41.0)
    run = load_run(workdir)
    clips = list(iter_clips(str(tmp_path / "song.flac"), run.network.stored))
    expected = np.exp(by_hand(run, np.stack([clip.features["mel"] for clip in clips])))
    (found,) = mgc_jax.load(workdir).predict(tmp_path / "song.flac", spectrograms=True)
    assert found.clip_seconds == 20.0 and len(found.spectrogram) > 500
    np.testing.assert_allclose(found.timeline, expected, atol=1e-4)

    # Waveforms of the same clips, through the exported function.
    config = run.network.config
    wave = run.network.stored[0].audio
    samples = audio.read_clips(tmp_path / "song.flac", config.audio.sample_rate, wave.clip_samples)
    export_run(workdir, tmp_path / "exported")
    data = (tmp_path / "exported" / "network.jax_export").read_bytes()
    exported = jax_export.deserialize(bytearray(data))
    probabilities = exported.call(np.stack([clip.samples for clip in samples]))
    np.testing.assert_allclose(np.asarray(probabilities), expected, atol=1e-3)


def test_stretches_of_clips_on_the_devices_are_the_same(tracks, tmp_path, monkeypatch):
    config, whole = tracks
    config = config.copy_and_resolve_references()
    monkeypatch.setattr(parallel, "device_memory", lambda: 10**9)
    train(config, tmp_path / "run")
    write_config(tmp_path / "run", config.to_dict())
    write_genres(tmp_path / "run", open_dataset(config, ("mel",)).genres)
    jax.tree.map(
        np.testing.assert_array_equal,
        load_run(tmp_path / "run").variables,
        load_run(whole).variables,
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_recipe_takes_any_network(name):
    network = Network.from_config(recipe.get_config(name), ["one", "other"])
    assert network.features[0].audio.clip_seconds == 10 and places(network) > 250


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"crop_seconds": 4.0}, "crop_seconds=4 is not between 0 and config.audio.clip_seconds=3"),
        ({"windows": 0}, "config.windows=0: at least 1"),
        ({"mel": {"frames": 9}}, "10 frames, but config.mel.frames=9 are stored"),
    ],
)
def test_what_cannot_be_met(changes, message):
    config = small("baseline_a_2d")
    config.update(changes)
    with pytest.raises(InputError, match=message):
        check_config(config)
