"""TFDS builders: write the clips of a list of tracks as TFRecords that plain TFDS reads without
this package.

    tfrecords/<dataset>/<mel | waveform | mel_waveform>/<version>/

One record is one clip. A data set's own part is its list of tracks; everything else is
`_ClipBuilder`.
"""

import collections
import contextlib
import csv
import dataclasses
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from mgc_jax import cli, datasets
from mgc_jax.datasets import demo
from mgc_jax.datasets.clips import deviation_from_librosa, extract_all
from mgc_jax.datasets.tracks import SPLITS, Track, genres_of, read_fma
from mgc_jax.errors import InputError
from mgc_jax.features import ClipSettings

SKIPPED_FILE = "skipped.csv"
_MAX_MEL_DEVIATION_DB = 0.01
_MAX_WAVEFORM_DEVIATION = 1e-6


class _ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Decodes tracks and writes their clips; lists what could not be used in `skipped.csv`."""

    VERSION = tfds.core.Version(datasets.VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="mel", description="Log-mel pictures."),
        tfds.core.BuilderConfig(name="waveform", description="Waveforms."),
        tfds.core.BuilderConfig(name="mel_waveform", description="Log-mel pictures and waveforms."),
    ]
    SYNTHETIC = False

    def __init__(self, *, tracks: Sequence[Track], settings: ClipSettings, workers: int, **kwargs):
        self._tracks = tracks
        self._settings = settings
        self._workers = workers
        self._skipped = []
        super().__init__(**kwargs)

    @property
    def _feature_names(self) -> tuple[str, ...]:
        return tuple(self.builder_config.name.split("_"))

    def _info(self) -> tfds.core.DatasetInfo:
        dtypes = {"mel": np.uint8, "waveform": np.int16}
        clip = {
            # As bytes: lists of integers cost 3 to 100 times more to write and read.
            name: tfds.features.Tensor(
                shape=self._settings.shape(name),
                dtype=dtypes[name],
                encoding=tfds.features.Encoding.BYTES,
            )
            for name in self._feature_names
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Clips of {self._settings.clip_seconds:g} s with their genre.",
            features=tfds.features.FeaturesDict(
                clip
                | {
                    "label": tfds.features.ClassLabel(names=genres_of(self._tracks)),
                    "track_id": np.int64,
                    "clip": np.int64,
                }
            ),
            metadata=tfds.core.MetadataDict(
                settings=dataclasses.asdict(self._settings), synthetic=self.SYNTHETIC
            ),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # audio comes from the folders given
        self.info.metadata.update(
            tracks_listed=len(self._tracks),
            splits={},
            librosa_deviation=self._check_against_librosa(),
            versions={name: version(name) for name in ("mgc_jax", "soundfile", "soxr", "librosa")},
        )
        bar = cli.progress_bar(total=len(self._tracks), description="audio to clips", unit="track")
        return {split: self._generate_examples(split, bar) for split in SPLITS}

    def _generate_examples(self, split: str, bar) -> Iterator[tuple[str, dict]]:
        tracks = [track for track in self._tracks if track.split == split]
        counts = collections.Counter(tracks=0, clips=0)
        for track, clips in extract_all(tracks, self._settings, self._feature_names, self._workers):
            bar.update()
            if isinstance(clips, InputError):
                self._skipped.append((*track, str(clips)))
                bar.set_postfix(skipped=len(self._skipped))
                continue
            counts.update(tracks=1, clips=len(clips))
            labels = {"label": track.genre, "track_id": track.track_id}
            for i, clip in enumerate(clips):
                yield f"{track.track_id}_{i}", {**clip, **labels, "clip": i}
        if not counts["tracks"]:
            raise InputError(_explain_empty(f"{split} split", len(tracks), self._skipped))
        self.info.metadata["splits"][split] = dict(counts)
        self._write_skipped()
        if split == SPLITS[-1]:
            bar.close()

    def _check_against_librosa(self) -> dict[str, float]:
        """Compares the first track that decodes with librosa, whose features ours must equal."""
        failures = []
        for track in self._tracks:
            try:
                found = deviation_from_librosa(track.path, self._settings)
            except InputError as error:
                failures.append((*track, str(error)))
                continue
            if (
                found["mel_db"] > _MAX_MEL_DEVIATION_DB
                or found["waveform"] > _MAX_WAVEFORM_DEVIATION
            ):
                raise InputError(
                    f"features of {track.path} differ from librosa's by {found}: the installed "
                    "versions do not fit together, install with constraints.txt"
                )
            return found
        raise InputError(_explain_empty("data set", len(self._tracks), failures))

    def _write_skipped(self) -> None:
        with open(Path(self.data_path) / SKIPPED_FILE, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow((*Track._fields, "reason"))
            writer.writerows(self._skipped)


def _explain_empty(what: str, listed: int, failures: Sequence[tuple]) -> str:
    first = f" ({failures[0][1]}: {failures[0][-1]})" if failures else ""
    return (
        f"no usable track in the {what}: {listed} listed, none could be read{first}. "
        "Check that --audio_dir holds the MP3s in FMA's layout (000/000002.mp3)"
    )


class FmaSmall(_ClipBuilder):
    """FMA small: 8,000 tracks of 30 s, 8 balanced genres."""


class FmaMedium(_ClipBuilder):
    """FMA medium: 25,000 tracks of 30 s, 16 unbalanced genres."""


class FmaLarge(_ClipBuilder):
    """FMA large: 106,574 tracks of 30 s, of which those with a top genre are used."""


class Demo(_ClipBuilder):
    """A small synthesised stand-in for FMA small; its scores say nothing about real music."""

    SYNTHETIC = True


_BUILDERS = {"fma_small": FmaSmall, "fma_medium": FmaMedium, "fma_large": FmaLarge, "demo": Demo}


def make_builder(
    config: ConfigDict,
    feature_names: Sequence[str],
    *,
    audio_dir: str | os.PathLike | None = None,
    metadata_dir: str | os.PathLike | None = None,
    workers: int = 1,
) -> _ClipBuilder:
    """The builder of a config's data set, reading audio from the given folders.

    Args:
        config: keys `dataset`, `data_dir`, `audio`, `mel`, and `demo` for the demo.
        feature_names: `mel` and/or `waveform`, in this order.
        audio_dir: folder of audio files; the demo makes its own if none is given.
        metadata_dir: folder of FMA's `tracks.csv`; `fma_metadata` beside `audio_dir` if none is
            given.
        workers: processes that decode.

    Raises:
        InputError: unknown data set, missing folder, foreign or empty metadata.
    """
    if config.dataset not in _BUILDERS:
        raise InputError(
            f"config.dataset={config.dataset!r} is unknown: one of {', '.join(_BUILDERS)}"
        )
    if config.dataset == "demo" and audio_dir is None:
        root = (
            Path(config.data_dir)
            / "demo_audio"
            / f"{config.demo.tracks}_tracks_seed_{config.demo.seed}"
        )
        demo.write_corpus(root, tracks=config.demo.tracks, seed=config.demo.seed, workers=workers)
        audio_dir = root / "fma_small"
    if audio_dir is None:
        raise InputError(f"{config.dataset} needs --audio_dir, the folder with its audio files")
    metadata_dir = metadata_dir or Path(audio_dir).absolute().parent / "fma_metadata"
    subset = config.dataset.removeprefix("fma_") if config.dataset != "demo" else "small"
    return _BUILDERS[config.dataset](
        config="_".join(feature_names),
        data_dir=config.data_dir,
        tracks=read_fma(audio_dir, metadata_dir, subset),
        settings=ClipSettings.from_config(config),
        workers=workers,
    )


def prepare(config: ConfigDict, feature_names: Sequence[str], **sources) -> None:
    """Writes a config's data set, unless it is there already.

    Args:
        config, feature_names, **sources: as for `make_builder`.

    Raises:
        InputError: as `make_builder`, or nothing usable in the folders.
    """
    tfds.disable_progress_bar()  # ours counts tracks
    builder = make_builder(config, feature_names, **sources)
    if builder.is_prepared():
        cli.log.info("%s is there already; delete it to make it again", builder.data_dir)
        return
    with contextlib.redirect_stdout(None):  # TFDS talks of downloading
        builder.download_and_prepare()
    metadata = builder.info.metadata
    listed, splits = metadata["tracks_listed"], metadata["splits"].values()
    used, clips = (sum(split[name] for split in splits) for name in ("tracks", "clips"))
    skipped = f"; {listed - used} skipped, see {SKIPPED_FILE} there" if used < listed else ""
    cli.log.info("%s: %d of %d tracks, %d clips%s", builder.data_dir, used, listed, clips, skipped)
