"""TFDS builders: write the clips of a list of tracks as TFRecords that plain TFDS reads without
this package.

    tfrecords/<dataset>/<mel | waveform | mel_waveform>/<version>/

One record is one clip. A data set's own part is its list of tracks; everything else is
`_ClipBuilder`.
"""

import contextlib
import dataclasses
import fcntl
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from ml_collections import ConfigDict
from tensorflow_datasets.core import writer

from mgc_jax import console, data
from mgc_jax.data.cache import ClipCache
from mgc_jax.data.clips import DTYPES, Clip, deviation_from_librosa, iter_clips
from mgc_jax.data.features import ClipSettings
from mgc_jax.data.tracks import (
    SKIPPED_FILE,
    SPLITS,
    Listing,
    Skipped,
    Track,
    check_usable,
    genres_of,
    list_tracks,
    write_lists,
)
from mgc_jax.data.workers import run_all
from mgc_jax.errors import InputError

Example = tuple[str, dict]
_MAX_MEL_DEVIATION_DB = 0.01
_MAX_WAVEFORM_DEVIATION = 1e-6


class _ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the clips of tracks, and beside them `tracks.csv` and `skipped.csv`.

    Args:
        tracks: the tracks to write.
        skipped: those known to be unusable.
        genres: names in label order.
        settings: rate, clip length and log-mel settings.
        clips_of: gives a track's clips, or raises InputError if it cannot be used (Beam only).
        max_skipped: the largest share of tracks that may be unusable.
        facts: further metadata.
        **kwargs: as for any TFDS builder.
    """

    VERSION = tfds.core.Version(data.VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="mel", description="Log-mel pictures."),
        tfds.core.BuilderConfig(name="waveform", description="Waveforms."),
        tfds.core.BuilderConfig(name="mel_waveform", description="Log-mel pictures and waveforms."),
    ]
    SYNTHETIC = False

    def __init__(
        self,
        *,
        tracks: Sequence[Track],
        skipped: Sequence[Skipped],
        genres: Sequence[str],
        settings: ClipSettings,
        clips_of: Callable[[Track], Iterable[Clip]],
        max_skipped: float,
        facts: dict,
        **kwargs,
    ):
        self._tracks = {split: [t for t in tracks if t.split == split] for split in SPLITS}
        self._skipped = skipped
        self._genres = genres
        self._settings = settings
        self._examples_of = functools.partial(_examples_of, clips_of=clips_of)
        self._max_skipped = max_skipped
        self._facts = facts
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        clip = {
            # As bytes: lists of integers cost 3 to 100 times more to write and read.
            name: tfds.features.Tensor(
                shape=self._settings.shape(name),
                dtype=DTYPES[name],
                encoding=tfds.features.Encoding.BYTES,
            )
            for name in self.builder_config.name.split("_")
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Clips of {self._settings.clip_seconds:g} s with their genre.",
            features=tfds.features.FeaturesDict(
                clip
                | {
                    "label": tfds.features.ClassLabel(names=self._genres),
                    "track_id": np.int64,
                    "clip": np.int64,
                }
            ),
            metadata=tfds.core.MetadataDict(
                settings=dataclasses.asdict(self._settings), synthetic=self.SYNTHETIC, **self._facts
            ),
        )

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        self._beam = download_config.beam_runner is not None
        super()._download_and_prepare(dl_manager, download_config)
        self._conclude()

    def _split_generators(self, dl_manager) -> dict:
        del dl_manager  # audio comes from the folders given
        if self._beam:
            from mgc_jax.data.beam import ExtractTracks

            return {
                split: ExtractTracks(tracks, self._examples_of, self._skipped_by_beam(split))
                for split, tracks in self._tracks.items()
            }
        return {split: self._generate_examples(tracks) for split, tracks in self._tracks.items()}

    def _generate_examples(self, tracks: Sequence[Track]) -> Iterator[tuple[str, dict]]:
        with console.progress_bar(
            total=len(tracks), description="clips to TFRecords", unit="track", leave=False
        ) as bar:
            for track in tracks:
                yield from self._examples_of(track)
                bar.update()

    def _example_writer(self) -> writer.ExampleWriter:
        return _SortingWriter(self.info.file_format)

    def _conclude(self) -> None:
        """Writes the lists, and completes the metadata, which TFDS then writes last of all."""
        used, skipped = dict(self._tracks), list(self._skipped)
        if self._beam:
            from mgc_jax.data.beam import read_skipped

            for split, tracks in self._tracks.items():
                file = self._skipped_by_beam(split)
                reasons = read_skipped(file)
                file.unlink()
                skipped += [(tracks[number], reason) for number, reason in reasons.items()]
                used[split] = [t for number, t in enumerate(tracks) if number not in reasons]
        tracks = [track for split in SPLITS for track in used[split]]
        check_usable(tracks, skipped, self._max_skipped, self.data_path.parent)
        write_lists(self.data_path, tracks, skipped)
        self.info.metadata.update(
            tracks_listed=len(tracks) + len(skipped),
            splits={
                split: {"tracks": len(used[split]), "clips": self.info.splits[split].num_examples}
                for split in SPLITS
            },
        )

    def _skipped_by_beam(self, split: str) -> epath.Path:
        return self.data_path / f"skipped-{split}.json"


class _SortingWriter(writer.ExampleWriter):
    """Writes each record's features in one order; protobuf's own differs from process to process.

    Without it, two preparations of the same files would not be the same bytes.
    """

    def write(self, path, examples):
        return super().write(
            path,
            (
                (key, tf.train.Example.FromString(record).SerializeToString(deterministic=True))
                for key, record in examples
            ),
        )


def _examples_of(track: Track, clips_of: Callable[[Track], Iterable[Clip]]) -> Iterator[Example]:
    """A track's records, each with the key that decides on its place."""
    labels = {"label": track.genre, "track_id": track.track_id}
    for i, clip in enumerate(clips_of(track)):
        yield f"{track.track_id}_{i}", {**clip, **labels, "clip": i}


