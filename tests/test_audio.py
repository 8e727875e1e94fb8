"""Decoding and clips, against librosa and by hand."""

import fractions
import os
import struct
import subprocess
import sys

import av
import librosa
import numpy as np
import pytest
import soundfile
import soxr
from shared import write_audio

from mgc_jax.data.audio import array_blocks, load_audio, read_blocks, read_clips
from mgc_jax.errors import InputError


def clips_of(path, sample_rate=16000, clip_samples=160000):
    return [clip.samples for clip in read_clips(path, sample_rate, clip_samples)]


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


def test_clips_follow_one_another(tmp_path):
    """A tail of half a clip is heard in one more clip, which ends with the file."""
    for length, starts in ((2499, [0, 1000]), (2500, [0, 1000, 1500]), (3000, [0, 1000, 2000])):
        samples = np.arange(100, 100 + length, dtype=np.int16)
        soundfile.write(tmp_path / "x.wav", samples, 1000)
        clips = list(read_clips(tmp_path / "x.wav", 1000, 1000))
        assert [clip.start for clip in clips] == starts
        assert [clip.number for clip in clips] == list(range(len(starts)))
        for clip in clips:
            expected = samples[clip.start : clip.start + 1000]
            np.testing.assert_array_equal(clip.samples * 32768, expected)


def test_fmas_clips_give_three(tmp_path):
    """FMA's usual length is 1,321,967 samples at 44.1 kHz: 29.977 s."""
    write_audio(tmp_path / "x.flac", 1_321_967 / 44100, 44100)
    starts = [clip.start / 16000 for clip in read_clips(tmp_path / "x.flac", 16000, 160_000)]
    assert starts == [0, 10, pytest.approx(19.977, abs=1e-3)]


def test_clips_without_signal_are_passed_over_and_keep_their_number(tmp_path):
    rng = np.random.default_rng(0)
    music = rng.normal(size=10_000) * 0.1
    # A step of 16 bits, dithered (triangular, two steps wide), is what recorders leave of silence.
    dither = np.round(rng.uniform(-1, 1, 10_000) / 2 + rng.uniform(-1, 1, 10_000) / 2) / 32768
    quiet = music * 10 ** (-66 / 20)  # -86 dBFS: 24-bit music may be so soft
    parts = [music, np.zeros(10_000), dither, quiet, np.zeros(5_000)]
    soundfile.write(tmp_path / "x.wav", np.concatenate(parts), 1000, subtype="FLOAT")
    assert [clip.number for clip in read_clips(tmp_path / "x.wav", 1000, 10_000)] == [0, 3, 4]
    soundfile.write(tmp_path / "x.wav", np.concatenate([np.zeros(15_000), dither]), 1000)
    with pytest.raises(InputError, match="no signal: nothing but silence"):
        list(read_clips(tmp_path / "x.wav", 1000, 10_000))


