"""A second mel feature is one class, one line and one part of the config: from MP3 to logits."""

import dataclasses

import flax.linen as nn
import jax
import librosa
import numpy as np
import pytest
from ml_collections import ConfigDict
from shared import train

import mgc_jax
from mgc_jax.data import preparation
from mgc_jax.data.audio import load_audio
from mgc_jax.data.features import FEATURES, Mel
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.models import MODELS
from mgc_jax.models.layers import Network
from mgc_jax.results.files import write_config, write_genres
from mgc_jax.training.augment import augmented_forms
from mgc_jax.training.network import load_run


@dataclasses.dataclass(frozen=True)
class Powers(Mel):
    """log10(1 + 10000 x) of the mel's powers, without reference to a maximum."""

    name = "powers"

    @property
    def limits(self) -> tuple[float, float]:
        return (0.0, self.top_db)

    def compress(self, power, xp):
        return xp.clip(xp.log10(1 + 10_000 * power), 0, self.top_db).astype(power.dtype)

    def to_power(self, x):
        return (10 ** self.decode(x) - 1) / 10_000

    def from_power(self, power):
        import jax.numpy as jnp

        return self.compress(power, jnp) / self.top_db * 2 - 1


class BothMels(Network):
    """The mean over time of two pictures, and one dense layer."""

    inputs = ("mel", "powers")

    @nn.compact
    def __call__(self, mel, powers, train: bool):
        x = nn.Dense(8)(mel.mean(axis=1)) + nn.Dense(8)(powers.mean(axis=1))
        return self.classify(x, train)


@pytest.fixture
def two_mels(corpus, tmp_path, monkeypatch):
    """The config of a network of both pictures, whose records are prepared."""
    from mgc_jax.configs import default

    monkeypatch.setitem(FEATURES, "powers", Powers)
    monkeypatch.setitem(MODELS, "both_mels", BothMels)
    part = {"n_fft": 512, "hop_length": 256, "n_mels": 96, "frames": 620, "top_db": 7.0}
    plain = default.get_config

    def get_config() -> ConfigDict:
        config = plain()
        config.powers = ConfigDict(part)
        return config

    monkeypatch.setattr(default, "get_config", get_config)
    config = get_config()
    config.data_dir = str(tmp_path / "tfrecords")
    config.update(model="both_mels", batch_size=8, num_epochs=1)
    config.augment.update(noise_probability=0.5, stretch_probability=0.5, time_masks=1)
    return config


def test_from_mp3_to_logits(two_mels, corpus, tmp_path, monkeypatch):
    # Decoding in this process, which alone knows the new class.
    from mgc_jax import workers

    def here(function, items, count):
        for item in items:
            yield item, function(item)

    monkeypatch.setattr(preparation, "run_all", here)
    monkeypatch.setattr(workers, "run_all", here)
    preparation.prepare(two_mels, BothMels.inputs, audio_dir=corpus / "fma_small")
    dataset = open_dataset(two_mels, BothMels.inputs)
    assert dataset.path.parent.name == "mel_powers"
    assert dataset.metadata["settings"]["powers"]["n_mels"] == 96
    assert dataset.metadata["librosa_deviation"]["powers_db"] < 0.01

    # What is stored, against librosa's picture of a whole file.
    split = dataset.splits["train"]
    row = int(np.flatnonzero(split.labels["clip"] == 0)[0])
    track = split.labels["track_id"][row]
    path = corpus / "fma_small" / f"{track:06d}"[:3] / f"{track:06d}.mp3"
    clip = load_audio(path, 16000)[:160_000]
    power = librosa.feature.melspectrogram(y=clip, sr=16000, n_fft=512, hop_length=256, n_mels=96)
    expected = np.log10(1 + 10_000 * power.T[:620])
    stored = split.gather(np.array([row]))["powers"][0]
    assert np.abs(stored / 255 * 7 - expected).max() < 7 / 255

    # Trained with augmentation, predicted with, and drawn.
    train(two_mels, tmp_path / "run")
    write_config(tmp_path / "run", two_mels.to_dict())
    write_genres(tmp_path / "run", dataset.genres)
    (found,) = mgc_jax.load(tmp_path / "run").predict(path)
    assert sum(found.ranking.values()) == pytest.approx(1)
    network, variables, *_ = load_run(tmp_path / "run")
    batch = split.gather(np.arange(2))
    logits = network.module.apply(variables, *network.inputs(batch).values(), train=False)
    assert logits.shape == (2, 8) and np.isfinite(logits).all()
    feature = network.features[1]
    seen = feature.network_input(batch["powers"][0])
    assert len(augmented_forms(two_mels, feature, seen)) == 4
    on_device = jax.jit(feature.encode_on_device)(clip[None])[0]
    assert np.abs(np.asarray(on_device) - stored).max() <= 1
