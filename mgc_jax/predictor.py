"""Genres of anyone's audio, from Python:

    import mgc_jax

    network = mgc_jax.load("runs/densenet")
    for result in network.predict(["song.mp3", "my_music/"]):
        print(result.source, result.error or result.ranking)

Threads decode while the network runs (libsndfile, soxr and the transforms let other threads go on),
block by block, so that a file may have any length. All files share batches of one shape: one
compilation serves any number of them. `network.embed(...)` takes the same sources, and gives
vectors that have small angles where songs are alike.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from mgc_jax import parallel, signals
from mgc_jax.data.clips import Clip, encode_clips, iter_clips
from mgc_jax.data.features import Mel
from mgc_jax.data.opening import Clips, Hear, Source, open_sources
from mgc_jax.data.picture import Picture
from mgc_jax.decoding import Track, decode
from mgc_jax.errors import InputError, choices
from mgc_jax.results.calibration import apply_temperature
from mgc_jax.results.files import read_known
from mgc_jax.results.known import Known
from mgc_jax.results.metrics import mean_log_probs
from mgc_jax.training import embedding
from mgc_jax.training.network import TrainedRun, load_run
from mgc_jax.training.public_weights import PUBLIC_WEIGHTS, is_public, load_public
from mgc_jax.training.track_head import compile_rows_step, reads_tracks, track_head
from mgc_jax.workers import Streams

DEMO_NOTICE = "trained on synthesised music: what it says of real music means nothing"


def load(
    workdir: str | os.PathLike, batch_size: int = 8, unknown: float | None = None
) -> "Predictor":
    """Loads the best checkpoint of a run, or public weights.

    Args:
        workdir: of the run; nothing else is needed. Where there is no such folder, the name of
            public weights (`mgc_jax weights` lists them), which are fetched once.
        batch_size: clips a step, rounded up to a multiple of the devices. It changes the speed
            only: 8 suits a CPU, an accelerator is busier with more.
        unknown: say of music that is like none of the training's that it is unknown, so that this
            share of the validation tracks is wrongly called so.

    Raises:
        InputError: the workdir holds no run or no finished epoch, or its settings cannot be met; it
            does not say what is unknown.
    """
    if unknown is not None and not 0 <= unknown < 1:
        raise InputError(f"unknown={unknown}: need a share of the validation tracks, below 1")
    parallel.use_compilation_cache()
    if is_public(workdir):
        if unknown is not None:
            raise InputError(f"{workdir} has tags, not genres: of no music it says unknown")
        about = PUBLIC_WEIGHTS[str(workdir)].trained_on
        return Predictor(load_public(str(workdir)), batch_size, f"trained on {about}")
    if not os.path.exists(workdir):
        known = choices(str(workdir), PUBLIC_WEIGHTS)
        raise InputError(f"no such folder: {workdir}, and of public weights {known}")
    run = load_run(workdir)
    if unknown is not None and reads_tracks(run.network):
        raise InputError(f"{workdir} is a probe, which does not say of music that it is unknown")
    known = None if unknown is None else read_known(workdir, run.epoch)
    return Predictor(run, batch_size, known=known, unknown=unknown or 0.0)


@dataclasses.dataclass(frozen=True, eq=False)  # arrays have no one truth value
class Prediction:
    """What a network says of one source.

    Attributes:
        source: the path, or `array 0`, `array 1`, ... for arrays.
        error: why the source could not be used, else None. With an error all that follows is empty.
        ranking: genre to probability, likeliest first: the mean of the clips' log-probabilities,
            made to sum to one. Of tags, tag to activation: the mean over the clips, each by itself.
        genres: in the order of the timeline's columns.
        tagging: whether they are tags, whose activations do not sum to one.
        timeline: `[clips, genres] float32`, probabilities of the clips; those without signal are
            left out.
        starts: `[clips] float`, where they begin, in s. The last one ends with the source, and may
            overlap the one before it.
        clip_seconds: length of a clip, in s.
        seconds: of the source that were decoded; 0 where worker processes did that.
        silent_clips: how many clips were left out, as they have no signal.
        unknown: whether it is like no genre of the training; False unless that was asked for.
        distance: how far it is from the nearest genre (see `Known`); None unless asked for.
        spectrogram: `[frames, mels] float32`, dB below its maximum, over the whole source (of
            long ones with frames left out); None unless asked for.
        mel: the log-mel that the spectrogram is of; None unless asked for.
    """

    source: str
    error: str | None = None
    ranking: dict[str, float] = dataclasses.field(default_factory=dict)
    genres: tuple[str, ...] = ()
    tagging: bool = False
    timeline: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    starts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    clip_seconds: float = 0.0
    seconds: float = 0.0
    silent_clips: int = 0
    unknown: bool = False
    distance: float | None = None
    spectrogram: np.ndarray | None = None
    mel: Mel | None = None

    @property
    def genre(self) -> str | None:
        """The likeliest genre; None with an error, of tags, and where it is unknown.

        Examples:
            >>> Prediction("song.mp3", ranking={"Folk": 0.7, "Rock": 0.3}).genre
            'Folk'
        """
        return None if self.tagging or self.unknown else next(iter(self.ranking), None)

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the timeline's picture, where there is a spectrogram."""
        if self.spectrogram is None:
            return None
        # Here, as matplotlib would delay every start.
        from mgc_jax.results.page import png
        from mgc_jax.timeline import plot_timeline

        return png(plot_timeline(self))


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
    """Where a network puts one source among all music.

    Attributes:
        source: the path, or `array 0`, `array 1`, ... for arrays.
        error: why the source could not be used, else None.
        vector: `[channels] float32`, the mean over the clips of what the network has before its
            classifier; None with an error.
    """

    source: str
    error: str | None = None
    vector: np.ndarray | None = None


