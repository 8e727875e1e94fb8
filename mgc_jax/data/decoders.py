"""What decodes an audio file: libsndfile where it can, FFmpeg (through PyAV) where it cannot.

A decoder is a generator of blocks `[frames, channels] float32` in nominal range [-1, 1]. What a
file is, is told by its first bytes, never by its name: FFmpeg would find frames in noise.
Imports nothing heavy: worker processes start with it.
"""

import contextlib
import os
import re
import stat
import struct
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from mgc_jax.errors import InputError

_BLOCK_SAMPLES = 2**17  # of all channels together: small enough for the processor's cache
# A header that announces this much more than there is tells of a file cut off; some are estimates.
_CUT_OFF = 0.9
# Programs that cannot know a WAV's length when they begin it write a number from here on.
_UNKNOWN_WAV_LENGTH = 0x7FFF0000
# What libsndfile says of a length that the file does not tell: FLAC and streams.
_UNKNOWN_FRAMES = 2**60
_HEAD = 2**14  # bytes that tell what a file is
_JOINT = 4096  # bytes after the end of an MP3 that tell whether another one follows
# First bytes of what FFmpeg reads and libsndfile does not.
_FOR_FFMPEG = {
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "WMA",
    b"\x1a\x45\xdf\xa3": "Matroska or WebM",
    b"MAC ": "Monkey's Audio",
    b"wvpk": "WavPack",
    b"TTA1": "True Audio",
    b"MP+": "Musepack",
    b"MPCK": "Musepack",
    b"FLV": "Flash video",
    b".RMF": "RealAudio",
}
# First bytes of what libsndfile reads if it knows the codec inside; FFmpeg knows more of them.
_FOR_BOTH = (b"OggS", b"RIFF", b"caff", b"FORM")
# Containers, by FFmpeg's names, whose headers tell a length.
_ANNOUNCING = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "tta", "wv")


class DamagedError(InputError):
    """Decoding ended before the file's end; what came before is sound."""


class Decoded(NamedTuple):
    """An open file: its rate in Hz, and its blocks `[frames, channels] float32`.

    A block's memory is used again for the next one.
    """

    rate: int
    blocks: Iterator[np.ndarray]


class _Stream(soundfile.SoundFile):
    """A file that is read once, from its start to its end.

    soundfile seeks after every read to the place where it is, and libsndfile decodes some MP3s
    differently from there.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def open_audio(path: str | os.PathLike) -> Iterator[Decoded]:
    """Opens an audio file of any kind that libsndfile or FFmpeg reads.

    Args:
        path: local, or with a scheme that etils.epath knows (`gs://`).

    Raises:
        InputError: the file is missing, empty, not a regular file or unreadable; from the blocks
            also: it is cut off. DamagedError from the blocks: it is damaged somewhere.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_open_file(os.fspath(path)))
        head = _read_head(file)
        if _needs_ffmpeg(file, head):
            yield stack.enter_context(_open_ffmpeg(file, _is_mp3(head)))
        elif _is_mp3_of_unknown_length(head):
            yield stack.enter_context(_open_as_pipe(file))
        else:
            try:
                decoded = stack.enter_context(_open_sndfile(file))
            except InputError:
                if not head.startswith(_FOR_BOTH):
                    raise
                file.seek(0)
                decoded = stack.enter_context(_open_ffmpeg(file, False))
            yield decoded


@contextlib.contextmanager
def _open_file(path: str) -> Iterator[BinaryIO]:
    """Opens what is certainly a file: opening a named pipe would wait for ever."""
    with contextlib.ExitStack() as stack:
        try:
            if "://" in path:
                from etils import epath

                file = stack.enter_context(epath.Path(path).open("rb"))
            else:
                status = os.stat(path)
                if not stat.S_ISREG(status.st_mode):
                    raise InputError("not a regular file")
                if not status.st_size:
                    raise InputError("empty file")
                # Without a buffer, so that the file's own place is where Python has it.
                file = stack.enter_context(open(path, "rb", buffering=0))
        except FileNotFoundError:
            raise InputError("no such file") from None
        except InputError:
            raise
        except KeyError:
            scheme = path.partition("://")[0]
            raise InputError(f"{scheme}:// cannot be opened: fetch the file first") from None
        except ValueError as error:  # a NUL in the name
            raise InputError(f"cannot be opened: {error}") from None
        except OSError as error:
            raise InputError(f"cannot be opened: {error.strerror or error}") from None
        yield file


def _read_head(file: BinaryIO) -> bytes:
    """The first bytes after ID3 tags, which any kind of file may begin with."""
    file.seek(_id3_size(file))
    head = file.read(_HEAD)
    file.seek(0)
    return head


