"""What an audio file is, told by its bytes, never by its name: FFmpeg finds frames in any noise.

Files as people join, tag and record them: an ID3 tag and padding before the sound, MP3s that do not
tell their length, several files joined into one. Nothing is decoded here.
"""

import functools
import itertools
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_HEAD = 2**14  # bytes that tell what a file is
_READ = 2**18  # bytes of frames at once
_LARGEST_FRAME = 2881  # bytes, of MPEG audio
_IN_A_ROW = 4  # frames that follow one another: noise does not
# First bytes of what FFmpeg reads and libsndfile does not.
FOR_FFMPEG = {
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
FOR_BOTH = (b"OggS", b"RIFF", b"caff", b"FORM")

# The beginning of FLAC: its name, and the head of a block that tells of the stream (34 bytes).
_FLAC_HEAD = re.compile(rb"fLaC[\0\x80]\0\0\x22")

# Of MPEG audio. kbit/s by version (2.5 as 2) and layer; Hz of version 1; both by their index.
_BITRATES = {
    (1, 1): range(32, 449, 32),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44_100, 48_000, 32_000)
_DIVISORS = {3: 1, 2: 2, 0: 4}  # of the rate, by the bits of the version


class Part(NamedTuple):
    """A stretch of a file that one decoder reads from its start to its end.

    Attributes:
        start: of its first byte.
        end: after its last byte.
        reader: `libsndfile`; `pipe`, libsndfile as from a pipe; `ffmpeg`; `both`, the first of
            libsndfile and FFmpeg that can.
        is_mpeg: whether it is known to hold frames of MPEG audio.
    """

    start: int
    end: int
    reader: str
    is_mpeg: bool = False


class _Frame(NamedTuple):
    """A frame of MPEG audio or AAC: its bytes, and what all frames of a stream have in common."""

    size: int
    shape: tuple


def find_parts(file: BinaryIO) -> list[Part]:
    """The parts of a file: one, or several of a chained Ogg and of joined FLACs.

    Args:
        file: at any place; it is left at any place.
    """
    end = file.seek(0, os.SEEK_END)
    start = _after_tags(file, 0)
    head = _read_at(file, start, _HEAD)
    if any(head.startswith(magic) for magic in FOR_FFMPEG) or _is_box(head):
        return [Part(start, end, "ffmpeg")]
    if head.startswith(b"OggS"):
        starts = list(_ogg_starts(file, start)) or [start]
        return [
            Part(begin, after, _ogg_reader(file, begin))
            for begin, after in itertools.pairwise([*starts, end])
        ]
    if head.startswith(b"fLaC"):
        starts = [start, *_flac_starts(file, start + 4)]
        return [
            Part(begin, after, "libsndfile") for begin, after in itertools.pairwise([*starts, end])
        ]
    if head.startswith(FOR_BOTH):
        return [Part(start, end, "both")]
    skipped, first = _first_frame(head)
    if first is None:
        unknown = _is_mpeg(head) and not _counts(head)[0]
        return [Part(start, end, "pipe" if unknown else "libsndfile")]
    start += skipped
    if first.shape[0] == "AAC":
        return [Part(start, end, "ffmpeg")]
    return [_mpeg_part(file, Part(start, end, "libsndfile"), first, *_counts(head[skipped:]))]


def _mpeg_part(file: BinaryIO, part: Part, first: _Frame, frames: int, size: int) -> Part:
    """The reader of an MP3, or of several joined, and where it is to stop.

    Args:
        file: that holds it.
        part: from its first frame on.
        first: that frame.
        frames, size: how many frames and bytes it announces, or 0.
    """
    sound_end = part.start + size
    count = 0
    if not size:
        for place, frame in _frames(file, part.start):
            if frame.shape != first.shape or place + frame.size > part.end:
                break
            sound_end = place + frame.size
            count += 1
    rest = _after_tags(file, sound_end)
    if _first_frame(_read_at(file, rest, _HEAD))[1] or (frames and count > frames + 1):
        # Others follow: libsndfile would end before them.
        return part._replace(reader="ffmpeg", is_mpeg=True)
    if frames:
        # One ID3 tag libsndfile passes over by itself, and reads faster than by way of Python.
        only_id3 = part.start == _id3_size(_read_at(file, 0, 10))
        return part._replace(start=0) if only_id3 else part
    # Of an unknown length, libsndfile would make a guess by the first frame. Through a pipe it
    # reads on, but fails at half a frame.
    only_tags = part.end - rest < _LARGEST_FRAME
    return part._replace(reader="pipe", end=sound_end if only_tags else part.end)


def _read_at(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _after_tags(file: BinaryIO, place: int) -> int:
    """The first byte from a place on that is of no tag (ID3, APE) and no padding with zeros."""
    while True:
        tag = _read_at(file, place, 32)
        if size := _id3_size(tag):
            place += size
        elif tag.startswith(b"APETAGEX"):
            place += 32 + int.from_bytes(tag[12:16], "little")
        elif tag.startswith(b"TAG"):
            place += 128
        elif tag.startswith(b"\0") and not _is_box(tag):
            chunk = _read_at(file, place, _READ)
            place += len(chunk) - len(chunk.lstrip(b"\0"))
        else:
            return place


def _id3_size(tag: bytes) -> int:
    """Bytes of the ID3 tag that begins so, 0 if it is none."""
    if len(tag) < 10 or not tag.startswith(b"ID3"):
        return 0
    return 10 + sum((byte & 0x7F) << (7 * (3 - i)) for i, byte in enumerate(tag[6:10]))


def _is_box(head: bytes) -> bool:
    """Whether these bytes begin an MP4 or QuickTime file."""
    return head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")


def _ogg_starts(file: BinaryIO, place: int) -> Iterator[int]:
    """Where streams of an Ogg begin after others have ended, by the headers of all pages."""
    begun = True
    while len(header := _read_at(file, place, 27)) == 27:
        if header[:4] != b"OggS":
            found = _read_at(file, place, _READ).find(b"OggS")
            if found < 0:
                break
            place += found
            continue
        begins = bool(header[5] & 2)
        if begins and begun:  # several that begin at once belong together
            yield place
        begun = not begins
        place += 27 + header[26] + sum(file.read(header[26]))


def _flac_starts(file: BinaryIO, place: int) -> Iterator[int]:
    """Where further FLACs begin: eight bytes that sound has once in 2**63 places."""
    while len(data := _read_at(file, place, _READ)) >= 8:
        for found in _FLAC_HEAD.finditer(data):
            yield place + found.start()
        place += len(data) - 7


def _ogg_reader(file: BinaryIO, start: int) -> str:
    """libsndfile fails on FLAC in Ogg."""
    return "ffmpeg" if _read_at(file, start, 33)[28:] == b"\x7fFLAC" else "both"


@functools.cache
def _mpeg_frame(second: int, third: int, mono: bool) -> _Frame | None:
    """The frame of MPEG audio whose header has these bytes after the first one (ISO 11172-3)."""
    divisor = _DIVISORS.get(second >> 3 & 3)
    version = 1 if divisor == 1 else 2
    layer = 4 - (second >> 1 & 3)
    bitrate, rate, padding = third >> 4, third >> 2 & 3, third >> 1 & 1
    if divisor is None or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    hertz = _RATES[rate] // divisor
    bits = 1000 * _BITRATES[version, layer][bitrate - 1]
    if layer == 1:
        size = 4 * (12 * bits // hertz + padding)
    else:
        size = (72 if (version, layer) == (2, 3) else 144) * bits // hertz + padding
    return _Frame(size, ("MPEG", layer, hertz, mono))


def _frame_at(data: bytes, place: int) -> _Frame | None:
    """The frame of MPEG audio or AAC that begins at a place, None if there is none."""
    if len(data) < place + 6 or data[place] != 0xFF:
        return None
    second, third, fourth = data[place + 1 : place + 4]
    if second & 0xF6 == 0xF0:
        size = (fourth & 3) << 11 | data[place + 4] << 3 | data[place + 5] >> 5
        return _Frame(size, ("AAC", third >> 2 & 15)) if size >= 7 else None
    return _mpeg_frame(second, third, fourth >= 0xC0) if second >= 0xE0 else None


def _first_frame(data: bytes) -> tuple[int, _Frame | None]:
    """Where the first of several frames in a row begins, and that frame; (0, None) without such.

    A recording of a stream begins anywhere in a frame.
    """
    place = data.find(b"\xff")
    while place >= 0:
        if frame := _begins_a_row(data, place):
            return place, frame
        place = data.find(b"\xff", place + 1)
    return 0, None


def _begins_a_row(data: bytes, place: int) -> _Frame | None:
    """The frame at a place, if others like it follow."""
    first = frame = _frame_at(data, place)
    for _ in range(_IN_A_ROW - 1):
        if first is None or frame is None:
            return None
        place += frame.size
        frame = _frame_at(data, place)
        if frame is None or frame.shape != first.shape:
            return None
    return first


def _is_mpeg(head: bytes) -> bool:
    """Whether these bytes begin with what may be the header of an MPEG frame, of any bit rate."""
    return len(head) > 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0


def _counts(head: bytes) -> tuple[int, int]:
    """Frames and bytes that an MP3's first frame announces, 0 where it does not.

    Layout: "XING VBR header" of Xing Inc.'s SDK, which LAME writes too (Xing or Info).
    """
    place = max(head.find(b"Xing", 0, 64), head.find(b"Info", 0, 64))
    if place < 0 or len(head) < place + 16:
        return 0, 0
    flags, *numbers = struct.unpack(">3I", head[place + 4 : place + 16])
    frames = numbers.pop(0) if flags & 1 else 0
    size = numbers.pop(0) if flags & 2 else 0
    return frames, size


def _frames(file: BinaryIO, place: int) -> Iterator[tuple[int, _Frame]]:
    """Places of frames and the frames, from a place on until something else follows."""
    data, begin = b"", place
    while True:
        if len(data) < place - begin + 6:
            data = _read_at(file, place, _READ)
            begin = place
        frame = _frame_at(data, place - begin)
        if frame is None:
            return
        yield place, frame
        place += frame.size
