"""What decodes an audio file: libsndfile where it can, FFmpeg (through PyAV) where it cannot.

A decoder is a generator of blocks `[frames, channels] float32` in nominal range [-1, 1].
Imports nothing heavy: worker processes start with it.
"""

import contextlib
import io
import os
import re
import stat
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile

from mgc_jax.data.kinds import Part, find_parts
from mgc_jax.errors import InputError

_BLOCK_SAMPLES = 2**17  # of all channels together: small enough for the processor's cache
# A header that announces this much more than there is tells of a file cut off; some are estimates.
_CUT_OFF = 0.9
# Programs that cannot know a WAV's length when they begin it write a number from here on.
_UNKNOWN_WAV_LENGTH = 0x7FFF0000
# What libsndfile says of a length that the file does not tell: FLAC and streams.
_UNKNOWN_FRAMES = 2**60
_LARGEST_SAMPLE = 8.0  # decoders overshoot by some; floats in the range of integers are far above
_FLOATS = ("FLOAT", "DOUBLE")  # libsndfile's names of codings that hold any number
# Containers, by FFmpeg's names, whose headers tell a length.
_ANNOUNCING = ("matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "tta", "wv")


class DamagedError(InputError):
    """Decoding ended before the file's end; what came before is sound."""


class Decoded(NamedTuple):
    """A part of a file: its rate in Hz, and its blocks `[frames, channels] float32`.

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


class _Window(io.RawIOBase):
    """A stretch of a file, as if it were all of one."""

    def __init__(self, file: BinaryIO, part: Part):
        self._file = file
        self._start = self._place = part.start
        self._end = part.end

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._place, os.SEEK_END: self._end}
        self._place = max(self._start, base[whence] + offset)
        return self._place - self._start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._place)
        data = self._file.read(max(0, min(len(buffer), self._end - self._place)))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def open_audio(path: str | os.PathLike) -> Iterator[Decoded]:
    """Opens an audio file of any kind that libsndfile or FFmpeg reads.

    Args:
        path: local, or with a scheme that etils.epath knows (`gs://`).

    Yields:
        Its parts, each to be read before the next: one, but for a chained Ogg and joined FLACs,
        whose streams may have different rates and channels.

    Raises:
        InputError: the file is missing, empty, not a regular file or unreadable; from the blocks
            also: it is cut off. DamagedError: it is damaged somewhere.
    """
    with _open_file(os.fspath(path)) as file:
        for number, part in enumerate(find_parts(file)):
            try:
                with _open_part(file, part) as decoded:
                    yield decoded
            except InputError as error:
                if not number:
                    raise
                raise DamagedError(f"damaged in stream {number + 1}: {error}") from None


def reads_as_librosa(path: str | os.PathLike) -> bool:
    """Whether libsndfile reads a file in one piece and from its first byte on, as by librosa.

    Raises:
        InputError: as `open_audio`.
    """
    with _open_file(os.fspath(path)) as file:
        first, *others = find_parts(file)
        if others or first.reader == "ffmpeg":
            return False
        file.seek(0)
        with contextlib.suppress(InputError), _open_sndfile(file):
            return True
    return False


@contextlib.contextmanager
def _open_part(file: BinaryIO, part: Part) -> Iterator[Decoded]:
    """By the decoder that a part asks for, which sees nothing of what lies around it."""
    source = file
    if part.start or part.end < file.seek(0, os.SEEK_END):
        source = io.BufferedReader(_Window(file, part), 2**16)
    source.seek(0)
    with contextlib.ExitStack() as stack:
        if part.reader == "ffmpeg":
            decoded = stack.enter_context(_open_ffmpeg(source, part.is_mpeg))
        elif part.reader == "pipe":
            decoded = stack.enter_context(_open_as_pipe(source))
        else:
            try:
                decoded = stack.enter_context(_open_sndfile(source))
            except InputError:
                if part.reader != "both":
                    raise
                source.seek(0)
                decoded = stack.enter_context(_open_ffmpeg(source, False))
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


@contextlib.contextmanager
def _open_sndfile(file: BinaryIO) -> Iterator[Decoded]:
    """By libsndfile, which checks the announced length against what there is."""
    try:
        # A local file by its number: through a Python object each read would take a call more.
        source = file.fileno() if isinstance(file, io.FileIO) else file
        stream = _Stream(source, closefd=False)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(f"cannot be decoded: {_reason(error)}") from None
    with stream:
        yield Decoded(stream.samplerate, _read_sndfile(stream))


@contextlib.contextmanager
def _open_as_pipe(file: BinaryIO) -> Iterator[Decoded]:
    """By libsndfile as from a pipe, where it cannot guess a length and reads to the end."""
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


def check_samples(samples: np.ndarray) -> None:
    """Raises InputError for floats of any shape that are not finite, or far outside of [-1, 1]."""
    largest = max(samples.max(initial=0.0), -samples.min(initial=0.0))
    if not np.isfinite(largest):
        raise InputError("holds samples that are not finite numbers")
    if largest > _LARGEST_SAMPLE:
        raise InputError(
            f"samples up to {largest:,.0f}: floats in int16's range; divide by 32768"
            if largest < 2**16
            else f"samples up to {largest:.3g}: no sound has these; floats should be in [-1, 1]"
        )


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
        if stream.subtype in _FLOATS:
            check_samples(block[:frames])
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
def _open_ffmpeg(file: BinaryIO, is_mpeg: bool) -> Iterator[Decoded]:
    """By FFmpeg: the first audio stream. It looks for MP3 frames in all that it does not know."""
    import av

    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(av.open(file))
        except (av.FFmpegError, ValueError) as error:
            raise InputError(f"cannot be decoded: {_ffmpeg_reason(error)}") from None
        if not container.streams.audio or (container.format.name == "mp3" and not is_mpeg):
            raise InputError("cannot be decoded: no sound in it")
        sound = container.streams.audio[0]
        if sound.codec_context is None:
            raise InputError("cannot be decoded: its codec is unknown")
        rate = sound.rate
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
            block = piece.to_ndarray().T
            check_samples(block)
            yield block
    except InputError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise DamagedError(f"damaged after {seconds:.1f} s: {_ffmpeg_reason(error)}") from None
    # With pictures in it, a length may be the pictures'.
    only_sound = len(container.streams) == len(container.streams.audio)
    if container.format.name in _ANNOUNCING and only_sound:
        announced = (container.duration or 0) / av.time_base
        if seconds < _CUT_OFF * announced:
            raise InputError(_cut_off(seconds, announced))


def _decode_packets(container: Any) -> Iterator[Any]:
    """The frames of the first audio stream.

    In bare frames one after the other, as streams are recorded and MP3s joined, what is none (a tag
    between two MP3s, half a frame at the end) is passed over.
    """
    import av

    for packet in container.demux(container.streams.audio[0]):
        try:
            yield from packet.decode()
        except av.InvalidDataError:
            if container.format.name not in ("mp3", "aac"):
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
