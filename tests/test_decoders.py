"""Files as people join, tag, cut and rename them; beside the sound that went in."""

import struct

import numpy as np
import pytest
import soundfile
from shared import write_audio
from test_audio import encode, without_first_frame

from mgc_jax.configs import default
from mgc_jax.data.audio import load_audio
from mgc_jax.data.clips import deviation_from_librosa
from mgc_jax.data.decoders import DamagedError
from mgc_jax.data.features import make_features
from mgc_jax.data.kinds import FOR_BOTH, FOR_FFMPEG
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
    (tmp_path / name).write_bytes(content[: len(content) // 2 + 5])
    with pytest.raises(InputError, match="cut off: [56]|damaged after [56]|cannot be decoded"):
        load_audio(tmp_path / name, RATE)


@pytest.mark.parametrize("magic", [*FOR_FFMPEG, *FOR_BOTH, b"\0\0\0\x20ftypM4A "])
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


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize(
    "before",
    [
        id3(bytes(300)) + bytes(1),
        id3(bytes(300)) + bytes(300_000),  # padding that the tag does not count
        id3(bytes(300)) + b"left of another tag" * 300,
        id3(bytes(900))[:-500],  # the tag claims more than it has
        b"APETAGEX\xd0\x07\0\0" + (2000).to_bytes(4, "little") + bytes(2016),
        bytes(5000),
    ],
    ids=lambda before: f"{len(before)} bytes",
)
def test_what_lies_between_tags_and_sound_is_passed_over(tmp_path, before, counted):
    content = mp3_of(tmp_path / "x.mp3", 7, 44100)
    content = content if counted else without_first_frame(content)
    (tmp_path / "x.mp3").write_bytes(before + content)
    found = load_audio(tmp_path / "x.mp3", RATE)
    assert len(found) / RATE == pytest.approx(7, abs=0.1)
    assert pitch_of(found[RATE : 6 * RATE]) == pytest.approx(440, abs=1)


def test_what_librosa_hears_otherwise_is_not_compared_with_it(tmp_path):
    """Else one such file, where it is the first, would stop a preparation."""
    features = make_features(("waveform",), default.get_config())
    content = mp3_of(tmp_path / "x.mp3", 6, 44100)
    for name, joined in {"x.mp3": content * 2, "y.mp3": bytes(99) + content}.items():
        (tmp_path / name).write_bytes(joined)
        with pytest.raises(InputError, match="librosa reads it by another decoder"):
            deviation_from_librosa(str(tmp_path / name), features)
    sound = np.random.default_rng(0).normal(size=(12 * 44100, 2)) * 0.1
    sound[4 * 44100 :, 1] = -sound[4 * 44100 :, 0]
    soundfile.write(tmp_path / "x.wav", sound, 44100)
    with pytest.raises(InputError, match="its channels cancel each other"):
        deviation_from_librosa(str(tmp_path / "x.wav"), features)
    soundfile.write(tmp_path / "x.wav", sound[: 4 * 44100], 44100)
    assert deviation_from_librosa(str(tmp_path / "x.wav"), features)["waveform"] < 1e-6


@pytest.mark.parametrize("name", ["x.mp3", "x.aac"])
def test_recordings_of_streams_begin_and_end_anywhere(tmp_path, name):
    sound = 0.1 * np.random.default_rng(0).normal(size=(2, 9 * 44100)).astype(np.float32)
    encode(tmp_path / name, "mp3" if name == "x.mp3" else "aac", sound, 44100)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[2222:-111])
    assert len(load_audio(tmp_path / name, RATE)) / RATE == pytest.approx(9, abs=0.2)


@pytest.mark.parametrize("first", [(44100, 2), (22050, 1)])
@pytest.mark.parametrize("second", [(48000, 1), (44100, 1), (44100, 2)])
def test_joined_mp3s_that_do_not_tell_their_length(tmp_path, first, second):
    content = b""
    for seconds, shape, pitch in ((6, first, 440.0), (5, second, 880.0)):
        content += without_first_frame(mp3_of(tmp_path / "x.mp3", seconds, *shape, pitch))
    (tmp_path / "x.mp3").write_bytes(content)
    found = load_audio(tmp_path / "x.mp3", RATE)
    assert len(found) / RATE == pytest.approx(11, abs=0.15)
    assert pitch_of(found[RATE : 5 * RATE]) == pytest.approx(440, abs=1)
    assert pitch_of(found[7 * RATE : 10 * RATE]) == pytest.approx(880, abs=1)


def ogg_of(path, seconds, rate, channels, pitch, subtype):
    """The bytes of a tone as Ogg: VORBIS or OPUS by libsndfile, FLAC by FFmpeg."""
    t = np.arange(int(seconds * rate)) / rate
    sound = np.stack([0.3 * np.sin(2 * np.pi * pitch * t)] * channels).astype(np.float32)
    if subtype == "FLAC":
        encode(path, "flac", sound, rate)
    else:
        soundfile.write(path, sound.T, rate, format="OGG", subtype=subtype)
    return path.read_bytes()


@pytest.mark.parametrize(
    "streams",
    [
        [(44100, 2, "VORBIS"), (22050, 1, "VORBIS"), (48000, 2, "VORBIS")],
        [(48000, 1, "OPUS"), (48000, 2, "OPUS"), (16000, 1, "OPUS")],
        [(44100, 2, "VORBIS"), (48000, 2, "OPUS"), (44100, 1, "FLAC")],
    ],
)
def test_chained_streams_of_other_rates_channels_and_codecs(tmp_path, streams):
    """Each keeps its length and its pitch; FFmpeg would give up, or read the first alone."""
    content = b""
    for number, stream in enumerate(streams):
        content += ogg_of(tmp_path / "x.oga", 4, *stream[:2], 440.0 * (number + 1), stream[2])
    (tmp_path / "x.oga").write_bytes(content)
    found = load_audio(tmp_path / "x.oga", RATE)
    assert len(found) / RATE == pytest.approx(12, abs=0.1)
    for number in range(3):
        part = found[(4 * number + 1) * RATE : (4 * number + 3) * RATE]
        assert pitch_of(part) == pytest.approx(440 * (number + 1), abs=1)
    # A stream that cannot be read is damage, before which the clips are sound.
    (tmp_path / "x.oga").write_bytes(content + b"OggS" + b"\0\2" + bytes(400))
    with pytest.raises(DamagedError, match="damaged in stream 4: cannot be decoded"):
        load_audio(tmp_path / "x.oga", RATE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_announces_no_length(tmp_path, subtype):
    """A recording of a stream ends anywhere: what is there is read, and nothing said."""
    content = ogg_of(tmp_path / "x.ogg", 20, 48000, 1, 440.0, subtype)
    (tmp_path / "x.ogg").write_bytes(content[: len(content) // 2])
    assert 6 < len(load_audio(tmp_path / "x.ogg", RATE)) / RATE < 14


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


@pytest.mark.parametrize("read", [2**18, 1000, 9])  # bytes at once: a head lies across two reads
def test_joined_flacs_are_read_whole(tmp_path, monkeypatch, read):
    """Each as by itself, whatever its rate and channels; a tag may lie before any of them."""
    monkeypatch.setattr("mgc_jax.data.kinds._READ", read)
    contents, alone = [], []
    for i, (rate, channels) in enumerate(((44100, 2), (16000, 1), (48000, 2))):
        path = tmp_path / f"{i}.flac"
        write_audio(path, 1.0 + i, rate, channels, seed=i)
        contents.append(path.read_bytes())
        alone.append(load_audio(path, RATE))
    joined = tmp_path / "joined.flac"
    joined.write_bytes(contents[0] + id3(bytes(50)) + contents[1] + contents[2])
    np.testing.assert_array_equal(load_audio(joined, RATE), np.concatenate(alone))
    joined.write_bytes(id3(bytes(50)) + contents[2] + contents[0][:5000])
    with pytest.raises(DamagedError, match="damaged in stream 2|damaged after"):
        load_audio(joined, RATE)


@pytest.mark.parametrize("tag", [0, 5])
def test_a_codec_that_nobody_knows_is_one_line(tmp_path, tag):
    """Found by mutations: FFmpeg opens such a WAV, and has no decoder for its stream."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, 1, 16000, 32000, 2, 16)
    data = b"data" + struct.pack("<I", 2000) + bytes(2000)
    body = b"WAVE" + form + data
    (tmp_path / "odd.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    with pytest.raises(InputError, match="cannot be decoded"):
        load_audio(tmp_path / "odd.wav", 16000)


def ape_of_silence(seconds: int) -> bytes:
    """Monkey's Audio 3.99 in frames of a second, each marked as silent: nothing here encodes it."""
    silent = struct.pack("<6I", 0x80000000, 3, 0, 0, 0, 0)
    start = 52 + 24 + 4 * seconds
    places = struct.pack(f"<{seconds}I", *range(start, start + seconds * len(silent), len(silent)))
    sizes = (52, 24, len(places), 0, seconds * len(silent), 0, 0)
    descriptor = b"MAC " + struct.pack("<2H7I16x", 3990, 0, *sizes)
    # Fast, without the header of a WAV; 16 bits, stereo.
    header = struct.pack("<2H3I2HI", 1000, 0x20, RATE, RATE, seconds, 16, 2, RATE)
    return descriptor + header + places + silent * seconds


def test_monkeys_audio_has_its_length(tmp_path):
    (tmp_path / "x.ape").write_bytes(ape_of_silence(7))
    found = load_audio(tmp_path / "x.ape", RATE)
    assert len(found) == 7 * RATE and not found.any()
