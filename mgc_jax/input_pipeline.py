"""TFRecords to batches: an index of every clip's bytes in the shards, gathered by permuted position
under tf.data.

Records are parsed once, when the index is made; a batch is then copied straight out of the
memory-mapped shards. Any position of any epoch is reached at no cost, and the shuffle is complete
without a buffer.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from mgc_jax import parallel
from mgc_jax.datasets import VERSION
from mgc_jax.errors import InputError
from mgc_jax.features import ClipSettings
from mgc_jax.files import replacing

# tf.data only moves bytes for the CPU here; no GPU memory may go to TensorFlow.
tf.config.set_visible_devices([], "GPU")

_LABELS = ("label", "track_id", "clip")
# A TFRecord is: length (8 bytes), its CRC (4), the data, their CRC (4).
_RECORD_HEAD, _RECORD_TAIL = 12, 4

Batch = dict[str, np.ndarray]


class Index(NamedTuple):
    """Where the clips of a split lie.

    Attributes:
        shard: `[clips] int32`, number of the shard file.
        offsets: feature name to `[clips] int64`, position of the payload's first byte in its shard.
        labels: `label`, `track_id` and `clip` to `[clips] int64`.
    """

    shard: np.ndarray
    offsets: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


class Split:
    """One split of a prepared data set, as a sequence of clips."""

    def __init__(self, info: tfds.core.DatasetInfo, name: str, feature_names: tuple[str, ...]):
        files = [str(path) for path in info.splits[name].filepaths]
        self._maps = [np.memmap(path, np.uint8, mode="r") for path in files]
        self._specs = {
            feature: (info.features[feature].shape, np.dtype(info.features[feature].np_dtype))
            for feature in feature_names
        }
        self._index = _load_index(files, name)

    def __len__(self) -> int:
        return len(self._index.shard)

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """`label`, `track_id` and `clip`, each `[clips] int64`, in stored order."""
        return self._index.labels

    def gather(self, rows: np.ndarray) -> Batch:
        """Copies clips out of the shards.

        Args:
            rows: `[batch] int64`, positions in stored order.

        Returns:
            `mel` `[batch, frames, mels] uint8` and/or `waveform` `[batch, samples] int16`; `label`
            `[batch] int32`.
        """
        batch = {"label": self._index.labels["label"][rows].astype(np.int32)}
        for name, (shape, dtype) in self._specs.items():
            size = math.prod(shape) * dtype.itemsize
            out = np.empty((len(rows), size), np.uint8)
            starts, shards = self._index.offsets[name][rows], self._index.shard[rows]
            for target, shard, start in zip(out, shards, starts, strict=True):
                target[:] = self._maps[shard][start : start + size]
            batch[name] = out.view(dtype).reshape(len(rows), *shape)
        return batch

    def train_batches(self, batch_size: int, seed: int, first_step: int = 0) -> Iterator[Batch]:
        """Endless shuffled batches from a step on.

        Each epoch is a complete shuffle that depends on seed and epoch alone; the clips left over
        when an epoch does not divide by the batch size are dropped from it (another epoch leaves
        out others).

        Args:
            batch_size: clips a batch.
            seed: of the order.
            first_step: batches to skip, counted over all epochs.

        Raises:
            InputError: the split is smaller than one batch.
        """
        steps = self.steps_per_epoch(batch_size)
        order = {}  # the permutation of the current epoch only

        def rows(step: int) -> np.ndarray:
            if step // steps not in order:
                order.clear()
                order[step // steps] = self._order(seed, step // steps)
            start = step % steps * batch_size
            return order[step // steps][start : start + batch_size]

        return self._stream(tf.data.Dataset.range(first_step, np.iinfo(np.int64).max), rows)

    def train_rows(self, step: int, batch_size: int, seed: int) -> np.ndarray:
        """The clips of one global batch of `train_batches`: `[batch] int64`, in stored order."""
        epoch, position = divmod(step, self.steps_per_epoch(batch_size))
        return self._order(seed, epoch)[position * batch_size : (position + 1) * batch_size]

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(len(self))

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Every clip once, in stored order; the last clip is repeated to fill the last batch."""

        def rows(step: int) -> np.ndarray:
            return np.minimum(np.arange(step * batch_size, (step + 1) * batch_size), len(self) - 1)

        return self._stream(tf.data.Dataset.range(math.ceil(len(self) / batch_size)), rows)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in an epoch."""
        if len(self) < batch_size:
            raise InputError(
                f"config.batch_size={batch_size}, but the training split holds {len(self)} clips"
            )
        return len(self) // batch_size

    def _stream(self, steps: tf.data.Dataset, rows) -> Iterator[Batch]:
        """Runs `gather` a few steps ahead of the consumer, in tf.data's threads."""
        shapes = {name: spec[0] for name, spec in self._specs.items()} | {"label": ()}
        dtypes = {name: spec[1] for name, spec in self._specs.items()} | {
            "label": np.dtype(np.int32)
        }
        names = list(shapes)

        def gather(step):
            batch = self.gather(parallel.host_share(rows(int(step))))
            return [batch[name] for name in names]

        def load(step):
            types = [tf.as_dtype(dtypes[name]) for name in names]
            arrays = tf.numpy_function(gather, [step], types)
            return dict(zip(names, arrays, strict=True))

        return steps.map(load).prefetch(2).as_numpy_iterator()


