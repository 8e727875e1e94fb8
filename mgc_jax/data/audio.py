"""Audio files to mono waveforms at one rate, block by block, and to clips of one length.

Reads with soundfile and resamples with soxr, which gives what `librosa.load(path, sr=rate)` gives,
faster and in bounded memory.
Imports nothing heavy: worker processes start with it.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable, Iterator

import numpy as np
import soundfile
import soxr

from mgc_jax.errors import InputError

# What libsndfile reads; folders are searched for these.
EXTENSIONS = frozenset(
    {".mp3", ".flac", ".ogg", ".oga", ".opus", ".wav", ".aif", ".aiff", ".aifc", ".au"}
)
MIN_SECONDS = 1.0
_RATES = (1_000, 768_000)  # Hz; what lies outside is a damaged header
_BLOCK_SAMPLES = 2**17  # of all channels together: small enough for the processor's cache
# A header that announces this much more than there is tells of a file cut off; some are estimates.
_CUT_OFF = 0.9
# Programs that cannot know a WAV's length when they begin it write a number from here on.
_UNKNOWN_LENGTH = 0x7FFF0000


class _DamagedError(InputError):
    """Decoding ended before the file's end; what came before is sound."""


class _Stream(soundfile.SoundFile):
    """A file that is read once, from its start to its end.

    soundfile seeks after every read to the place where it is, and libsndfile decodes some MP3s
    differently from there.
    """

    def seekable(self) -> bool:
        return False


def read_blocks(path: str | os.PathLike, sample_rate: int) -> Iterator[np.ndarray]:
    """Decodes a file of any rate and channel count to a mono waveform, in bounded memory.

    Args:
        path: any file that libsndfile reads (MP3, FLAC, OGG, WAV, AIFF, ...), local or with a
            scheme that etils.epath knows (`gs://`).
        sample_rate: rate of the result, in Hz.

    Yields:
        `[samples] float32`, pieces of the mean of the channels, of any length; nominally in
        [-1, 1], decoders may overshoot.

    Raises:
        InputError: the file is missing, empty, not a regular file, unreadable, cut off, or holds
            samples that are not finite.
    """
    with _open(path) as file:
        if not _RATES[0] <= file.samplerate <= _RATES[1]:
            raise InputError(f"sample rate of {file.samplerate} Hz")
        block_frames = max(1, _BLOCK_SAMPLES // file.channels)
        block = np.empty((block_frames, file.channels), np.float32)
        mono = np.empty(block_frames, np.float32)
        resampler = None
        if file.samplerate != sample_rate:
            resampler = soxr.ResampleStream(
                file.samplerate, sample_rate, 1, dtype="float32", quality="HQ"
            )
        decoded = produced = 0
        while True:
            try:
                frames = len(file.read(min(block_frames, file.frames - decoded), out=block))
            except soundfile.SoundFileError as error:
                seconds = decoded / file.samplerate
                raise _DamagedError(f"damaged after {seconds:.1f} s: {_reason(error)}") from None
            if not frames:
                break
            decoded += frames
            piece = _mix_to_mono(block[:frames], mono[:frames])
            if not np.isfinite(piece).all():
                raise InputError("holds samples that are not finite numbers")
            piece = resampler.resample_chunk(piece) if resampler else piece.copy()
            produced += len(piece)
            yield piece
        if resampler:
            # librosa's length, whatever the resampler's own rounding.
            left = int(np.ceil(decoded * (sample_rate / file.samplerate))) - produced
            piece = resampler.resample_chunk(mono[:0], last=True)[: max(0, left)]
            yield np.pad(piece, (0, max(0, left - len(piece))))
        if decoded < _CUT_OFF * (announced := _announced_frames(file)):
            seconds = [frames / file.samplerate for frames in (decoded, announced)]
            raise InputError(
                "cut off: {:.1f} s of the {:.1f} s that its header announces".format(*seconds)
            )


def load_audio(path: str | os.PathLike, sample_rate: int) -> np.ndarray:
    """Decodes a whole file: `[samples] float32`; arguments and errors as for `read_blocks`."""
    return np.concatenate([np.zeros(0, np.float32), *read_blocks(path, sample_rate)])


def read_clips(
    path: str | os.PathLike, sample_rate: int, clip_samples: int
) -> Iterator[np.ndarray]:
    """Cuts a file into whole clips that follow one another from its start, in bounded memory.

    A tail shorter than a clip is dropped; a file shorter than one clip is repeated until it fills
    it. Of a damaged file, the whole clips before the damage are given, if there are any.

    Args:
        path: as for `read_blocks`.
        sample_rate: in Hz.
        clip_samples: length of a clip.

    Yields:
        `[clip_samples] float32`, at least one clip.

    Raises:
        InputError: as `read_blocks`, or the file is shorter than one second.
    """
    return cut_clips(read_blocks(path, sample_rate), sample_rate, clip_samples)


def cut_clips(
    blocks: Iterable[np.ndarray], sample_rate: int, clip_samples: int
) -> Iterator[np.ndarray]:
    """As `read_clips`, for a waveform in pieces `[samples] float32` of any length.

    Examples:
        >>> blocks = [np.ones(30, np.float32), np.ones(25, np.float32)]
        >>> [len(clip) for clip in cut_clips(blocks, sample_rate=10, clip_samples=20)]
        [20, 20]
    """
    clip = np.empty(clip_samples, np.float32)
    filled = 0
    count = 0
    try:
        for block in blocks:
            while len(block):
                part = block[: clip_samples - filled]
                clip[filled : filled + len(part)] = part
                filled = filled + len(part)
                block = block[len(part) :]
                if filled == clip_samples:
                    yield clip
                    clip = np.empty(clip_samples, np.float32)
                    filled = 0
                    count = count + 1
    except _DamagedError:
        if not count:
            raise
    if not count:
        if filled < MIN_SECONDS * sample_rate:
            seconds = filled / sample_rate
            raise InputError(f"too short: {seconds:.2f} s of audio, need {MIN_SECONDS:g} s")
        yield np.resize(clip[:filled], clip_samples)


@contextlib.contextmanager
def _open(path: str | os.PathLike) -> Iterator[_Stream]:
    """Opens what is certainly a file: opening a named pipe would wait for ever."""
    path = os.fspath(path)
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
                file = stack.enter_context(open(path, "rb")).fileno()
            stream = stack.enter_context(_Stream(file, closefd=False))
        except FileNotFoundError:
            raise InputError("no such file") from None
        except OSError as error:
            raise InputError(f"cannot be opened: {error.strerror or error}") from None
        except soundfile.SoundFileError as error:
            raise InputError(f"cannot be decoded: {_reason(error)}") from None
        yield stream


def _reason(error: soundfile.SoundFileError) -> str:
    return getattr(error, "error_string", str(error)).removeprefix("Error : ").rstrip(".")


def _announced_frames(file: _Stream) -> float:
    """The length by the header. libsndfile corrects a WAV's, and says so in its log alone."""
    claim = re.search(r"data : (\d+) \(should be (\d+)\)", file.extra_info)
    if claim and int(claim[1]) < _UNKNOWN_LENGTH:
        return file.frames * int(claim[1]) / max(1, int(claim[2]))
    return file.frames


def _mix_to_mono(samples: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The mean of the channels, `[frames, channels]` to `[frames]`; in `out`, if there are several.

    Channel by channel, which is several times faster than `mean(axis=1)` on interleaved memory.
    """
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    np.add(samples[:, 0], samples[:, 1], out=out)
    for channel in range(2, channels):
        out += samples[:, channel]
    out *= np.float32(1 / channels)
    return out