class FmaSmall(_ClipBuilder):
    """FMA small: 8,000 tracks of 30 s, 8 balanced genres."""


class FmaMedium(_ClipBuilder):
    """FMA medium: 25,000 tracks of 30 s, 16 unbalanced genres."""


class FmaLarge(_ClipBuilder):
    """FMA large: 106,574 tracks of 30 s, of which those with a top genre are used."""


class AudioFolder(_ClipBuilder):
    """Audio files in one folder a genre."""


class Demo(_ClipBuilder):
    """A small synthesised stand-in for FMA small; its scores say nothing about real music."""

    SYNTHETIC = True


_BUILDERS = {
    "fma_small": FmaSmall,
    "fma_medium": FmaMedium,
    "fma_large": FmaLarge,
    "audio_folder": AudioFolder,
    "demo": Demo,
}


def prepare(
    config: ConfigDict,
    feature_names: Sequence[str],
    *,
    workers: int = 1,
    max_skipped: float = 0.05,
    beam_runner: str | None = None,
    beam_options: str = "",
    **sources,
) -> None:
    """Writes a config's data set, unless it is there already.

    Finished tracks are kept on disk until the set is whole, so that a rerun goes on where this one
    stopped; the set appears under its name as the last step. A second process waits for the first.

    Args:
        config: keys `dataset`, `data_dir`, `audio`, `mel`, and `demo` for the demo.
        feature_names: `mel` and/or `waveform`, in this order.
        workers: processes that decode.
        max_skipped: the largest share of tracks that may be unusable.
        beam_runner: Apache Beam's runner that decodes and writes, instead of the workers.
        beam_options: of the runner, as `key=value,...`.
        **sources: as for `list_tracks`.

    Raises:
        InputError: unknown data set, missing folder, foreign or empty metadata, no usable track in
            a split, more than `max_skipped` unusable ones, or nowhere to write.
    """
    if config.dataset not in _BUILDERS:
        raise InputError(
            f"config.dataset={config.dataset!r} is unknown: one of {', '.join(_BUILDERS)}"
        )
    tfds.disable_progress_bar()  # ours counts tracks
    names = tuple(feature_names)
    folder = epath.Path(config.data_dir) / config.dataset / "_".join(names)
    target = folder / data.VERSION
    try:
        with _locked(folder):
            for leftover in folder.glob("incomplete.*"):
                leftover.rmtree()  # of a run that was killed
            if (target / "dataset_info.json").exists():
                console.log.info("%s is there already; delete it to make it again", target)
            elif target.exists():
                raise InputError(f"{target} is not a whole data set: delete it")
            else:
                listing = list_tracks(config, workers, **sources)
                check_usable(listing.tracks, listing.skipped, max_skipped, folder)
                _write(config, names, listing, workers, max_skipped, beam_runner, beam_options)
            (folder / SKIPPED_FILE).unlink(missing_ok=True)  # of a run that failed
            _cache_folder(folder).rmtree(missing_ok=True)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"cannot write the data set to {target}: {error}") from None