def _needs_ffmpeg(file: BinaryIO, head: bytes) -> bool:
    """Whether a file is of a kind that FFmpeg reads, and libsndfile does not, or only in part."""
    if any(head.startswith(magic) for magic in _FOR_FFMPEG) or head[4:8] == b"ftyp":
        return True
    if head.startswith(b"OggS"):
        # libsndfile fails on FLAC in Ogg, and stops at the end of the first of several streams.
        return head[28:33] == b"\x7fFLAC" or _is_chained_ogg(file)
    return _is_adts(head) or _is_joined_mp3(file, head)


def _is_chained_ogg(file: BinaryIO) -> bool:
    """Whether a stream begins after another one has, by the headers of all pages."""
    file.seek(0)
    begun = chained = False
    while not chained:
        header = file.read(27)
        if len(header) < 27 or header[:4] != b"OggS":
            break
        segments = file.read(header[26])
        file.seek(sum(segments), os.SEEK_CUR)
        begins = bool(header[5] & 2)
        chained = begins and begun
        begun = begun or not begins
    file.seek(0)
    return chained


def _is_adts(head: bytes) -> bool:
    """Whether AAC frames follow one another from the start, four of them at least."""
    place = 0
    for _ in range(4):
        frame = head[place : place + 6]
        if len(frame) < 6 or frame[0] != 0xFF or frame[1] & 0xF6 != 0xF0:
            return False
        length = (frame[3] & 3) << 11 | frame[4] << 3 | frame[5] >> 5
        if length < 7:
            return False
        place += length
    return True


def _xing_counts(head: bytes) -> tuple[int | None, int | None] | None:
    """Frames and bytes that an MP3's first frame announces (Xing or Info), None without such.

    Layout: "XING VBR header" of Xing Inc.'s SDK, which LAME writes too.
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    place = max(head.find(b"Xing", 0, 64), head.find(b"Info", 0, 64))
    if place < 0 or len(head) < place + 16:
        return None
    flags, *numbers = struct.unpack(">3I", head[place + 4 : place + 16])
    frames = numbers.pop(0) if flags & 1 else None
    size = numbers.pop(0) if flags & 2 else None
    return frames, size


def _is_joined_mp3(file: BinaryIO, head: bytes) -> bool:
    """Whether an MP3 goes on after what its first header announces: libsndfile would stop there."""
    counts = _xing_counts(head)
    if not counts or not counts[1]:
        return False
    place = _id3_size(file) + counts[1]
    file.seek(place)
    after = file.read(_JOINT)
    # What may follow the sound of one MP3 are its tags; then another one's tag or first frame.
    while after.startswith((b"TAG", b"APETAGEX")):
        place += 128 if after[:3] == b"TAG" else 32 + int.from_bytes(after[12:16], "little")
        file.seek(place)
        after = file.read(_JOINT)
    file.seek(0)
    return len(after) == _JOINT and (b"ID3" in after[:16] or _is_mp3(after) or head[:2] in after)


def _id3_size(file: BinaryIO) -> int:
    """Bytes of the ID3 tags that a file begins with, 0 if there are none."""
    size = 0
    while True:
        file.seek(size)
        start = file.read(10)
        if start[:3] != b"ID3" or len(start) < 10:
            break
        size += 10 + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(start[6:]))
    file.seek(0)
    return size


def _is_mp3(head: bytes) -> bool:
    """Whether these bytes begin with the header of an MPEG audio frame, which AAC's is not."""
    return len(head) > 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0


def _is_mp3_of_unknown_length(head: bytes) -> bool:
    """Whether an MP3 does not tell its length: libsndfile would guess it from the first frame."""
    counts = _xing_counts(head)
    return _is_mp3(head) and (counts is None or not counts[0])


@contextlib.contextmanager
def _open_sndfile(file: BinaryIO) -> Iterator[Decoded]:
    """By libsndfile, which checks the announced length against what there is."""
    try:
        # A local file by its number: through a Python object each read would take a call more.
        source = file.fileno() if hasattr(file, "fileno") else file
        stream = _Stream(source, closefd=False)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"cannot be decoded: {_reason(error)}") from None
    with stream:
        yield Decoded(stream.samplerate, _read_sndfile(stream))


@contextlib.contextmanager
def _open_as_pipe(file: BinaryIO) -> Iterator[Decoded]:
    """By libsndfile as from a pipe, where it cannot guess a length and reads to the end.

    From the first frame on: through a pipe libsndfile passes over small ID3 tags only.
    """
    file.seek(_id3_size(file))
    reading, writing = os.pipe()
    feeder = threading.Thread(target=_feed, args=(file, writing), daemon=True)
    feeder.start()
    try:
        stream = _Stream(reading, closefd=False)
    except soundfile.SoundFileError:
        stream = None
    try:
        if stream:
            with stream:
                yield Decoded(stream.samplerate, _read_sndfile(stream))
    finally:
        os.close(reading)
        feeder.join()
    if stream is None:  # it is no MP3 after all, or needs to be sought in
        file.seek(0)
        with _open_sndfile(file) as decoded:
            yield decoded