class Predictor:
    """A trained network, with the features that it was trained on."""

    def __init__(
        self,
        run: TrainedRun,
        batch_size: int = 8,
        notice: str | None = None,
        known: Known | None = None,
        unknown: float = 0.0,
    ):
        """Puts a run's network on all devices.

        Args:
            run: to predict with.
            batch_size: as for `load`.
            notice: what is to be said beside every answer.
            known: what "unknown" is told by; None never says so.
            unknown: as for `load`.
        """
        network = run.network
        self.genres = network.genres
        # Whether these are tags, each of which is true or not by itself.
        self.tagging = network.tagging
        # What is to be said beside every answer, or None.
        self.notice = DEMO_NOTICE if network.config.dataset == "demo" else notice
        self._network = network
        self._temperature = run.temperature
        self._audio = network.stored[0].audio
        # What a spectrogram is drawn of: the network's own picture, where it sees one.
        mels = [feature for feature in network.stored if isinstance(feature, Mel)]
        self._mel = mels[0] if mels else Mel.from_config(network.config)
        self._variables = parallel.replicate(run.variables)
        self._known = known
        # How far music may be from the nearest genre.
        self.limit = known.limit(unknown) if known else math.inf
        compiled = embedding.compile_answer_step if known else compile_rows_step
        self._predict_step = compiled(network)
        self._track_head = track_head(network, self._variables)
        devices = jax.device_count()
        self._batch_size = math.ceil(batch_size / devices) * devices

    def __repr__(self) -> str:
        network = self._network
        genres = ", ".join(self.genres)
        return (
            f"<{type(self).__name__} of {network.config.model}, {network.parameters:,} parameters, "
            f"{len(self.genres)} genres: {genres}>"
        )

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
        hear: Hear | None = None,
    ) -> Iterator[Prediction]:
        """As `predict`, one result after the other as soon as it is there.

        `hear` is called, in threads, with a source's name and the seconds of it that are decoded so
        far; an InputError that it raises becomes the source's error.
        """
        lengths = {}

        def listen(name: str, seconds: float) -> None:
            lengths[name] = seconds
            if hear:
                hear(name, seconds)

        opened = open_sources(sources, sample_rate, self._audio, listen)
        tracks = (self._open(name, clips, spectrograms) for name, clips in opened)
        for track in self._run(self._predict_step, tracks):
            yield self._result(track, lengths.get(track.name, 0.0))

    def stream_isolated(self, paths: Iterable[str]) -> Iterator[Prediction]:
        """As `stream`, of files, which worker processes decode: see `_isolated`."""
        yield from map(self._result, self._isolated(self._predict_step, paths))

    def embed(
        self, sources: Source | Iterable[Source], sample_rate: int | None = None
    ) -> list[Embedding]:
        """Embeds files, folders and arrays: songs that are alike have vectors of a small angle.

        Arguments, order and errors are those of `predict`; also raises InputError where the network
        has no layer of the name `classifier`.
        """
        return list(self.stream_embeddings(sources, sample_rate))

    def stream_embeddings(
        self, sources: Source | Iterable[Source], sample_rate: int | None = None
    ) -> Iterator[Embedding]:
        """As `embed`, one result after the other as soon as it is there."""
        opened = open_sources(sources, sample_rate, self._audio)
        tracks = (self._open(name, clips, False) for name, clips in opened)
        yield from map(_embedding, self._run(self._embed_step, tracks))

    def stream_embeddings_isolated(self, paths: Iterable[str]) -> Iterator[Embedding]:
        """As `stream_embeddings`, of files, which worker processes decode: see `_isolated`."""
        yield from map(_embedding, self._isolated(self._embed_step, paths))

    @functools.cached_property
    def embedding_size(self) -> int:
        """Channels of an embedding."""
        return embedding.size_of(self._network)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of the network's weights: embeddings of two networks cannot be compared."""
        return embedding.fingerprint(self._variables)

    @property
    def tells_unknown(self) -> bool:
        """Whether answers say if a file is like no genre of the training."""
        return self._known is not None

    @functools.cached_property
    def identity(self) -> str:
        """A hash of all that an answer depends on beside the file: weights, settings, limits."""
        network = self._network
        seen = (network.stored, network.features, network.config.windows)
        text = repr((self.fingerprint, seen, self._temperature, self.limit, self.genres))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @functools.cached_property
    def _embed_step(self) -> Callable:
        embedding.size_of(self._network)  # fails with one line where there is no classifier
        return embedding.compile_embed_step(self._network)

    def _isolated(self, step: Callable, paths: Iterable[str]) -> Iterator[Track]:
        """As `_run`, of files that worker processes decode.

        A decoder that crashes, or gives nothing for a minute, then costs its file alone. Starting
        the processes takes each of them half a second.
        """
        encode = functools.partial(iter_clips, features=self._network.stored, precision=np.float64)
        with Streams(encode) as streams:
            yield from self._run(step, (Track(path, streams.run(path)) for path in paths))

    def _run(self, step: Callable, tracks: Iterator[Track]) -> Iterator[Track]:
        """Takes all tracks through the network.

        Args:
            step: `(variables, stored) -> [batch, width]`, compiled.
            tracks: to be decoded.

        Yields:
            Each track, in order, with its rows or its error, as soon as all its clips are done.
        """
        unfinished = collections.deque()  # in the order asked for
        for track, clip, row in self._run_network(step, decode(tracks, unfinished)):
            track.rows.append(row)
            track.starts.append(clip.start)
            while unfinished and unfinished[0].finished:
                yield unfinished.popleft()
        yield from unfinished

    def _open(self, name: str, clips: Clips, pictured: bool) -> Track:
        picture = Picture(self._mel) if pictured else None
        if picture:
            clips = picture.follow(clips)
        # In float64, so that an exported network gives the same numbers.
        return Track(name, encode_clips(clips, self._network.stored, np.float64), picture)

    def _run_network(
        self, step: Callable, clips: Iterator[tuple[Track, Clip]]
    ) -> Iterator[tuple[Track, Clip, np.ndarray]]:
        """Adds each clip's row of the step; one batch runs while the next is decoded.

        The last batch is filled up, so that there is one shape.
        """
        names = self._network.module.inputs
        running = collections.deque()
        while batch := list(itertools.islice(clips, self._batch_size)):
            signals.check()
            filled = batch + batch[-1:] * (self._batch_size - len(batch))
            stored = {name: np.stack([clip.features[name] for _, clip in filled]) for name in names}
            running.append((batch, step(self._variables, stored)))
            if len(running) > 1:
                yield from _fetch(*running.popleft())
        for last in running:
            yield from _fetch(*last)

    def _result(self, track: Track, seconds: float = 0.0) -> Prediction:
        """What is said of a track whose clips have all been through the network."""
        if track.error is not None:
            return Prediction(track.name, track.error)
        rows = np.stack(track.rows)
        distance = None
        if self._known:
            vector = rows[:, len(self.genres) :].mean(axis=0, dtype=np.float64)
            distance = float(self._known.distance(vector[None])[0])
        if self.tagging:
            timeline = rows
            mean = rows.mean(axis=0)
        else:
            log_probs = apply_temperature(rows[:, : len(self.genres)], self._temperature)
            timeline = np.exp(log_probs)
            if self._track_head is None:
                joined = mean_log_probs(log_probs, np.zeros(len(rows)))[1]
            else:
                joined = apply_temperature(self._track_head.of_track(rows), self._temperature)
            mean = np.exp(joined[0])
        return Prediction(
            track.name,
            ranking={self.genres[i]: float(mean[i]) for i in np.argsort(-mean)},
            genres=self.genres,
            tagging=self.tagging,
            timeline=timeline,
            starts=np.array(track.starts),
            clip_seconds=self._audio.clip_seconds,
            seconds=seconds,
            silent_clips=track.silent,
            unknown=distance is not None and distance > self.limit,
            distance=distance,
            spectrogram=track.picture.values() if track.picture else None,
            mel=self._mel if track.picture else None,
        )


def _embedding(track: Track) -> Embedding:
    """What is said of a track whose clips have all been through the network."""
    if track.error is not None:
        return Embedding(track.name, track.error)
    mean = np.mean(track.rows, axis=0, dtype=np.float64)
    return Embedding(track.name, vector=mean.astype(np.float32))


def _fetch(
    batch: list[tuple[Track, Clip]], rows: jax.Array
) -> Iterator[tuple[Track, Clip, np.ndarray]]:
    for (track, clip), row in zip(batch, np.asarray(rows), strict=False):
        yield track, clip, row
