"""Augmentation: against librosa, on one device and eight, on and off."""

import importlib
import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from child import Python
from shared import once

from mgc_jax import parallel
from mgc_jax.configs import default
from mgc_jax.data.features import make_features
from mgc_jax.errors import InputError
from mgc_jax.models import MODELS
from mgc_jax.training import augment
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.network import Network
from mgc_jax.training.noise import add_noise_to_mel, cut, make_noise, places
from mgc_jax.training.step import create_train_state, train_step

CONFIG = default.get_config()
MEL, WAVEFORM = FEATURES = make_features(("mel", "waveform"), CONFIG)
ALL_ON = {
    "noise_probability": 0.6,
    "stretch_probability": 0.6,
    "gain_db": 6.0,
    "shift_seconds": 3.0,
    "time_masks": 2,
    "mel_masks": 2,
    "mixup_alpha": 0.4,
}


def config_with(**strengths):
    config = default.get_config()
    config.augment.update(strengths)
    return config


def librosa_mel(waveform):
    """`[frames, mels]`, dB."""
    s = MEL
    power = librosa.feature.melspectrogram(
        y=waveform, sr=s.audio.sample_rate, n_fft=s.n_fft, hop_length=s.hop_length, n_mels=s.n_mels
    )
    return librosa.power_to_db(power[:, : s.frames].T, ref=np.max, top_db=s.top_db)


def to_db(x):
    return MEL.decode(np.asarray(x))


def augmented(config, batch, step=3):
    """What the augmenter makes of a batch, on all devices."""

    features = [feature for feature in FEATURES if feature.name in batch]

    augmenter = Augmenter(config, features)

    def function(step, batch, noise):
        found = augmenter(batch, step, noise)
        return jax.tree.map(lambda x: jax.lax.all_gather(x, parallel.AXIS, tiled=True), found)

    compiled = parallel.data_parallel(function, kept=augmenter.noise())
    found = compiled(jnp.int32(step), batch)
    return {name: np.asarray(x) for name, x in found.items()}


def many_draws(config, count, **unwanted):
    draw = jax.jit(jax.vmap(lambda key: Augmenter(config, FEATURES).draw(key)._replace(**unwanted)))
    return jax.tree.map(np.asarray, draw(jax.random.split(jax.random.key(0), count)))


@pytest.fixture(scope="module")
def batch(dataset):
    """Eight clips of the demo's music, as networks take them."""
    stored = dataset.splits["train"].gather(np.arange(0, 16, 2))
    inputs = {feature.name: feature.network_input(stored[feature.name]) for feature in FEATURES}
    return {**inputs, "label": stored["label"]}


def test_off_gives_the_same_bits(batch):
    found = augmented(CONFIG, batch)
    assert found.keys() == batch.keys()
    for name in batch:
        np.testing.assert_array_equal(found[name], batch[name])


def test_clips_that_draw_nothing_keep_their_bits(batch):
    config = config_with(noise_probability=0.5)
    found = augmented(config, batch)
    changed = [(found[name] != batch[name]).any(axis=-1) for name in ("mel", "waveform")]
    changed[0] = changed[0].any(axis=-1)
    np.testing.assert_array_equal(*changed)
    assert 0 < changed[0].sum() < 8
    found = augmented(config_with(stretch_probability=0.5), batch)
    assert 0 < (found["waveform"] == batch["waveform"]).all(axis=-1).sum() < 8


def test_strengths_are_drawn_as_the_config_says():
    config = config_with(**ALL_ON)
    draws = many_draws(config, 3000, masked=0)
    stretched = draws.rate != 1
    assert stretched.mean() == pytest.approx(0.6, abs=0.04)
    log_rates = np.log(draws.rate[stretched]) / np.log(1.25)
    assert abs(log_rates).max() <= 1.0001
    assert log_rates.mean() == pytest.approx(0, abs=0.05)
    assert log_rates.std() == pytest.approx(1 / np.sqrt(3), abs=0.03)
    noisy = draws.noise_level > 0
    snr = -20 * np.log10(draws.noise_level[noisy])
    assert noisy.mean() == pytest.approx(0.6, abs=0.04)
    assert 15 <= snr.min() < 16 and 39 < snr.max() <= 40.001
    gain_db = 20 * np.log10(draws.gain)
    assert -6.001 <= gain_db.min() < -5.9 and 5.9 < gain_db.max() <= 6.001
    assert set(np.unique(draws.shift)) == set(range(-38, 39))  # 3 s of 1250 / 16000 s
    assert draws.mix.mean() == pytest.approx(0.5, abs=0.03)
    assert draws.mix.var() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)  # Beta(0.4, 0.4)
    assert draws.noise_start.min() < 50 and 8000 < draws.noise_start.max() <= 63 * 128
    together = [stretched, noisy, gain_db, draws.shift, draws.mix, draws.noise_start]
    assert abs(np.corrcoef(together) - np.eye(6)).max() < 0.08


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        jax.jit(Augmenter(config_with(**ALL_ON), FEATURES).draw)(jax.random.key(0))