def _write(
    config: ConfigDict,
    names: tuple[str, ...],
    listing: Listing,
    workers: int,
    max_skipped: float,
    beam_runner: str | None,
    beam_options: str,
) -> None:
    folder = epath.Path(config.data_dir) / config.dataset / "_".join(names)
    settings = ClipSettings.from_config(config)
    download_config = None
    if beam_runner:
        try:
            from mgc_jax.data.beam import make_runner
        except ImportError as error:
            raise InputError(f"--beam_runner needs the extra beam: {error}") from None
        runner, options = make_runner(beam_runner, beam_options)
        download_config = tfds.download.DownloadConfig(beam_runner=runner, beam_options=options)
    facts = {
        "librosa_deviation": _check_against_librosa(listing.tracks, settings),
        "versions": {name: version(name) for name in ("mgc_jax", "soundfile", "soxr", "librosa")},
    }
    tracks, skipped = listing
    if beam_runner:
        clips_of = functools.partial(_decode, settings=settings, names=names)
    else:
        cache = ClipCache(str(_cache_folder(folder)), settings, names)
        entries, failures = _fill_cache(cache, tracks, workers)
        tracks = [track for track in listing.tracks if track.path not in failures]
        skipped = skipped + [(t, failures[t.path]) for t in listing.tracks if t.path in failures]
        check_usable(tracks, skipped, max_skipped, folder)

        def clips_of(track):
            return cache.load(entries[track.path])

    builder = _BUILDERS[config.dataset](
        config="_".join(names),
        data_dir=config.data_dir,
        tracks=tracks,
        skipped=skipped,
        genres=genres_of(listing.tracks),
        settings=settings,
        clips_of=clips_of,
        max_skipped=max_skipped,
        facts=facts,
    )
    with contextlib.redirect_stdout(None):  # TFDS talks of downloading
        builder.download_and_prepare(download_config=download_config)
    metadata = builder.info.metadata
    listed, splits = metadata["tracks_listed"], metadata["splits"].values()
    used, clips = (sum(split[name] for split in splits) for name in ("tracks", "clips"))
    said = f"; {listed - used} skipped, see {SKIPPED_FILE} there" if used < listed else ""
    console.log.info("%s: %d of %d tracks, %d clips%s", builder.data_dir, used, listed, clips, said)


def _decode(track: Track, settings: ClipSettings, names: tuple[str, ...]) -> Iterator[Clip]:
    return iter_clips(track.path, settings, names)


def _check_against_librosa(tracks: Sequence[Track], settings: ClipSettings) -> dict[str, float]:
    """Compares the first track that decodes with librosa, whose features ours must equal."""
    compare = functools.partial(deviation_from_librosa, settings=settings)
    with contextlib.closing(run_all(compare, [track.path for track in tracks], 1)) as results:
        for path, found in results:
            if isinstance(found, InputError):
                continue
            if (
                found["mel_db"] > _MAX_MEL_DEVIATION_DB
                or found["waveform"] > _MAX_WAVEFORM_DEVIATION
            ):
                raise InputError(
                    f"features of {path} differ from librosa's by {found}: the installed "
                    "versions do not fit together, install with constraints.txt"
                )
            return found
    return {}  # nothing decodes, which is said later, with the reasons


def _fill_cache(
    cache: ClipCache, tracks: Sequence[Track], workers: int
) -> tuple[dict[str, epath.Path], dict[str, str]]:
    """Decodes what the cache does not hold.

    Returns:
        Path to entry, and path to the reason for those that cannot be used.
    """
    epath.Path(cache.folder).mkdir(parents=True, exist_ok=True)
    entries = {track.path: cache.entry(track.path) for track in tracks}
    todo = [(path, str(entry)) for path, entry in entries.items() if not cache.holds(entry)]
    if len(todo) < len(entries):
        console.log.info("%d tracks were decoded before", len(entries) - len(todo))
    failures = {}
    with console.progress_bar(total=len(todo), description="audio to clips", unit="track") as bar:
        for (path, _), error in run_all(cache.store, todo, workers):
            if error is not None:
                failures[path] = str(error)
                bar.set_postfix(skipped=len(failures), refresh=False)
            bar.update()
    return entries, failures


def _cache_folder(folder: epath.Path) -> epath.Path:
    return folder / "clips.incomplete"


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """One process at a time; the lock ends with its process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    if "://" in str(folder):
        yield  # nothing to lock with
        return
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