def _feed(file: BinaryIO, writing: int) -> None:
    """Writes a file into a pipe until its end, or until nobody reads any more."""
    with contextlib.suppress(BrokenPipeError), open(writing, "wb", buffering=0) as pipe:
        while chunk := file.read(2**16):
            pipe.write(chunk)


def _read_sndfile(stream: _Stream) -> Iterator[np.ndarray]:
    """The blocks of a file that libsndfile reads.

    Raises:
        DamagedError: libsndfile gives up in the middle.
        InputError: there is less than the file really announces.
    """
    block = np.empty((max(1, _BLOCK_SAMPLES // stream.channels), stream.channels), np.float32)
    decoded = 0
    while True:
        try:
            frames = len(stream.read(min(len(block), stream.frames - decoded), out=block))
        except soundfile.SoundFileError as error:
            seconds = decoded / stream.samplerate
            raise DamagedError(f"damaged after {seconds:.1f} s: {_reason(error)}") from None
        if not frames:
            break
        decoded += frames
        yield block[:frames]
    announced = _announced_frames(stream)
    if decoded < _CUT_OFF * announced < _UNKNOWN_FRAMES:
        raise InputError(_cut_off(decoded / stream.samplerate, announced / stream.samplerate))


def _announced_frames(stream: _Stream) -> float:
    """The length by the header. libsndfile corrects a WAV's, and says so in its log alone."""
    claim = re.search(r"data : (\d+) \(should be (\d+)\)", stream.extra_info)
    if claim and int(claim[1]) < _UNKNOWN_WAV_LENGTH:
        return stream.frames * int(claim[1]) / max(1, int(claim[2]))
    return stream.frames


@contextlib.contextmanager
def _open_ffmpeg(file: BinaryIO, is_mp3: bool) -> Iterator[Decoded]:
    """By FFmpeg: the first audio stream. It looks for MP3 frames in all that it does not know."""
    import av

    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(file))
        except (av.FFmpegError, ValueError) as error:
            raise InputError(f"cannot be decoded: {_ffmpeg_reason(error)}") from None
        if not container.streams.audio or (container.format.name == "mp3" and not is_mp3):
            raise InputError("cannot be decoded: no sound in it")
        rate = container.streams.audio[0].rate
        if not rate:
            raise InputError("cannot be decoded: no sample rate in it")
        yield Decoded(rate, _read_ffmpeg(container, rate))


def _read_ffmpeg(container: Any, rate: int) -> Iterator[np.ndarray]:
    """The blocks of a file that FFmpeg reads, in the rate and channels of its start.

    Raises:
        DamagedError: FFmpeg gives up in the middle.
        InputError: there is less than the file really announces.
    """
    import av

    seconds = 0.0
    try:
        for piece in _convert(_decode_packets(container), rate):
            seconds += piece.samples / rate
            yield piece.to_ndarray().T
    except (av.FFmpegError, ValueError) as error:
        raise DamagedError(f"damaged after {seconds:.1f} s: {_ffmpeg_reason(error)}") from None
    # With pictures in it, a length may be the pictures'.
    only_sound = len(container.streams) == len(container.streams.audio)
    if container.format.name in _ANNOUNCING and only_sound:
        announced = (container.duration or 0) / av.time_base
        if seconds < _CUT_OFF * announced:
            raise InputError(_cut_off(seconds, announced))


def _decode_packets(container: Any) -> Iterator[Any]:
    """The frames of the first audio stream. Between joined MP3s are tags, which hold none."""
    import av

    for packet in container.demux(container.streams.audio[0]):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            if container.format.name != "mp3":
                raise


def _convert(frames: Iterator[Any], rate: int) -> Iterator[Any]:
    """Frames as planes of float32, in one rate and the channels of the first of them."""
    import av

    layout = shape = resampler = None
    for frame in frames:
        found = (frame.sample_rate, frame.layout.name)
        if shape != found:  # joined files need not be alike
            if resampler:
                yield from resampler.resample(None)
            shape = found
            layout = layout or frame.layout.name
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        yield from resampler.resample(frame)
    if resampler:
        yield from resampler.resample(None)


def _cut_off(seconds: float, announced: float) -> str:
    return f"cut off: {seconds:.1f} s of the {announced:.1f} s that its header announces"


def _reason(error: Exception) -> str:
    return getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(".")


def _ffmpeg_reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".")
