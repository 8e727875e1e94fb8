"""Files on their way to the network: several are decoded at a time, each in order.

Threads do it (libsndfile, soxr and the transforms let other threads go on); where clips come from
worker processes (`workers.Streams`), the threads wait for those.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mgc_jax.data.clips import Clip
from mgc_jax.data.picture import Picture
from mgc_jax.errors import InputError

_CHUNK = 8  # clips that a thread decodes before it turns to the next file


@dataclasses.dataclass
class Track:
    """A source on its way through the decoder and the network."""

    name: str
    clips: Generator[Clip, None, int]  # those still to decode
    picture: Picture | None = None  # that they draw as they are decoded
    count: int = 0  # decoded ones
    decoded: bool = False
    silent: int = 0  # clips without signal
    error: str | None = None
    starts: list[float] = dataclasses.field(default_factory=list)
    rows: list[np.ndarray] = dataclasses.field(default_factory=list)  # the network's, one a clip

    @property
    def finished(self) -> bool:
        return self.error is not None or (self.decoded and self.count == len(self.rows))


def decode(tracks: Iterable[Track], unfinished: collections.deque) -> Iterator[tuple[Track, Clip]]:
    """Clips of all tracks, decoded by threads some chunks ahead; a track's clips are in order.

    Args:
        tracks: decoded one for each thread at a time, and one more.
        unfinished: gets each track as its decoding starts.
    """
    # Those that this process may use, where the system tells.
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    tracks = iter(tracks)
    pending = collections.deque()
    with ThreadPoolExecutor(cores) as pool:
        while True:
            for track in itertools.islice(tracks, cores + 1 - len(pending)):
                unfinished.append(track)
                pending.append((track, pool.submit(_next_clips, track)))
            if not pending:
                return
            track, future = pending.popleft()
            try:
                clips = future.result()
            except InputError as error:
                track.error = str(error)
                continue
            track.count += len(clips)
            if not track.decoded:
                pending.append((track, pool.submit(_next_clips, track)))
            yield from ((track, clip) for clip in clips)


def _next_clips(track: Track) -> list[Clip]:
    """The next clips of a track; after the last one, says of it that all are decoded."""
    clips = []
    while len(clips) < _CHUNK:
        try:
            clips.append(next(track.clips))
        except StopIteration as end:
            track.silent = end.value
            track.decoded = True
            break
    return clips
