"""TFRecords to batches: clips are copied by permuted position straight out of the memory-mapped
shards.

Records are parsed once, when the index is made (see `shards`). Any position of any epoch is then
reached at no cost, the shuffle is complete without a buffer, and a set larger than memory streams
through the page cache. A tf.data.Dataset streams the permuted positions, and asks the disk for
their clips, ahead of the loop; the loop's own thread copies them while the devices compute (for
large batches, a second one helps).
"""

import functools
import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from ml_collections import ConfigDict

from mgc_jax import console, parallel, process
from mgc_jax.data import shards
from mgc_jax.data.buffers import CACHED, BufferPool, aligned
from mgc_jax.data.features import ADDED, make_features, settings_of
from mgc_jax.errors import InputError

# What tf.data goes ahead by, in bytes of batches: a hand-over takes as long as copying 10 MB, and
# the first one waits for the disk.
_AHEAD = 2**29
# What goes to the devices at once, in bytes.
_MOVED_AT_ONCE = 2**26
_second_thread = ThreadPoolExecutor(1, "copy")

Batch = dict[str, np.ndarray]


class Split:
    """One split of a prepared data set, as a sequence of clips."""

    def __init__(self, info: tfds.core.DatasetInfo, name: str, feature_names: Sequence[str]):
        """Maps the shards of a split, and reads where its clips lie in them."""
        split = info.splits[name]
        files = [os.fspath(path) for path in split.filepaths]
        layout = shards.Layout(
            {
                feature: math.prod(tensor.shape) * np.dtype(tensor.np_dtype).itemsize
                for feature, tensor in info.features.items()
                if tensor.shape
            },
            info.features["label"].num_classes,
        )
        self._index = shards.load_index(files, split.shard_lengths, name, layout)
        self._maps = [_map(path) for path in files]
        # Copies between arrays let other threads run; between memoryviews they begin sooner.
        self._arrays = [np.frombuffer(file, np.uint8) for file in self._maps]
        self._views = [memoryview(file) for file in self._maps]
        self._fields = {
            feature: (info.features[feature].shape, np.dtype(info.features[feature].np_dtype))
            for feature in feature_names
        }

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
        return self._view(rows, self._copy(rows, np.empty(self._buffer_size(len(rows)), np.uint8)))

    def train_batches(
        self, batch_size: int, seed: int, first_step: int = 0, copy: bool = True
    ) -> Iterator[Batch]:
        """Endless shuffled batches from a step on: of each global batch, this host's share.

        Each epoch is a complete shuffle that depends on seed and epoch alone; the clips left over
        when an epoch does not divide by the batch size are dropped from it (another epoch leaves
        out others).

        Args:
            batch_size: clips of a global batch.
            seed: of the order.
            first_step: global batches to skip, counted over all epochs.
            copy: False gives the clips' places in stored order, `row` `[batch] int32`, for their
                features: a step takes those from `on_devices`.

        Raises:
            InputError: the split is smaller than one batch.
        """

        # From the second epoch on, what fits into memory is in the page cache.
        cold_until = first_step + self.steps_per_epoch(batch_size)
        if sum(map(len, self._maps)) > _memory():
            cold_until = math.inf

        share = parallel.host_share(np.arange(batch_size))

        def rows(steps: np.ndarray) -> np.ndarray:
            found = self.train_rows(steps, batch_size, seed)[:, share]
            if copy:
                self._read_ahead(found[steps < cold_until])
            return found

        return self._stream(range(first_step, sys.maxsize), len(share), rows, copy)

    def train_rows(self, steps: np.ndarray, batch_size: int, seed: int) -> np.ndarray:
        """The clips of `train_batches` in stored order.

        Args:
            steps: `[steps] int64`, increasing.
            batch_size: clips of a global batch.
            seed: of the order.

        Returns:
            `[steps, batch] int64`.
        """
        per_epoch = self.steps_per_epoch(batch_size)
        epochs, positions = np.divmod(steps, per_epoch)
        rows = []
        for epoch in np.unique(epochs).tolist():
            batches = _order(len(self), seed, epoch)[: per_epoch * batch_size]
            rows.append(batches.reshape(per_epoch, batch_size)[positions[epochs == epoch]])
        return np.concatenate(rows)

    def eval_batches(self, batch_size: int, first: int = 0) -> Iterator[Batch]:
        """Every clip from `first` on once, in stored order: of each global batch, this host's
        share.

        The last clip is repeated to fill the last batch; `mask` `[batch] bool` is False there.
        """

        steps = range(math.ceil((len(self) - first) / batch_size))
        share = parallel.host_share(np.arange(batch_size))
        rows = first + np.array(steps)[:, None] * batch_size + share
        existing = np.minimum(rows, len(self) - 1)
        batches = self._stream(steps, len(share), lambda numbers: existing[numbers])
        for mask, batch in zip(rows < len(self), batches, strict=True):
            yield batch | {"mask": mask}

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in an epoch."""
        if len(self) < batch_size:
            raise InputError(
                f"config.batch_size={batch_size}, but the training split holds {len(self)} clips"
            )
        return len(self) // batch_size

    def on_devices(self, share: float) -> dict[str, jax.Array]:
        """The features of all clips on every device, `[clips, ...]` by name.

        Empty where they take more than a share of a device's memory.
        """
        size = len(self) * sum(map(self._size, self._fields))
        if size > share * parallel.device_memory():
            console.log.info("clips     are copied to the devices step by step")
            return {}
        console.log.info("clips     lie on every device: %.2g GB", size / 1e9)
        count = max(1, min(len(self), _MOVED_AT_ONCE * len(self) // size))
        first = np.minimum(np.arange(0, len(self), count), len(self) - count)
        blocks = self._stream(
            range(len(first)), count, lambda steps: first[steps][:, None] + np.arange(count)
        )
        shapes = {
            name: jax.ShapeDtypeStruct((len(self), *shape), dtype)
            for name, (shape, dtype) in self._fields.items()
        }
        with console.progress_bar(
            total=len(first) * count, description="clips to the devices", unit="clip", leave=False
        ) as bar:

            def numbered() -> Iterator[tuple[int, Batch]]:
                for start, batch in zip(first.tolist(), blocks, strict=True):
                    yield start, {name: batch[name] for name in shapes}
                    bar.update(count)

            return parallel.fill(shapes, numbered())

    def _size(self, name: str) -> int:
        shape, dtype = self._fields[name]
        return math.prod(shape) * dtype.itemsize

    def _buffer_size(self, clips: int) -> int:
        """In bytes, each feature at an address that JAX takes."""
        return sum(aligned(clips * self._size(name)) for name in self._fields)

    def _stream(
        self,
        steps: range,
        clips: int,
        rows: Callable[[np.ndarray], np.ndarray],
        copy: bool = True,
    ) -> Iterator[Batch]:
        """So many clips of each step; `rows`, `[steps]` to `[steps, clips]`, is called ahead."""
        size = self._buffer_size(clips)
        pool = BufferPool(size)
        blocks = (
            tf.data.Dataset.range(steps.start, steps.stop)
            .batch(max(1, _AHEAD // size))
            .map(lambda numbers: tf.numpy_function(rows, [numbers], tf.int64))
            .prefetch(1)
        )
        for block in blocks.as_numpy_iterator():
            for batch in block:
                if not copy:
                    yield self._labels(batch) | {"row": batch.astype(np.int32)}
                    continue
                # Held by nothing here, so that a loop that is done with it gets it again.
                yield self._view(batch, self._copy(batch, pool.take()))

    def _copy(self, rows: np.ndarray, buffer: np.ndarray) -> np.ndarray:
        """Fills a buffer with the features of clips; returns it."""
        large = len(buffer) > CACHED
        files = self._arrays if large else self._views
        copies = []
        for name, part in self._parts(len(rows), buffer):
            target = part if large else memoryview(part)
            size = self._size(name)
            for place, (shard, clip) in enumerate(self._slices(name, rows)):
                copies.append((target[place * size : (place + 1) * size], files[shard][clip]))
        if large:
            other_half = _second_thread.submit(_copy_all, copies[1::2])
            _copy_all(copies[::2])
            other_half.result()
        else:
            _copy_all(copies)
        return buffer

    def _view(self, rows: np.ndarray, buffer: np.ndarray) -> Batch:
        batch = self._labels(rows)
        for name, part in self._parts(len(rows), buffer):
            shape, dtype = self._fields[name]
            batch[name] = part.view(dtype).reshape(len(rows), *shape)
        return batch

    def _labels(self, rows: np.ndarray) -> Batch:
        return {"label": self._index.labels["label"][rows].astype(np.int32)}

    def _parts(self, clips: int, buffer: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The features' places in a buffer."""
        start = 0
        for name in self._fields:
            size = clips * self._size(name)
            yield name, buffer[start : start + size]
            start += aligned(size)

    def _slices(self, name: str, rows: np.ndarray) -> Iterator[tuple[int, slice]]:
        """Where clips lie: number and part of a shard."""
        size = self._size(name)
        starts = self._index.offsets[name][rows].tolist()
        for shard, start in zip(self._index.shard[rows].tolist(), starts, strict=True):
            yield shard, slice(start, start + size)

    def _read_ahead(self, rows: np.ndarray) -> None:
        """Asks the disk for clips, without waiting: one at a time would take it far longer."""
        for name in self._fields:
            for shard, clip in self._slices(name, rows.ravel()):
                start = clip.start - clip.start % mmap.PAGESIZE
                self._maps[shard].madvise(mmap.MADV_WILLNEED, start, clip.stop - start)