def test_channels_that_cancel_each_other_are_heard(tmp_path):
    sound = np.random.default_rng(0).normal(size=300_000) * 0.1
    soundfile.write(tmp_path / "x.wav", np.stack([sound, -sound], axis=1), 16000, "FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "x.wav", 16000), sound, atol=1e-6)
    # Wide stereo keeps its mean, as librosa has it.
    wide = np.stack([sound, -0.9 * sound], axis=1)
    soundfile.write(tmp_path / "x.wav", wide, 16000, "FLOAT")
    np.testing.assert_allclose(load_audio(tmp_path / "x.wav", 16000), sound * 0.05, atol=1e-6)


@pytest.mark.parametrize("scale,says", [(32768.0, "divide by 32768"), (1e20, "no sound has these")])
def test_floats_that_are_no_samples_are_refused(tmp_path, scale, says):
    samples = np.random.default_rng(0).uniform(-1, 1, 160_000) * scale
    soundfile.write(tmp_path / "x.wav", samples, 16000, subtype="DOUBLE")
    with pytest.raises(InputError, match=f"samples up to .*{says}"):
        clips_of(tmp_path / "x.wav")


@pytest.mark.parametrize("value,says", [(9.0, "samples up to 9"), (np.nan, "not finite")])
@pytest.mark.parametrize("name", ["x.wav", "x.mka"])
def test_one_sample_of_one_channel_is_seen(tmp_path, name, value, says):
    """Before the channels are mixed and resampled, which makes peaks lower."""
    sound = (0.1 * np.random.default_rng(0).normal(size=(3 * 44100, 2))).astype(np.float32)
    sound[70_000, 1] = value
    if name == "x.wav":
        soundfile.write(tmp_path / name, sound, 44100, subtype="FLOAT")
    else:
        encode(tmp_path / name, "pcm_f32le", np.ascontiguousarray(sound.T), 44100)
    with pytest.raises(InputError, match=says):
        clips_of(tmp_path / name)
    with pytest.raises(InputError, match=says):
        array_blocks(sound, 44100, 16000)


def test_arrays_are_mixed_as_files_are(tmp_path):
    """Also where the channels cancel each other for a part of the time only."""
    sound = 0.1 * np.random.default_rng(0).normal(size=(300_000, 2)).astype(np.float32)
    sound[2**16 : 2**17, 1] = -sound[2**16 : 2**17, 0]
    soundfile.write(tmp_path / "x.wav", sound, 16000, subtype="FLOAT")
    (mixed,) = array_blocks(sound, 16000, 16000)
    np.testing.assert_array_equal(mixed, load_audio(tmp_path / "x.wav", 16000))
    np.testing.assert_array_equal(mixed[2**16 : 2**17], sound[2**16 : 2**17, 0])
    with pytest.raises(InputError, match="sample rate of 1 Hz"):
        array_blocks(sound, 1, 16000)


def without_first_frame(content: bytes) -> bytes:
    """An MP3 without the frame that counts the others, as encoders write it into a pipe."""
    assert b"Xing" in content[:64] or b"Info" in content[:64]
    return content[content.index(content[:2], 64) :]


def seconds_of(path) -> float:
    return len(load_audio(path, 16000)) / 16000


@pytest.mark.parametrize("rate", [16000, 44100])
def test_mp3s_that_do_not_tell_their_length_are_read_whole(tmp_path, rate):
    """Loud after silence: the first frame says little of how long it will be."""
    sound = np.random.default_rng(0).normal(size=12 * rate) * 0.2
    sound[: 6 * rate] = 0
    options = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.2}
    soundfile.write(tmp_path / "x.mp3", sound, rate, **options)
    content = (tmp_path / "x.mp3").read_bytes()
    (tmp_path / "piped.mp3").write_bytes(without_first_frame(content))
    assert seconds_of(tmp_path / "piped.mp3") == pytest.approx(12, abs=0.1)
    # With a tag and a picture in front, and a tag at the end.
    tag = b"ID3\x03\0\0" + bytes([0, 1, 0, 0]) + b"\0" * 16384
    (tmp_path / "x.mp3").write_bytes(tag + without_first_frame(content) + b"TAG" + b" " * 125)
    assert seconds_of(tmp_path / "x.mp3") == pytest.approx(12, abs=0.1)


def test_joined_mp3s_are_read_whole(tmp_path):
    options = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.5}
    rng = np.random.default_rng(0)
    contents = []
    for seconds in (4, 7):
        soundfile.write(
            tmp_path / "x.mp3", rng.normal(size=seconds * 22050) * 0.1, 22050, **options
        )
        contents.append((tmp_path / "x.mp3").read_bytes())
    (tmp_path / "x.mp3").write_bytes(b"".join(contents))
    assert seconds_of(tmp_path / "x.mp3") == pytest.approx(11, abs=0.15)
    tags = b"TAG" + b"x" * 125
    (tmp_path / "x.mp3").write_bytes(contents[0] + tags + contents[1] + tags)
    assert seconds_of(tmp_path / "x.mp3") == pytest.approx(11, abs=0.15)
    # Tags alone are no second MP3.
    (tmp_path / "x.mp3").write_bytes(contents[0] + b"APETAGEX" + b"\xff\xfb" * 4000 + tags)
    assert seconds_of(tmp_path / "x.mp3") == pytest.approx(4, abs=0.1)


