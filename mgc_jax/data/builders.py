"""TFDS builders: write the clips of a list of tracks as TFRecords that plain TFDS reads without
this package.

    tfrecords/<dataset>/<mel | waveform | mel_waveform>/<version>/

One record is one clip. A data set's own part is its list of tracks; everything else is
`ClipBuilder`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import writer

from mgc_jax import console, data
from mgc_jax.data.clips import Clip
from mgc_jax.data.features import FEATURES, Feature, folder_name, settings_of
from mgc_jax.data.tracks import (
    SPLITS,
    Skipped,
    Track,
    check_usable,
    write_lists,
)
from mgc_jax.files import sealed

Example = tuple[str, dict]


class ClipBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the clips of tracks, and beside them `tracks.csv` and `skipped.csv`.

    Args:
        tracks: the tracks to write.
        skipped: those known to be unusable.
        left_out: those that are no part of the data set, though nothing is wrong with them.
        genres: names in label order.
        clip_features: what is stored of each clip; their names make the builder config's.
        clips_of: gives a track's clips, or raises InputError if it cannot be used (Beam only).
        max_skipped: the largest share of tracks that may be unusable.
        facts: further metadata.
        **kwargs: as for any TFDS builder.
    """

    VERSION = tfds.core.Version(data.VERSION)
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=folder_name(names, {}))
        for size in range(1, len(FEATURES) + 1)
        for names in itertools.combinations(FEATURES, size)
    ]
    SYNTHETIC = False

    def __init__(
        self,
        *,
        tracks: Sequence[Track],
        skipped: Sequence[Skipped],
        left_out: Sequence[Skipped],
        genres: Sequence[str],
        clip_features: Sequence[Feature],
        clips_of: Callable[[Track], Iterable[Clip]],
        max_skipped: float,
        facts: dict,
        **kwargs,
    ):
        """Sorts the tracks by split."""
        self._tracks = {split: [t for t in tracks if t.split == split] for split in SPLITS}
        self._skipped = skipped
        self._left_out = left_out
        self._genres = genres
        self._clip_features = clip_features
        self._examples_of = functools.partial(_examples_of, clips_of=clips_of)
        self._max_skipped = max_skipped
        self._facts = facts
        names = [feature.name for feature in clip_features]
        name = folder_name(names, settings_of(clip_features))
        config = self.builder_configs.get(name) or tfds.core.BuilderConfig(name=name)
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        """The fields of a record, and what is stored about all of them."""
        clip = {
            # As bytes: lists of integers cost 3 to 100 times more to write and read.
            feature.name: tfds.features.Tensor(
                shape=feature.shape,
                dtype=feature.dtype,
                encoding=tfds.features.Encoding.BYTES,
            )
            for feature in self._clip_features
        }
        seconds = self._clip_features[0].audio.clip_seconds
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Clips of {seconds:g} s with their genre.",
            features=tfds.features.FeaturesDict(
                clip
                | {
                    "label": tfds.features.ClassLabel(names=self._genres),
                    "track_id": np.int64,
                    "clip": np.int64,
                }
            ),
            metadata=tfds.core.MetadataDict(
                settings=settings_of(self._clip_features), synthetic=self.SYNTHETIC, **self._facts
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
        used = dict(self._tracks)
        skipped = list(self._skipped)
        if self._beam:
            from mgc_jax.data.beam import read_skipped

            for split, tracks in self._tracks.items():
                file = self._skipped_by_beam(split)
                reasons = read_skipped(file)
                file.unlink()
                skipped += [(tracks[number], reason) for number, reason in reasons.items()]
                used[split] = [t for number, t in enumerate(tracks) if number not in reasons]
        tracks = [track for split in SPLITS for track in used[split]]
        folder = self.data_path.parent
        check_usable(tracks, skipped, self._max_skipped, folder, self._left_out)
        skipped += self._left_out
        write_lists(self.data_path, tracks, skipped)
        self.info.metadata.update(
            tracks_listed=len(tracks) + len(skipped),
            splits={
                split: {"tracks": len(used[split]), "clips": self.info.splits[split].num_examples}
                for split in SPLITS
            },
            genres=list(self.info.features["label"].names),
        )
        self.info.metadata.update(sealed(self.info.metadata))

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
    for clip in clips_of(track):
        yield f"{track.track_id}_{clip.number}", clip.features | labels | {"clip": clip.number}


class FmaSmall(ClipBuilder):
    """FMA small: 8,000 tracks of 30 s, 8 balanced genres."""


class FmaMedium(ClipBuilder):
    """FMA medium: 25,000 tracks of 30 s, 16 unbalanced genres."""


class FmaLarge(ClipBuilder):
    """FMA large: 106,574 tracks of 30 s, of which those with a top genre are used."""


class AudioFolder(ClipBuilder):
    """Audio files in one folder a genre."""


class Gtzan(ClipBuilder):
    """GTZAN: tracks of 30 s, 10 genres, in the fault-filtered split."""


class Demo(ClipBuilder):
    """A small synthesised stand-in for FMA small; its scores say nothing about real music."""

    SYNTHETIC = True


BUILDERS = {
    "fma_small": FmaSmall,
    "fma_medium": FmaMedium,
    "fma_large": FmaLarge,
    "audio_folder": AudioFolder,
    "gtzan": Gtzan,
    "demo": Demo,
}


def make_builder(dataset: str, name: str, **kwargs) -> ClipBuilder:
    """A data set's builder, whose records lie below a folder of another name if one is given.

    Args:
        dataset: a key of `BUILDERS`.
        name: of the folder; empty for the data set's own.
        **kwargs: as for `ClipBuilder`.
    """
    builder = BUILDERS[dataset]
    if name:
        named = {"name": name, "__module__": builder.__module__, "__doc__": builder.__doc__}
        builder = type(builder.__name__, (builder,), named, skip_registration=True)
    return builder(**kwargs)
