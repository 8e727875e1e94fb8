"""Decoding and clips, against librosa and by hand."""

import os
import struct
import subprocess
import sys

import librosa
import numpy as np
import pytest
import soundfile
from conftest import write_audio

from mgc_jax.data.audio import load_audio, read_blocks, read_clips
from mgc_jax.errors import InputError


def clips_of(path, sample_rate=16000, clip_samples=160000):
    return list(read_clips(path, sample_rate, clip_samples))


@pytest.mark.parametrize(
    "extension,rate,channels",
    [
        ("mp3", 44100, 2),
        ("mp3", 48000, 1),
        ("mp3", 22050, 2),
        ("mp3", 8000, 1),
        ("ogg", 44100, 2),
        ("ogg", 48000, 6),
        ("flac", 96000, 2),
        ("flac", 16000, 1),
        ("flac", 88200, 6),
        ("wav", 8000, 1),
        ("wav", 11025, 6),
        ("wav", 96000, 6),
        ("aiff", 32000, 2),
    ],
)
def test_equals_librosa(tmp_path, extension, rate, channels):
    path = tmp_path / f"name with space\nand line ♫.{extension}"
    write_audio(path, 7.3, rate, channels)  # some blocks
    expected, _ = librosa.load(path, sr=16000)
    found = load_audio(path, 16000)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.abs(found).max() > 0.1


def test_an_mp3_in_blocks_is_what_it_is_in_one_piece(tmp_path):
    """soundfile's own block reading seeks, after which libsndfile may decode differently."""
    path = tmp_path / "x.mp3"
    write_audio(path, 30, 44100)
    whole = soundfile.read(path, dtype="float32")[0].mean(axis=1)
    pieces = list(read_blocks(path, 44100))
    assert len(pieces) > 5
    np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-7)


def test_clips_follow_one_another_and_drop_the_tail(tmp_path):
    samples = np.arange(2500, dtype=np.int16)
    soundfile.write(tmp_path / "x.wav", samples, 1000)
    first, second = clips_of(tmp_path / "x.wav", 1000, 1000)
    np.testing.assert_array_equal(np.concatenate([first, second]) * 32768, samples[:2000])


def test_short_file_is_repeated(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.arange(1200, dtype=np.int16), 1000)
    (clip,) = clips_of(tmp_path / "x.wav", 1000, 3000)
    np.testing.assert_array_equal(clip * 32768, [*range(1200), *range(1200), *range(600)])


def test_too_short_file(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(8000), 16000)
    with pytest.raises(InputError, match="too short: 0.50 s"):
        clips_of(tmp_path / "x.wav")


def make_file(path, kind):
    """Writes what cannot be used; the loop and the pipe are no regular files."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "nothing":
        path.symlink_to(path.with_name("gone"))
    else:
        path.write_bytes({"empty": b"", "text": b"not music at all" * 100}[kind])


UNUSABLE = {
    "empty": "empty file",
    "text": "cannot be decoded: ",
    "folder": "not a regular file",
    "pipe": "not a regular file",
    "device": "not a regular file",
    "loop": "cannot be opened: Too many levels of symbolic links",
    "nothing": "no such file",
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_file_says_why(tmp_path, kind):
    make_file(tmp_path / "x.mp3", kind)
    with pytest.raises(InputError, match=UNUSABLE[kind]):
        load_audio(tmp_path / "x.mp3", 16000)


def test_unreadable_file_says_why(tmp_path):
    write_audio(tmp_path / "x.wav", 1)
    (tmp_path / "x.wav").chmod(0)
    code = """
import os, sys
from mgc_jax.data import audio
if os.geteuid() == 0:  # root reads anything
    os.setuid(65534)
try:
    audio.load_audio("x.wav", 16000)
except audio.InputError as error:
    print(error)
"""
    os.chmod(tmp_path, 0o755)
    # Its folder may be closed to others, so it must be the current one before.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "cannot be opened: Permission denied\n", done.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(tmp_path, value):
    samples = np.zeros(16000 * 25, np.float32)
    samples[-9] = value  # after whole clips
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="not finite"):
        clips_of(tmp_path / "x.wav")


def test_damaged_mp3_gives_the_whole_clips_before_the_damage(tmp_path):
    write_audio(tmp_path / "x.mp3", 35, 44100)
    content = bytearray((tmp_path / "x.mp3").read_bytes())
    sound = clips_of(tmp_path / "x.mp3")
    at = int(0.8 * len(content))
    content[at : at + 20000] = bytes(20000)
    (tmp_path / "x.mp3").write_bytes(content)
    with pytest.raises(InputError, match="damaged after 2[0-9].. s: "):
        load_audio(tmp_path / "x.mp3", 16000)
    kept = clips_of(tmp_path / "x.mp3")
    assert len(kept) == 2 and len(sound) == 3
    np.testing.assert_array_equal(kept, sound[:2])


@pytest.mark.parametrize("extension", ["mp3", "wav", "flac"])
def test_cut_off_file(tmp_path, extension):
    path = tmp_path / f"x.{extension}"
    write_audio(path, 30, 16000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 5])
    with pytest.raises(InputError, match="cut off: [56].. s of the 30.0 s|lost sync"):
        clips_of(path)
    path.write_bytes(content[: len(content) // 2])
    if extension == "flac":  # whose decoder notices: as damage, before which a clip is sound
        assert len(clips_of(path)) == 1
    else:
        with pytest.raises(InputError, match="cut off: 1[45].. s of the 30.0 s"):
            clips_of(path)


def test_wav_that_lies_about_its_length(tmp_path):
    path = tmp_path / "x.wav"
    write_audio(path, 12, 16000, channels=1)
    content = path.read_bytes()

    def claim(size):
        path.write_bytes(content[:40] + struct.pack("<I", size) + content[44:])

    claim(10**9)
    with pytest.raises(InputError, match="cut off: 12.0 s of the 31250.0 s"):
        clips_of(path)
    claim(2**32 - 1)  # written by a program that could not know
    assert len(clips_of(path, clip_samples=20 * 16000)) == 1
    claim(100)
    with pytest.raises(InputError, match="too short"):
        clips_of(path)


def test_absurd_sample_rate(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(100), 2)
    with pytest.raises(InputError, match="sample rate of 2 Hz"):
        load_audio(tmp_path / "x.wav", 16000)


def test_an_hour_takes_no_more_memory_than_a_minute(tmp_path):
    """Peak memory of a process of its own: an hour of stereo is 1.3 GB as float32."""
    code = """
import resource, sys
from mgc_jax.configs import default
from mgc_jax.data.clips import iter_clips
from mgc_jax.data.features import make_features
features = make_features(("mel", "waveform"), default.get_config())
count = sum(1 for _ in iter_clips(sys.argv[1], features))
print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    minute = np.random.default_rng(0).normal(size=(16000 * 60, 2)) * 0.1
    for minutes in (1, 60):
        path = tmp_path / "x.wav"
        with soundfile.SoundFile(path, "w", 16000, 2) as file:
            for _ in range(minutes):
                file.write(minute)
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        count, peak = done.stdout.split()
        assert int(count) == 6 * minutes
        peaks.append(int(peak))
    assert peaks[1] - peaks[0] < 30e3  # kB, where the hour itself is 460 MB
