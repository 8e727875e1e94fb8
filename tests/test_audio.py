"""Decoding and clips, against librosa and by hand."""

import librosa
import numpy as np
import pytest
from conftest import write_audio

from mgc_jax.audio import load_audio, split_clips
from mgc_jax.errors import InputError


@pytest.mark.parametrize(
    "extension,rate,channels",
    [
        ("mp3", 44100, 2),
        ("mp3", 48000, 1),
        ("mp3", 22050, 2),
        ("ogg", 44100, 2),
        ("flac", 96000, 2),
        ("flac", 16000, 1),
        ("wav", 8000, 1),
        ("wav", 11025, 6),
    ],
)
def test_equals_librosa(tmp_path, extension, rate, channels):
    path = tmp_path / f"name with space.{extension}"
    write_audio(path, 2.3, rate, channels)
    expected, _ = librosa.load(path, sr=16000)
    found = load_audio(path, 16000)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() > 0.1


def test_clips_follow_one_another_and_drop_the_tail():
    clips = split_clips(np.arange(25, dtype=np.float32), sample_rate=1, clip_samples=10)
    assert clips.tolist() == [list(range(10)), list(range(10, 20))]


def test_short_track_is_repeated():
    clips = split_clips(np.arange(4, dtype=np.float32), sample_rate=2, clip_samples=10)
    assert clips.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]


def test_too_short_track():
    with pytest.raises(InputError, match="too short: 0.50 s"):
        split_clips(np.zeros(8000, np.float32), sample_rate=16000, clip_samples=160000)


@pytest.mark.parametrize(
    "content,reason",
    [(b"", "empty file"), (b"not music at all" * 100, "cannot be decoded"), (None, "no such file")],
)
def test_unusable_file_says_why(tmp_path, content, reason):
    path = tmp_path / "x.mp3"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        load_audio(path, 16000)


def test_folder_and_infinite_samples_say_why(tmp_path):
    import soundfile

    with pytest.raises(InputError, match="not a regular file"):
        load_audio(tmp_path, 16000)
    samples = np.full(16000, np.inf, np.float32)
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="not finite"):
        load_audio(tmp_path / "x.wav", 16000)