class ClipDataset(NamedTuple):
    """A prepared data set.

    Attributes:
        path: its folder on this machine.
        genres: names in label order.
        splits: by name.
        metadata: what `prepare` recorded: `settings`, `splits` (tracks and clips used),
            `tracks_listed`, `synthetic`.
    """

    path: Path
    genres: list[str]
    splits: dict[str, Split]
    metadata: Mapping

    def fingerprint(self) -> dict[str, str]:
        """What a run is tied to: a `hash` of genres, tracks, clips and labels of every split, and
        a `summary` of their counts for people."""
        digest = hashlib.sha256(json.dumps(self.genres).encode())
        counts = []
        for name, split in sorted(self.splits.items()):
            digest.update(name.encode())
            for values in split.labels.values():
                digest.update(np.ascontiguousarray(values, np.int64))
            tracks = len(np.unique(split.labels["track_id"]))
            counts.append(f"{name} {tracks:,} tracks in {len(split):,} clips")
        return {"hash": digest.hexdigest(), "summary": ", ".join(counts)}


def open_dataset(config: ConfigDict, feature_names: Sequence[str]) -> ClipDataset:
    """Opens the records that `prepare` wrote for a config.

    Those in a bucket (`gs://`) are copied to this machine first.

    Args:
        config: keys `dataset`, `data_dir`, `audio` and those of the features.
        feature_names: what to read; a data set that holds more will do.

    Raises:
        InputError: there are none, they are damaged, or were made with other audio settings.
    """
    process.hide_gpus_from_tensorflow()
    features = make_features(feature_names, config)
    path = shards.find_records(config, feature_names)
    if "://" in str(path):
        path = shards.stage(path)
    path = Path(path)
    info = shards.read_info(path)
    _check_settings(path, info.metadata["settings"], settings_of(features))
    return ClipDataset(
        path=path,
        genres=info.features["label"].names,
        splits={name: Split(info, name, feature_names) for name in info.splits},
        metadata=info.metadata,
    )


def _check_settings(path: Path, stored: Mapping, wanted: Mapping) -> None:
    """Raises InputError where records were not made with the settings of the features to read."""
    differences = [
        f"{part}.{name} is {(ADDED | stored.get(part, {})).get(name)} there, {value} in the config"
        for part, settings in wanted.items()
        for name, value in settings.items()
        if (ADDED | stored.get(part, {})).get(name) != value
    ]
    if differences:
        raise InputError(
            f"{path} was prepared with other audio settings: {'; '.join(differences)}. "
            "Prepare it into another --data_dir, or change the config"
        )


def _copy_all(copies: list[tuple]) -> None:
    for target, source in copies:
        target[:] = source


@functools.lru_cache(maxsize=2)
def _order(clips: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(clips)


def _map(path: str) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _memory() -> int:
    """Of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