class ClipDataset(NamedTuple):
    """A prepared data set.

    Attributes:
        path: its folder.
        genres: names in label order.
        splits: by name.
        metadata: what `prepare` recorded: `settings`, `splits` (tracks and clips used),
            `tracks_listed`, `synthetic`.
    """

    path: Path
    genres: list[str]
    splits: dict[str, Split]
    metadata: Mapping


def dataset_path(config: ConfigDict, feature_names: tuple[str, ...]) -> Path:
    """Where a config's records for these features are, or would be."""
    return Path(config.data_dir) / config.dataset / "_".join(feature_names) / VERSION


def open_dataset(config: ConfigDict, feature_names: tuple[str, ...]) -> ClipDataset:
    """Opens the records that `prepare` wrote for a config.

    Args:
        config: keys `dataset`, `data_dir`, `audio`, `mel`.
        feature_names: what to read; a data set that holds more will do.

    Raises:
        InputError: there are none, or they were made with other audio settings.
    """
    candidates = [dataset_path(config, names) for names in (feature_names, ("mel", "waveform"))]
    found = [path for path in candidates if (path / "dataset_info.json").is_file()]
    if not found:
        raise InputError(
            f"no TFRecords in {candidates[0]}: make them with `python -m mgc_jax.prepare "
            "--config=... --audio_dir=...`, or let --config.data_dir name the folder that has them"
        )
    info = tfds.builder_from_directory(found[0]).info
    _check_settings(found[0], info.metadata["settings"], ClipSettings.from_config(config))
    return ClipDataset(
        path=found[0],
        genres=info.features["label"].names,
        splits={name: Split(info, name, feature_names) for name in info.splits},
        metadata=info.metadata,
    )


def _check_settings(path: Path, stored: Mapping, wanted: ClipSettings) -> None:
    differences = [
        f"{name} is {value} there, {getattr(wanted, name)} in the config"
        for name, value in stored.items()
        if value != getattr(wanted, name)
    ]
    if differences:
        raise InputError(
            f"{path} was prepared with other audio settings: {'; '.join(differences)}. "
            "Prepare it into another --data_dir, or change the config"
        )


def _load_index(files: list[str], split: str) -> Index:
    """Reads the index beside the shards, or makes it when it is missing or older than they are."""
    path = Path(files[0]).with_name(f"index-{split}.npz")
    stamp = json.dumps(
        [[os.path.basename(f), os.path.getsize(f), os.stat(f).st_mtime_ns] for f in files]
    )
    try:
        with np.load(path) as stored:
            if str(stored["stamp"]) == stamp:
                return _unflatten(stored)
    except (OSError, KeyError, ValueError):
        pass  # missing or torn: made again
    index = _make_index(files)
    _save_index(path, index, stamp)
    return index


def _make_index(files: list[str]) -> Index:
    """Reads every record once, checking its CRC, and notes where its payloads lie."""
    shards, offsets, labels = [], {}, {name: [] for name in _LABELS}
    for shard, path in enumerate(files):
        position = 0
        records = tf.data.TFRecordDataset(path).as_numpy_iterator()
        for number in range(np.iinfo(np.int64).max):
            try:
                record = next(records, None)
            except tf.errors.OpError:
                raise InputError(
                    f"{path}: record {number} is damaged; delete the folder and prepare it again"
                ) from None
            if record is None:
                break
            example = tf.train.Example.FromString(record).features.feature
            shards.append(shard)
            for name, feature in example.items():
                if name in labels:
                    labels[name].append(feature.int64_list.value[0])
                else:
                    payload = record.find(feature.bytes_list.value[0])
                    offsets.setdefault(name, []).append(position + _RECORD_HEAD + payload)
            position += _RECORD_HEAD + len(record) + _RECORD_TAIL
    return Index(
        np.array(shards, np.int32),
        {name: np.array(values, np.int64) for name, values in offsets.items()},
        {name: np.array(values, np.int64) for name, values in labels.items()},
    )


def _save_index(path: Path, index: Index, stamp: str) -> None:
    offsets = {f"offset_{name}": values for name, values in index.offsets.items()}
    try:
        with replacing(path) as part, open(part, "wb") as file:
            np.savez(file, stamp=np.array(stamp), shard=index.shard, **offsets, **index.labels)
    except OSError:
        pass  # a read-only folder: the index is made again at the next start


def _unflatten(stored: Mapping[str, np.ndarray]) -> Index:
    offsets = {
        name.removeprefix("offset_"): stored[name] for name in stored if name.startswith("offset_")
    }
    return Index(stored["shard"], offsets, {name: stored[name] for name in _LABELS})
