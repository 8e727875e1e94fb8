"""Files as people join, tag, cut and rename them; beside the sound that went in."""

import numpy as np
import pytest
import soundfile
from conftest import write_audio
from test_audio import encode, without_first_frame

from mgc_jax.data.audio import load_audio
from mgc_jax.data.decoders import _FOR_BOTH, _FOR_FFMPEG
from mgc_jax.errors import InputError

RATE = 16000


def mp3_of(path, seconds, rate, channels=1, pitch=440.0):
    """The bytes of an MP3 of a tone, of variable bit rate."""
    t = np.arange(int(seconds * rate)) / rate
    sound = np.stack([0.3 * np.sin(2 * np.pi * pitch * t)] * channels, axis=1)
    options = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.5}
    soundfile.write(path, sound, rate, **options)
    return path.read_bytes()


def id3(body: bytes) -> bytes:
    """An ID3v2.3 tag: its size is four times seven bits."""
    size = bytes((len(body) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x03\0\0" + size + body


def pitch_of(samples) -> float:
    """The strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE / len(samples))


@pytest.mark.parametrize("size", [3_000, 150_000, 3_000_000])
def test_mp3_of_unknown_length_behind_a_picture(tmp_path, size):
    """A cover of some megabytes is no reason to guess the length."""
    content = without_first_frame(mp3_of(tmp_path / "x.mp3", 9, 44100, 2))
    plain = tmp_path / "plain.mp3"
    plain.write_bytes(content)
    cover = np.random.default_rng(0).bytes(size)
    (tmp_path / "x.mp3").write_bytes(id3(cover) + content)
    np.testing.assert_array_equal(load_audio(tmp_path / "x.mp3", RATE), load_audio(plain, RATE))
    assert len(load_audio(plain, RATE)) / RATE == pytest.approx(9, abs=0.1)


@pytest.mark.parametrize("counted", [True, False])
def test_two_id3_tags(tmp_path, counted):
    content = mp3_of(tmp_path / "x.mp3", 9, 44100)
    content = content if counted else without_first_frame(content)
    (tmp_path / "x.mp3").write_bytes(id3(bytes(5000)) + id3(bytes(3000)) + content)
    assert len(load_audio(tmp_path / "x.mp3", RATE)) / RATE == pytest.approx(9, abs=0.1)


@pytest.mark.parametrize("size", [2_000, 200_000])
@pytest.mark.parametrize("end", [b"", b"TAG" + b"x" * 125])
def test_joined_mp3s_with_pictures(tmp_path, size, end):
    """`cat` of two files as shops sell them: between the frames are a tag and a picture."""
    cover = id3(np.random.default_rng(0).bytes(size))
    parts = [mp3_of(tmp_path / "x.mp3", *args) for args in ((4, 44100), (7, 44100, 1, 880.0))]
    (tmp_path / "x.mp3").write_bytes(b"".join(cover + part + end for part in parts))
    found = load_audio(tmp_path / "x.mp3", RATE)
    assert len(found) / RATE == pytest.approx(11, abs=0.15)
    assert pitch_of(found[RATE : 3 * RATE]) == pytest.approx(440, abs=1)
    assert pitch_of(found[-3 * RATE : -RATE]) == pytest.approx(880, abs=1)


@pytest.mark.parametrize(
    "first,second", [((44100, 2), (22050, 1)), ((22050, 1), (44100, 2)), ((48000, 1), (44100, 2))]
)
def test_joined_mp3s_of_other_rates_and_channels(tmp_path, first, second):
    """Each keeps its length and its pitch."""
    content = mp3_of(tmp_path / "x.mp3", 6, *first, 440.0)
    content += mp3_of(tmp_path / "x.mp3", 5, *second, 880.0)
    (tmp_path / "x.mp3").write_bytes(content)
    found = load_audio(tmp_path / "x.mp3", RATE)
    assert len(found) / RATE == pytest.approx(11, abs=0.15)
    assert pitch_of(found[RATE : 5 * RATE]) == pytest.approx(440, abs=1)
    assert pitch_of(found[7 * RATE : 10 * RATE]) == pytest.approx(880, abs=1)


@pytest.mark.parametrize(
    "name,codec",
    [("x.caf", "alac"), ("x.wav", "ac3"), ("x.avi", "mp3"), ("x.mov", "aac"), ("x.oga", "flac")],
)
def test_a_codec_that_libsndfile_lacks_in_a_container_that_it_knows(tmp_path, name, codec):
    t = np.arange(5 * 44100) / 44100
    sound = (0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    encode(tmp_path / name, codec, np.stack([sound, sound]), 44100)
    found = load_audio(tmp_path / name, RATE)
    assert len(found) / RATE == pytest.approx(5, abs=0.1)
    assert pitch_of(found[RATE : 4 * RATE]) == pytest.approx(440, abs=1)
    assert np.abs(found[RATE : 4 * RATE]).max() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    "name,codec",
    [
        ("x.m4a", "aac"),
        ("x.aac", "aac"),
        ("x.wma", "wmav2"),
        ("x.wv", "wavpack"),
        ("x.tta", "tta"),
        ("x.mka", "flac"),
        ("x.webm", "libopus"),
    ],
)
def test_what_ffmpeg_reads_and_is_cut_off_says_so(tmp_path, name, codec):
    sound = np.random.default_rng(0).normal(size=(1, 12 * 48000)).astype(np.float32) * 0.1
    encode(tmp_path / name, codec, sound, 48000)
    assert len(load_audio(tmp_path / name, RATE)) / RATE == pytest.approx(12, abs=0.1)
    content = (tmp_path / name).read_bytes()
    # Not between two frames: a bare stream of frames announces nothing.
    (tmp_path / name).write_bytes(content[: len(content) // 2 + 5])
    with pytest.raises(InputError, match="cut off: [56]|damaged after [56]|cannot be decoded"):
        load_audio(tmp_path / name, RATE)


@pytest.mark.parametrize("magic", [*_FOR_FFMPEG, *_FOR_BOTH, b"\0\0\0\x20ftypM4A ", b"\xff\xf1"])
@pytest.mark.parametrize("frames", [False, True])
def test_noise_behind_the_first_bytes_of_audio_is_refused(tmp_path, magic, frames):
    """FFmpeg tries every kind that it knows, and finds MP3 frames in noise."""
    noise = np.random.default_rng(2).bytes(400_000)
    mp3 = mp3_of(tmp_path / "x.mp3", 3, 44100) if frames else b""
    (tmp_path / "x.mp3").write_bytes(magic + mp3 + noise)
    with pytest.raises(InputError):
        load_audio(tmp_path / "x.mp3", RATE)


def test_pictures_and_pages_with_tags_are_refused(tmp_path):
    noise = np.random.default_rng(3).bytes(100_000)
    for content in (b"\x89PNG\r\n\x1a\n" + noise, b"<html>404</html>" * 99, b"%PDF-1.7" + noise):
        (tmp_path / "x.mp3").write_bytes(id3(bytes(500)) + content)
        with pytest.raises(InputError):
            load_audio(tmp_path / "x.mp3", RATE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_many_chained_streams(tmp_path, subtype):
    content = b""
    for seconds in (2, 3, 4, 2):
        samples = np.random.default_rng(0).normal(size=(seconds * 48000, 2)) * 0.1
        soundfile.write(tmp_path / "x.ogg", samples, 48000, format="OGG", subtype=subtype)
        content += (tmp_path / "x.ogg").read_bytes()
    (tmp_path / "x.ogg").write_bytes(content)
    assert len(load_audio(tmp_path / "x.ogg", RATE)) / RATE == pytest.approx(11, abs=0.1)


def test_flac_and_ogg_behind_a_tag(tmp_path):
    for name in ("x.flac", "x.ogg"):
        write_audio(tmp_path / name, 6, 44100)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(id3(bytes(3000)) + content)
        assert len(load_audio(tmp_path / name, RATE)) / RATE == pytest.approx(6, abs=0.01)
