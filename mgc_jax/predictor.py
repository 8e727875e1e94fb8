"""Genres of anyone's audio, from Python:

    import mgc_jax

    network = mgc_jax.load("runs/densenet")
    for result in network.predict(["song.mp3", "my_music/"]):
        print(result.source, result.error or result.ranking)

Threads decode while the network runs (libsndfile, soxr and the transforms let other threads go on),
block by block, so that a file may have any length. All files share batches of one shape: one
compilation serves any number of them.
"""

import collections
import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from mgc_jax import parallel
from mgc_jax.data import audio
from mgc_jax.data.clips import Clip, encode_clip
from mgc_jax.data.features import Mel
from mgc_jax.data.folders import find_audio
from mgc_jax.errors import InputError
from mgc_jax.results.metrics import mean_log_probs
from mgc_jax.training.network import TrainedRun, load_run
from mgc_jax.training.step import compile_predict_step

Source = str | os.PathLike | np.ndarray | jax.Array | tuple[int, np.ndarray]
DEMO_NOTICE = "trained on synthesised music: what it says of real music means nothing"
_CHUNK = 8  # clips that a thread decodes before it turns to the next file
_MAX_FRAMES = 4096  # of a spectrogram


def load(workdir: str | os.PathLike, batch_size: int = 8) -> "Predictor":
    """Loads the best checkpoint of a run.

    Args:
        workdir: of the run; nothing else is needed.
        batch_size: clips a step, rounded up to a multiple of the devices. It changes the speed
            only: 8 suits a CPU, an accelerator is busier with more.

    Raises:
        InputError: the workdir holds no run or no finished epoch, or its settings cannot be met.
    """
    parallel.use_compilation_cache()
    return Predictor(load_run(workdir), batch_size)


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Prediction:
    """What a network says of one source.

    Attributes:
        source: the path, or `array 0`, `array 1`, ... for arrays.
        error: why the source could not be used, else None. With an error all that follows is empty.
        ranking: genre to probability, likeliest first: the mean of the clips' log-probabilities,
            made to sum to one.
        genres: in the order of the timeline's columns.
        timeline: `[clips, genres] float32`, probabilities of the clips; those without signal are
            left out.
        starts: `[clips] float`, where they begin, in s. The last one ends with the source, and may
            overlap the one before it.
        clip_seconds: length of a clip, in s.
        spectrogram: `[frames, mels] float32`, dB below each clip's maximum, over the whole source
            (of long ones with frames left out); None unless asked for.
        mel: the log-mel that the spectrogram is of; None unless asked for.
    """

    source: str
    error: str | None = None
    ranking: dict[str, float] = dataclasses.field(default_factory=dict)
    genres: tuple[str, ...] = ()
    timeline: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    starts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    clip_seconds: float = 0.0
    spectrogram: np.ndarray | None = None
    mel: Mel | None = None

    @property
    def genre(self) -> str | None:
        """The likeliest genre; None with an error.

        Examples:
            >>> Prediction("song.mp3", ranking={"Folk": 0.7, "Rock": 0.3}).genre
            'Folk'
        """
        return next(iter(self.ranking), None)


