"""Log-mel and storage forms, against librosa."""

import dataclasses

import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from shared import write_audio

from mgc_jax.configs import default
from mgc_jax.data import features
from mgc_jax.data.audio import read_clips
from mgc_jax.data.clips import iter_clips
from mgc_jax.data.spectrum import mel_filterbank
from mgc_jax.errors import InputError

MEL, WAVEFORM = features.make_features(("mel", "waveform"), default.get_config())
RATE, SAMPLES = MEL.audio.sample_rate, MEL.audio.clip_samples


def librosa_mel(clip, s):
    power = librosa.feature.melspectrogram(
        y=clip,
        sr=s.audio.sample_rate,
        n_fft=s.n_fft,
        hop_length=s.hop_length,
        n_mels=s.n_mels,
        power=2,
    )
    return librosa.power_to_db(power[:, : s.frames].T, ref=np.max, top_db=s.top_db)


def music_like_clip(seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(SAMPLES) / RATE
    tone = np.sin(2 * np.pi * (220 + 40 * t) * t) * 0.4
    noise = rng.normal(size=len(t)) * 0.1 * (t % 1 < 0.1)
    return (tone + noise).astype(np.float32)


@pytest.mark.parametrize(
    "sample_rate,n_fft,n_mels", [(16000, 2048, 513), (22050, 1024, 64), (1600, 512, 20)]
)
def test_filterbank_equals_librosa(sample_rate, n_fft, n_mels):
    np.testing.assert_allclose(
        mel_filterbank(sample_rate, n_fft, n_mels),
        librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels),
        atol=1e-8,
    )


@pytest.mark.parametrize(
    "changes", [{}, {"n_mels": 128, "frames": 513, "hop_length": 312}, {"top_db": 60.0}]
)
def test_log_mel_equals_librosa(changes):
    mel = dataclasses.replace(MEL, **changes)
    clip = music_like_clip()
    found = mel.log_mel(clip)
    assert found.shape == (mel.frames, mel.n_mels) == mel.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, librosa_mel(clip, mel), atol=0.01)
    assert found.max() == 0 and found.min() >= -mel.top_db


@pytest.mark.parametrize("extension", ["mp3", "ogg", "flac", "wav"])
@pytest.mark.parametrize("rate,channels", [(8000, 1), (44100, 2), (96000, 6)])
def test_files_equal_librosa_from_end_to_end(tmp_path, extension, rate, channels):
    """What the records hold, against `librosa.load` and librosa's own log-mel of it."""
    if extension == "mp3":  # at most 48 kHz and stereo
        rate, channels = min(rate, 48000), min(channels, 2)
    if extension == "ogg" and rate == 96000:
        rate = 48000  # libvorbis
    path = tmp_path / f"x.{extension}"
    write_audio(path, 11, rate, channels)
    stored = next(iter_clips(str(path), (MEL, WAVEFORM))).features
    clip = next(read_clips(path, RATE, SAMPLES)).samples
    waveform = librosa.load(path, sr=RATE)[0][:SAMPLES]
    expected = librosa_mel(waveform, MEL)
    np.testing.assert_allclose(clip, waveform, atol=1e-6)
    np.testing.assert_allclose(MEL.log_mel(clip), expected, atol=0.01)
    assert np.abs(MEL.decode(MEL.network_input(stored["mel"])) - expected).max() < 0.16
    assert np.abs(stored["waveform"] / 32768 - np.clip(waveform, -1, 1)).max() < 1.1 / 32768


def test_silence_is_zero_db_as_in_librosa():
    silence = np.zeros(SAMPLES, np.float32)
    assert (librosa_mel(silence, MEL) == 0).all()
    assert (MEL.log_mel(silence) == 0).all()


def test_stored_mel_is_within_0_16_db():
    expected = librosa_mel(music_like_clip(1), MEL)
    stored = MEL.encode(music_like_clip(1))
    assert stored.dtype == np.uint8 and stored.max() == 255
    found = MEL.decode(MEL.network_input(stored))
    assert np.abs(found - expected).max() < 0.16


def test_stored_waveform_clips_overshoot():
    stored = WAVEFORM.encode(np.array([-2, -1, -0.5, 0, 0.5, 1, 2], np.float32))
    assert stored.tolist() == [-32768, -32768, -16384, 0, 16384, 32767, 32767]


@pytest.mark.parametrize("numbers", [np, jnp])
def test_network_inputs(numbers):
    mel = MEL.network_input(numbers.array([0, 51, 255], dtype="uint8"))
    np.testing.assert_allclose(mel, [-1, -0.6, 1], atol=1e-6)
    waveform = WAVEFORM.network_input(numbers.array([-32768, 16384], dtype="int16"))
    np.testing.assert_allclose(waveform, [-1, 0.5])
    assert mel.dtype == waveform.dtype == np.float32


def test_too_many_frames():
    with pytest.raises(InputError, match="mel.frames=513.*129 frames at mel.hop_length=1250"):
        dataclasses.replace(MEL, frames=513)