def test_draws_depend_on_seed_step_and_position_alone(batch):
    config = config_with(noise_probability=1.0)
    equal = {name: np.repeat(x[:1], 8, axis=0) for name, x in batch.items()}
    first = augmented(config, equal)["waveform"]
    np.testing.assert_array_equal(first, augmented(config, equal)["waveform"])
    config.seed = 1
    others = [augmented(config, equal)["waveform"]]
    config.seed = 0
    others.append(augmented(config, equal, step=4)["waveform"])
    noises = np.concatenate([first, *others]) - equal["waveform"][0]
    assert abs(np.corrcoef(noises) - np.eye(24)).max() < 0.02


_RUN_ON_DEVICES = """
import sys, numpy as np, jax
from tests.test_augment import ALL_ON, augmented, config_with
assert jax.device_count() == 8
np.savez(sys.argv[2], **augmented(config_with(**ALL_ON), dict(np.load(sys.argv[1]))))
"""


def test_same_on_eight_devices(batch, tmp_path):
    np.savez(tmp_path / "in.npz", **batch)
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    files = [str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    done = Python("-c", _RUN_ON_DEVICES, *files, env=environment).finish()
    assert done.returncode == 0, done.stderr
    found = np.load(files[1])
    expected = augmented(config_with(**ALL_ON), batch)
    assert set(found) == set(expected) == {"mel", "waveform", "label", "share", "other_label"}
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_spectrum_equals_librosa(batch):
    expected = librosa.stft(batch["waveform"][0], n_fft=2048, hop_length=512).T
    np.testing.assert_allclose(augment.stft(batch["waveform"][0], 2048, 512), expected, atol=1e-4)


@pytest.mark.parametrize("rate", [0.8125, 0.93, 1.1, 1.25])
def test_phase_vocoder_equals_librosa(batch, rate):
    """In float64: in float32 librosa sums phases of up to 500,000 rad and is far off itself."""
    waveform = batch["waveform"][1].astype(np.float64)
    spectrum = librosa.stft(waveform, n_fft=2048, hop_length=512)
    expected = librosa.phase_vocoder(spectrum, rate=rate).T
    found = jax.jit(augment.phase_vocoder)(spectrum.T.astype(np.complex64), np.float32(rate))
    frames = min(313, int(312 / rate))  # beyond, librosa reads silence, we the start
    assert abs(expected).max() > 10
    np.testing.assert_allclose(found[:frames], expected[:frames], atol=1e-3)
    samples = frames * 512 - 2048
    np.testing.assert_allclose(
        augment.stretch_waveform(waveform.astype(np.float32), np.float32(rate), 2048)[:samples],
        librosa.effects.time_stretch(waveform, rate=rate)[:samples],
        atol=1e-3,
    )


def test_stretched_clips_start_again_at_the_end():
    """Loud for the first 2 of 10 s: at 1.25 times the speed up to 1.6 s, and from 8 s to 9.6 s."""
    noise = np.random.default_rng(0).normal(size=160000)
    waveform = (noise * np.repeat([1, 0.01], [32000, 128000])).astype(np.float32)
    rate = np.float32(1.25)
    samples = np.reshape(augment.stretch_waveform(waveform, rate, 2048), (128, -1))
    mel = to_db(augment.stretch_mel(librosa_mel(waveform) / 40 + 1, rate, MEL))
    for level in (20 * np.log10(samples.std(axis=1)), mel[:, 300:].mean(axis=1)):
        edges = np.flatnonzero(np.diff(level > (level.max() + level.min()) / 2))
        np.testing.assert_allclose(edges * 10 / 128, [1.6, 8, 9.6], atol=0.2)


@pytest.mark.parametrize("rate", [0.8, 0.9, 1.1, 1.25])
def test_stretched_mel_is_near_that_of_the_stretched_waveform(batch, rate):
    """Mean difference and correlation; the mel that is not stretched is the yardstick."""
    found, still, alike = [], [], []
    for waveform, x in zip(batch["waveform"][:4], batch["mel"], strict=False):
        expected = librosa_mel(librosa.effects.time_stretch(waveform, rate=rate))
        frames = min(128, int(128 / rate)) - 2
        stretched = to_db(augment.stretch_mel(x, np.float32(rate), MEL))
        pairs = [mel[:frames] - mel[:frames].max() for mel in (expected, stretched, to_db(x))]
        found.append(abs(pairs[1] - pairs[0]).mean())
        still.append(abs(pairs[2] - pairs[0]).mean())
        alike.append(np.corrcoef(pairs[0].ravel(), pairs[1].ravel())[0, 1])
    assert np.mean(found) < 0.6 * np.mean(still)
    assert np.mean(found) < 4.5 and np.mean(alike) > 0.9


@pytest.mark.parametrize("snr_db", [5, 20, 40])
def test_noisy_mel_is_distributed_as_that_of_the_noisy_waveform(batch, snr_db):
    rng = np.random.default_rng(0)
    draws, level = 60, 10 ** (-snr_db / 20)
    noises = rng.normal(size=(draws, MEL.audio.clip_samples)).astype(np.float32)
    stored = make_noise((MEL,), 0)["mel"]
    starts = rng.integers(places(MEL, 1), size=draws)
    add = jax.jit(
        lambda x, start: add_noise_to_mel(x, cut(stored, start, MEL), np.float32(level), MEL)
    )
    for index in (2, 5):
        waveform = batch["waveform"][index]
        scale = level * np.sqrt(np.mean(waveform**2))
        expected = np.stack([librosa_mel(waveform + scale * noise) for noise in noises])
        found = np.stack([to_db(add(batch["mel"][index], start)) for start in starts])
        means = [mels.mean(axis=(0, 1)) for mels in (found, expected)]
        spreads = [mels.std(axis=0).mean(axis=0) for mels in (found, expected)]
        np.testing.assert_allclose(means[0], means[1], atol=1.0)
        assert means[0].mean() == pytest.approx(means[1].mean(), abs=0.15)
        np.testing.assert_allclose(spreads[0], spreads[1], atol=1.5)
        assert spreads[0].mean() == pytest.approx(spreads[1].mean(), rel=0.1)
        edge = [mels[:, 0].mean() for mels in (found, expected)]
        assert edge[0] == pytest.approx(edge[1], abs=0.3)


def test_noise_that_drowns_the_clip_has_its_own_mel(batch):
    """But for the first frame, which begins before the clip."""
    noise = make_noise(FEATURES, 0)
    mel, waveform = (np.asarray(cut(noise[f.name], 125000, f)) for f in FEATURES)
    assert np.mean(waveform**2) == pytest.approx(1, abs=0.02)
    found = to_db(add_noise_to_mel(batch["mel"][0], mel, 1e5, MEL))[1:]
    expected = librosa_mel(waveform)[1:]
    np.testing.assert_allclose(found - found.max(), expected - expected.max(), atol=0.05)


def test_both_inputs_get_one_draw(batch):
    """The mel of the augmented waveform is the augmented mel, near enough to tell clips apart."""
    equal = {name: np.repeat(x[2:3], 4, axis=0) for name, x in batch.items()}
    strengths = {"noise_probability": 1.0, "noise_min_snr_db": 10.0, "noise_max_snr_db": 30.0}
    strengths |= {"stretch_probability": 1.0, "gain_db": 6.0, "shift_seconds": 5.0}
    found = augmented(config_with(**strengths), equal)
    mels = np.stack([librosa_mel(waveform) for waveform in found["waveform"]])
    difference = abs(mels[:, None] - to_db(found["mel"])).mean(axis=(2, 3))
    assert (difference.argmin(axis=1) == np.arange(4)).all()
    assert difference.diagonal().max() < 4.5


def test_gain_and_shift(batch):
    found = augmented(config_with(gain_db=6.0), batch)
    np.testing.assert_array_equal(found["mel"], batch["mel"])
    loud = abs(batch["waveform"]) > 0.01
    gains = [found["waveform"][i][loud[i]] / batch["waveform"][i][loud[i]] for i in range(8)]
    assert len({round(float(gain.mean()), 3) for gain in gains}) == 8
    assert all(gain.std() < 1e-5 and 0.5 < gain.mean() < 2 for gain in gains)
    found = augmented(config_with(shift_seconds=5.0), batch)
    for i in range(8):
        shift = [k for k in range(128) if (np.roll(batch["mel"][i], k, 0) == found["mel"][i]).all()]
        expected = np.roll(batch["waveform"][i], shift[0] * 1250)
        np.testing.assert_array_equal(found["waveform"][i], expected)


def test_masks(batch):
    config = config_with(time_masks=1, time_mask_frames=10, mel_masks=2, mel_mask_bands=40)
    masked = many_draws(config, 1000, mix=0).masked["mel"]
    frames, bands = masked.all(axis=2), masked.all(axis=1)
    widths = frames.sum(axis=1)
    np.testing.assert_allclose(np.bincount(widths) / 1000, 1 / 11, atol=0.04)  # 0 to 10
    assert (abs(np.diff(frames, axis=1)).sum(axis=1) <= 2).all()  # one piece
    assert frames[:, 0].any() and frames[:, -1].any() and bands[:, 0].any() and bands[:, -1].any()
    assert bands.sum(axis=1).max() > 60 and bands.sum(axis=1).max() <= 80
    np.testing.assert_array_equal(masked, frames[:, :, None] | bands[:, None])
    found = augmented(config, batch)["mel"]
    for x, original in zip(found, batch["mel"], strict=True):
        hidden = x != original
        assert 0 < hidden.mean() < 0.4
        np.testing.assert_allclose(x[hidden], original.mean(), rtol=1e-4)


def test_mixup_blends_inputs_and_labels(batch):
    found = augmented(config_with(mixup_alpha=1.0), batch)
    share = found["share"]
    for name in ("mel", "waveform"):
        x = batch[name].reshape(8, -1)
        expected = share[:, None] * x + (1 - share[:, None]) * np.roll(x, -1, axis=0)
        np.testing.assert_allclose(found[name].reshape(8, -1), expected, atol=1e-6)
    labels = np.zeros((8, 8))
    for i, (own, other) in enumerate(zip(batch["label"], np.roll(batch["label"], -1), strict=True)):
        labels[i, own] += share[i]
        labels[i, other] += 1 - share[i]
    np.testing.assert_allclose(augment.soft_labels(found, 8), labels, atol=1e-6)


def test_step_learns_from_soft_labels(config, dataset):
    """Loss and top-1 of a bfloat16 step, against the labels worked out by hand."""
    config.augment.update(noise_probability=0.5, mixup_alpha=0.4)
    config.dtype = "bfloat16"
    stored = dataset.splits["train"].gather(np.arange(8))
    network = Network.from_config(config, dataset.genres)
    state = create_train_state(network)
    augmenter = Augmenter(config, network.features)
    step = parallel.data_parallel(
        lambda s, b, noise: train_step(s, b, network, partial(augmenter, noise=noise)),
        kept=augmenter.noise(),
    )
    _, scores = step(state, {"mel": stored["mel"], "label": stored["label"]})
    mel = MEL.network_input(stored["mel"])
    found = augmented(config, {"mel": mel, "label": stored["label"]}, step=0)
    module = network.module.clone(axis_name=None)
    apply = once(partial(module.apply, train=True, mutable="batch_stats"))
    logits, _ = apply(state.variables, found["mel"])
    share, rows = found["share"], np.arange(8)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    own, other = log_probs[rows, stored["label"]], log_probs[rows, np.roll(stored["label"], -1)]
    assert scores["loss"] == pytest.approx(-(share * own + (1 - share) * other).mean(), rel=1e-2)
    heavier = np.where(share > 0.5, stored["label"], np.roll(stored["label"], -1))
    assert scores["top1"] == (log_probs.argmax(axis=1) == heavier).mean()


def test_pictures_show_what_is_on(batch):
    mel = batch["mel"][0]
    assert augment.augmented_forms(CONFIG, MEL, mel) == []
    forms = dict(augment.augmented_forms(config_with(**ALL_ON), MEL, mel))
    names = ["white noise, SNR 15 dB", "time-stretched, rate 1.25", "time-stretched, rate 0.8"]
    assert list(forms) == [*names, "masks"]
    assert forms[names[0]].mean() > mel.mean() and (forms["masks"] != mel).any()
    np.testing.assert_allclose(
        forms[names[1]], augment.stretch_mel(mel, np.float32(1.25), MEL), atol=1e-5
    )
    waveform = batch["waveform"][0]
    forms = dict(augment.augmented_forms(config_with(gain_db=6.0), WAVEFORM, waveform))
    np.testing.assert_allclose(forms["gain 6 dB"], waveform * 10 ** (6 / 20), rtol=1e-5)


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("noise_probability", 1.5, "noise_probability=1.5 is not between 0 and 1"),
        ("noise_max_snr_db", 3.0, "noise_max_snr_db=3 is not between 15 and inf"),
        ("stretch_max_rate", 0.8, "stretch_max_rate=0.8 is not between 1 and inf"),
        ("time_mask_frames", 129, "time_mask_frames=129 is not between 0 and 128"),
        ("mixup_alpha", float("nan"), "mixup_alpha=nan is not between"),
    ],
)
def test_strengths_out_of_range(key, value, message):
    on = {"noise_probability": 0.5, "stretch_probability": 0.5, "time_masks": 1}
    with pytest.raises(InputError, match=f"config.augment.{message}"):
        Augmenter(config_with(**on | {key: value}), FEATURES)


def test_configs():
    code = Path(augment.__file__).read_text()
    assert all(f"c.{key}" in code for key in CONFIG.augment)
    for name in (*MODELS, "demo"):
        strengths = importlib.import_module(f"mgc_jax.configs.{name}").get_config().augment
        off = name in ("demo", "musicnn", "probe")  # musicnn is trained as it was published
        expected = set() if off else {"noise_probability", "stretch_probability"}
        assert {key for key in ALL_ON if strengths[key]} == expected