@dataclasses.dataclass
class _Track:
    """A source on its way through the decoder and the network."""

    name: str
    clips: Iterator[Clip]  # those still to decode
    count: int = 0  # decoded ones
    decoded: bool = False
    error: str | None = None
    starts: list[float] = dataclasses.field(default_factory=list)
    log_probs: list[np.ndarray] = dataclasses.field(default_factory=list)
    mels: list[np.ndarray] = dataclasses.field(default_factory=list)
    mel_step: int = 1
    heard_until: float = 0.0  # s

    @property
    def finished(self) -> bool:
        return self.error is not None or (self.decoded and self.count == len(self.log_probs))

    def keep_mel(self, mel: np.ndarray, start: float, seconds: float) -> None:
        """Adds a clip's `[frames, mels]` to the spectrogram; thins it out as it grows too long.

        Args:
            mel: of the clip, as stored.
            start: of the clip, in s; where it overlaps the one before, its end alone is new, and
                before it nothing was heard since the end of that one.
            seconds: length of the clip.
        """
        new = round((start + seconds - self.heard_until) / seconds * len(mel))
        if new > len(mel):
            gap = np.zeros(((new - len(mel)) // self.mel_step, mel.shape[1]), mel.dtype)
            self.mels.append(gap)
        self.mels.append(mel[max(0, len(mel) - new) :: self.mel_step])
        self.heard_until = start + seconds
        while sum(map(len, self.mels)) > _MAX_FRAMES and self.mel_step < len(mel):
            self.mels = [kept[::2] for kept in self.mels]
            self.mel_step *= 2


class Predictor:
    """A trained network, with the features that it was trained on."""

    def __init__(self, run: TrainedRun, batch_size: int = 8):
        """Puts a run's network on all devices; arguments as for `load`."""
        network = run.network
        self.genres = network.genres
        # What is to be said beside every answer, or None.
        self.notice = DEMO_NOTICE if network.config.dataset == "demo" else None
        self._network = network
        self._audio = network.features[0].audio
        # What a spectrogram is drawn of: the network's own picture, where it sees one.
        mels = [feature for feature in network.features if isinstance(feature, Mel)]
        self._mel = mels[0] if mels else Mel.from_config(network.config)
        self._variables = parallel.replicate(run.variables)
        self._predict_step = compile_predict_step(network)
        devices = jax.device_count()
        self._batch_size = math.ceil(batch_size / devices) * devices

    def predict(
        self,
        sources: Source | Iterable[Source],
        sample_rate: int | None = None,
        spectrograms: bool = False,
    ) -> list[Prediction]:
        """Predicts files, folders and arrays.

        Args:
            sources: one, or any number. A folder stands for the audio files below it; arrays, of
                NumPy or JAX, are `[samples]`, or also have an axis of channels, which is the
                shorter one; floats in [-1, 1], int16 or int32. A pair `(rate, array)` is one too.
            sample_rate: of the arrays, in Hz.
            spectrograms: also give the log-mel pictures.

        Returns:
            One result a file or array, in order. What cannot be used has an `error`; the rest go
            on.

        Raises:
            InputError: `sample_rate` is no whole number above 0.
        """
        return list(self.stream(sources, sample_rate, spectrograms))

    def stream(
        self,
        sources: Source | Iterable[Source],
        sample_rate: int | None = None,
        spectrograms: bool = False,
    ) -> Iterator[Prediction]:
        """As `predict`, one result after the other as soon as it is there."""
        features = self._network.features
        if spectrograms and self._mel not in features:
            features = (*features, self._mel)
        _check_rate(sample_rate)
        opened = self._open(sources, sample_rate)
        # In float64, so that an exported network gives the same numbers.
        tracks = (
            _Track(name, (encode_clip(clip, features, np.float64) for clip in clips))
            for name, clips in opened
        )
        unfinished = collections.deque()  # in the order asked for
        for track, clip, log_probs in self._run_network(_decode(tracks, unfinished)):
            track.log_probs.append(log_probs)
            track.starts.append(clip.start)
            if spectrograms:
                mel = clip.features[self._mel.name]
                track.keep_mel(mel, clip.start, self._audio.clip_seconds)
            while unfinished and unfinished[0].finished:
                yield self._result(unfinished.popleft())
        yield from map(self._result, unfinished)

    def _open(
        self, sources: Source | Iterable[Source], rate: int | None
    ) -> Iterator[tuple[str, Iterator[audio.AudioClip]]]:
        """Names of sources, and their clips; nothing is read yet."""
        sample_rate = self._audio.sample_rate
        clip_samples = self._audio.clip_samples
        arrays = itertools.count()
        for source in [sources] if _is_one(sources) else sources:
            if isinstance(source, str | os.PathLike):
                for path in find_files([source]):
                    yield path, audio.read_clips(path, sample_rate, clip_samples)
            else:
                name = f"array {next(arrays)}"
                yield name, _array_clips(source, rate, sample_rate, clip_samples)

    def _run_network(
        self, clips: Iterator[tuple[_Track, Clip]]
    ) -> Iterator[tuple[_Track, Clip, np.ndarray]]:
        """Adds each clip's log-probabilities `[genres]`; one batch runs while the next is decoded.

        The last batch is filled up, so that there is one shape.
        """
        running = collections.deque()
        while batch := list(itertools.islice(clips, self._batch_size)):
            filled = batch + batch[-1:] * (self._batch_size - len(batch))
            stored = {
                name: np.stack([clip.features[name] for _, clip in filled])
                for name in self._network.module.inputs
            }
            running.append((batch, self._predict_step(self._variables, stored)))
            if len(running) > 1:
                yield from _fetch(*running.popleft())
        for step in running:
            yield from _fetch(*step)

    def _result(self, track: _Track) -> Prediction:
        """What is said of a track whose clips have all been through the network."""
        if track.error is not None:
            return Prediction(track.name, track.error)
        log_probs = np.stack(track.log_probs)
        mean = mean_log_probs(log_probs, np.zeros(len(log_probs)))[1][0]
        spectrogram = None
        if track.mels:
            seen = self._mel.network_input(np.concatenate(track.mels))
            spectrogram = self._mel.decode(seen)
        return Prediction(
            track.name,
            ranking={self.genres[i]: float(np.exp(mean[i])) for i in np.argsort(-mean)},
            genres=self.genres,
            timeline=np.exp(log_probs),
            starts=np.array(track.starts),
            clip_seconds=self._audio.clip_seconds,
            spectrogram=spectrogram,
            mel=self._mel if track.mels else None,
        )


def find_files(paths: Iterable[str | os.PathLike]) -> Iterator[str]:
    """Files as given, and the audio files below folders, sorted."""
    for path in paths:
        if os.path.isdir(path):
            found = find_audio(path)
            found.say_what_was_passed_over()
            yield from found.audio
        else:
            yield os.fspath(path)


def _decode(
    tracks: Iterable[_Track], unfinished: collections.deque
) -> Iterator[tuple[_Track, Clip]]:
    """Clips of all tracks, decoded by threads some chunks ahead; a track's clips are in order.

    Args:
        tracks: decoded one for each thread at a time, and one more.
        unfinished: gets each track as its decoding starts.
    """
    # Those that this process may use, where the system tells.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
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
            track.decoded = len(clips) < _CHUNK
            if not track.decoded:
                pending.append((track, pool.submit(_next_clips, track)))
            yield from ((track, clip) for clip in clips)


def _next_clips(track: _Track) -> list[Clip]:
    return list(itertools.islice(track.clips, _CHUNK))


def _fetch(
    batch: list[tuple[_Track, Clip]], log_probs: jax.Array
) -> Iterator[tuple[_Track, Clip, np.ndarray]]:
    for (track, clip), row in zip(batch, np.asarray(log_probs), strict=False):
        yield track, clip, row


def _is_one(sources: Any) -> bool:
    """Whether this is one source, not several: a path, an array, or a rate with an array."""
    if isinstance(sources, str | os.PathLike | np.ndarray | jax.Array):
        return True
    return (
        isinstance(sources, tuple)
        and len(sources) == 2
        and isinstance(sources[0], int)
        and isinstance(sources[1], np.ndarray | jax.Array)
    )


def _array_clips(
    source: Any, rate: int | None, sample_rate: int, clip_samples: int
) -> Iterator[audio.AudioClip]:
    """The clips of an array, or of a rate with an array; anything else is an InputError."""
    if _is_one(source) and isinstance(source, tuple):
        rate, source = source
        _check_rate(rate)
    if not isinstance(source, np.ndarray | jax.Array):
        raise InputError(f"{type(source).__name__}: need a path, an array, or (rate, array)")
    if rate is None:
        raise InputError("sample_rate is missing: an array does not tell it")
    blocks = audio.array_blocks(np.asarray(source), rate, sample_rate)
    yield from audio.cut_clips(blocks, sample_rate, clip_samples)


def _check_rate(rate: int | None) -> None:
    """Raises InputError for a rate that is no number above 0."""
    if rate is not None and not (isinstance(rate, int | np.integer) and rate > 0):
        raise InputError(f"sample_rate={rate!r}: need a whole number above 0, in Hz")