def test_flac_of_unknown_length(tmp_path):
    write_audio(tmp_path / "x.flac", 11, 44100)
    content = bytearray((tmp_path / "x.flac").read_bytes())
    content[21] &= 0xF0  # STREAMINFO: 36 bits for the number of samples, 0 for unknown
    content[22:26] = bytes(4)
    (tmp_path / "x.flac").write_bytes(content)
    assert seconds_of(tmp_path / "x.flac") == pytest.approx(11, abs=1e-3)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_streams_are_read_whole(tmp_path, subtype):
    rng = np.random.default_rng(0)
    content = b""
    for seconds in (3, 5):
        samples = rng.normal(size=seconds * 48000) * 0.1
        soundfile.write(tmp_path / "x.ogg", samples, 48000, format="OGG", subtype=subtype)
        content += (tmp_path / "x.ogg").read_bytes()
    (tmp_path / "x.ogg").write_bytes(content)
    assert seconds_of(tmp_path / "x.ogg") == pytest.approx(8, abs=0.1)


def encode(path, codec, samples, rate):
    """Writes `[channels, samples] float32` by FFmpeg's encoders."""
    layout = "mono" if len(samples) == 1 else "stereo"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = 128_000
        stream.codec_context.open()  # some containers begin with what the encoder says then
        size = stream.codec_context.frame_size or 4096
        converter = av.AudioResampler(stream.codec_context.format.name, layout, rate)
        for start in range(0, samples.shape[1], size):
            part = np.ascontiguousarray(samples[:, start : start + size])
            frame = av.AudioFrame.from_ndarray(part, "fltp", layout)
            frame.sample_rate = rate
            frame.time_base = fractions.Fraction(1, rate)
            frame.pts = start
            for piece in converter.resample(frame):
                file.mux(stream.encode(piece))
        file.mux(stream.encode(None))


@pytest.mark.parametrize(
    "name,codec,rate,tolerance",
    [
        ("x.m4a", "aac", 44100, 0.01),
        ("x.m4a", "alac", 48000, 1e-4),
        ("x.mp4", "aac", 16000, None),  # its end is padded
        ("x.aac", "aac", 44100, None),
        ("x.wma", "wmav2", 44100, None),
        ("x.wv", "wavpack", 44100, 0.006),  # of 8 bits, by FFmpeg's encoder
        ("x.tta", "tta", 32000, 0.006),
        ("x.mka", "flac", 44100, 1e-4),
        ("x.webm", "libopus", 48000, 0.01),
        ("x.oga", "flac", 44100, 1e-4),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_other_kinds_are_the_music_that_went_in(tmp_path, name, codec, rate, tolerance, channels):
    """Under any name: the content tells what a file is."""
    t = np.arange(5 * rate) / rate
    sound = 0.3 * np.sin(2 * np.pi * (200 + 100 * t) * t) * np.minimum(1, 4 * t)
    sound = sound.astype(np.float32)
    encode(tmp_path / name, codec, np.stack([sound] * channels), rate)
    path = (tmp_path / name).rename(tmp_path / "song.mp3")
    expected = soxr.resample(sound, rate, 16000, quality="HQ")
    found = load_audio(path, 16000)
    assert len(found) == pytest.approx(len(expected), abs=1600)
    size = min(len(found), len(expected))
    if tolerance:
        np.testing.assert_allclose(found[:size], expected[:size], atol=tolerance)
        return
    # The bare stream and WMA do not tell how many samples their encoder put before the first.
    shifts = range(-800, 801) if name in ("x.aac", "x.wma") else [0]
    middle = slice(8000, size - 8000)
    shifted = [np.roll(found[:size], shift)[middle] for shift in shifts]
    assert max(np.corrcoef(x, expected[middle])[0, 1] for x in shifted) > 0.98


@pytest.mark.parametrize("kind", ["html", "text", "png", "jpeg", "noise", "frames"])
def test_what_is_no_audio_is_refused(tmp_path, kind):
    """Also where FFmpeg would find frames in it."""
    noise = np.random.default_rng(1).bytes(300_000)
    content = {
        "html": b"<!DOCTYPE html><html><body>404</body></html>" * 50,
        "text": b"#EXTM3U\nsong.mp3\n" * 200,
        "png": b"\x89PNG\r\n\x1a\n" + noise,
        "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF" + noise,
        "noise": noise,
        "frames": b"\0" + b"\xff\xfb\x90\x64" + noise,
    }[kind]
    (tmp_path / "song.mp3").write_bytes(content)
    with pytest.raises(InputError):
        clips_of(tmp_path / "song.mp3")


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
    assert len(kept) == 2 and len(sound) == 4
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
