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

import jax
import numpy as np
import soxr

from mgc_jax import parallel
from mgc_jax.data import audio
from mgc_jax.data.clips import clip_features
from mgc_jax.data.features import Mel
from mgc_jax.data.folders import find_audio
from mgc_jax.errors import InputError
from mgc_jax.results.metrics import mean_log_probs
from mgc_jax.training.network import TrainedRun, load_run
from mgc_jax.training.step import compile_predict_step

Source = str | os.PathLike | np.ndarray
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
        timeline: `[clips, genres] float32`, probabilities of the clips, which follow one another
            from the start of the source.
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
    clips: Iterator[dict[str, np.ndarray]]  # those still to decode
    count: int = 0  # decoded ones
    decoded: bool = False
    error: str | None = None
    log_probs: list[np.ndarray] = dataclasses.field(default_factory=list)
    mels: list[np.ndarray] = dataclasses.field(default_factory=list)
    mel_step: int = 1

    @property
    def finished(self) -> bool:
        return self.error is not None or (self.decoded and self.count == len(self.log_probs))

    def keep_mel(self, mel: np.ndarray) -> None:
        """Adds a clip's `[frames, mels]` to the spectrogram; thins it out as it grows too long."""
        self.mels.append(mel[:: self.mel_step])
        if sum(map(len, self.mels)) > _MAX_FRAMES and self.mel_step < len(mel):
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
            sources: one, or any number. A folder stands for the audio files below it; arrays are
                `[samples]` or `[samples, channels]`, floats in [-1, 1].
            sample_rate: of the arrays, in Hz; default: the network's own.
            spectrograms: also give the log-mel pictures.

        Returns:
            One result a file or array, in order. What cannot be used has an `error`; the rest go
            on.
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
        opened = self._open(sources, sample_rate or self._audio.sample_rate)
        # In float64, so that an exported network gives the same numbers.
        tracks = (
            _Track(name, (clip_features(clip, features, np.float64) for clip in clips))
            for name, clips in opened
        )
        unfinished = collections.deque()  # in the order asked for
        for track, clip, log_probs in self._run_network(_decode(tracks, unfinished)):
            track.log_probs.append(log_probs)
            if spectrograms:
                track.keep_mel(clip[self._mel.name])
            while unfinished and unfinished[0].finished:
                yield self._result(unfinished.popleft())
        yield from map(self._result, unfinished)

    def _open(
        self, sources: Source | Iterable[Source], rate: int
    ) -> Iterator[tuple[str, Iterator[np.ndarray]]]:
        """Names of sources, and their clips; nothing is read yet."""
        settings = self._audio.sample_rate, self._audio.clip_samples
        arrays = itertools.count()
        for source in [sources] if isinstance(sources, Source) else sources:
            if isinstance(source, np.ndarray):
                yield f"array {next(arrays)}", _array_clips(source, rate, *settings)
            else:
                for path in find_files([source]):
                    yield path, audio.read_clips(path, *settings)

    def _run_network(
        self, clips: Iterator[tuple[_Track, dict]]
    ) -> Iterator[tuple[_Track, dict, np.ndarray]]:
        """Adds each clip's log-probabilities `[genres]`; one batch runs while the next is decoded.

        The last batch is filled up, so that there is one shape.
        """
        running = collections.deque()
        while batch := list(itertools.islice(clips, self._batch_size)):
            filled = batch + batch[-1:] * (self._batch_size - len(batch))
            stored = {
                name: np.stack([clip[name] for _, clip in filled])
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
) -> Iterator[tuple[_Track, dict[str, np.ndarray]]]:
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


def _next_clips(track: _Track) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(track.clips, _CHUNK))


def _fetch(
    batch: list[tuple[_Track, dict]], log_probs: jax.Array
) -> Iterator[tuple[_Track, dict, np.ndarray]]:
    for (track, clip), row in zip(batch, np.asarray(log_probs), strict=False):
        yield track, clip, row


def _array_clips(
    array: np.ndarray, rate: int, sample_rate: int, clip_samples: int
) -> Iterator[np.ndarray]:
    if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.floating):
        raise InputError(
            f"{array.dtype} of shape {array.shape}: need floats, [samples] or [samples, channels]"
        )
    mono = array.reshape(len(array), -1 if array.size else 1).mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise InputError("holds samples that are not finite numbers")
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate, quality="HQ")
    yield from audio.cut_clips([mono], sample_rate, clip_samples)
