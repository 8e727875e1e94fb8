"""TFRecord shards on this machine: where the bytes of every clip lie in them, and copies of remote
ones.

Records are parsed once, when the index is made; from then on a clip is a few slices of mapped
files.
"""

import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf.message import DecodeError
from ml_collections import ConfigDict

from mgc_jax import console
from mgc_jax.data import VERSION
from mgc_jax.data.features import FEATURES, folder_name
from mgc_jax.data.tracks import SPLITS
from mgc_jax.errors import InputError
from mgc_jax.files import check_seal, misfit, read_json, replacing, user_cache

_LABELS = ("label", "track_id", "clip")
_FEATURES = "tensorflow_datasets.core.features"
_CLASSES = {
    f"{_FEATURES}.features_dict.FeaturesDict",
    f"{_FEATURES}.tensor_feature.Tensor",
    f"{_FEATURES}.class_label_feature.ClassLabel",
    f"{_FEATURES}.scalar.Scalar",
}
# A TFRecord is: length (8 bytes), its CRC (4), the data, their CRC (4).
_RECORD_HEAD, _RECORD_TAIL = 12, 4
_COPIED_AT_ONCE = 2**23  # bytes
_METADATA = {
    "settings": dict,
    "splits": dict.fromkeys(SPLITS, {"tracks": int, "clips": int}),
    "tracks_listed": int,
    "synthetic": bool,
}
_AGAIN = "delete the folder and prepare it again"


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


def dataset_path(config: ConfigDict, feature_names: Sequence[str]) -> epath.Path:
    """Where a config's records of these features are, or would be."""
    name = config.name or config.dataset
    return epath.Path(config.data_dir) / name / folder_name(feature_names, config) / VERSION


def has_records(config: ConfigDict, names: Sequence[str]) -> bool:
    """Whether there are records of this version that hold these features."""
    try:
        return bool(find_records(config, names))
    except InputError:
        return False


def find_records(config: ConfigDict, names: Sequence[str]) -> epath.Path:
    """The folder of records of exactly these features, or else of more.

    Raises:
        InputError: there are none.
    """
    exact = dataset_path(config, names)
    others = [
        dataset_path(config, held)
        for size in range(len(names), len(FEATURES) + 1)
        for held in itertools.combinations(FEATURES, size)
        if set(held) >= set(names)
    ]
    for path in [exact, *others]:
        if exists(path / "dataset_info.json"):
            return path
    for path in [exact, *others]:
        if exists(path.parent / "1.0.0" / "dataset_info.json"):
            raise InputError(
                f"{path.parent}/1.0.0 was prepared by a version that left out the tails of tracks: "
                "prepare it again (and delete the old folder, if it is not needed)"
            )
    raise InputError(
        f"no TFRecords in {exact}: make them with `python -m mgc_jax.prepare "
        "--config=... --audio_dir=...`, or let --config.data_dir name the folder that has them"
    )


class Layout(NamedTuple):
    """What the records of a data set hold, all of them.

    Attributes:
        sizes: bytes of each feature's payload, by name.
        genres: how many there are; labels are below that.
    """

    sizes: dict[str, int]
    genres: int


def read_info(path: Path) -> tfds.core.DatasetInfo:
    """What TFDS knows of a folder of records.

    TFDS imports the modules of the classes that `features.json` names, so that records from a
    stranger could run code: only those that `prepare` writes are let through.

    Raises:
        InputError: another class is named, or a file is missing or damaged.
    """
    features = read_json(path / "features.json", dict, fix=_AGAIN)
    if foreign := sorted(_class_names(features) - _CLASSES):
        raise InputError(
            f"{path / 'features.json'} names the class {foreign[0]!r}, which no records of this "
            "package have: it would be imported. Do not use these records"
        )
    read_json(path / "dataset_info.json", {"splits": [dict]}, fix=_AGAIN)
    metadata = read_metadata(path)
    try:
        info = tfds.builder_from_directory(path).info
        if "genres" in metadata and metadata["genres"] != info.features["label"].names:
            raise ValueError("its genres are not those that were written")
        for split in info.splits.values():
            _ = split.filepaths  # the template of their names is looked at no earlier
        return info
    except Exception as error:  # of a file that is JSON but not TFDS's, anything
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise InputError(f"{path} cannot be read ({reason}); {_AGAIN}") from error


def read_metadata(path: str | os.PathLike) -> dict:
    """What `prepare` recorded of a folder of records; raises InputError for a damaged file."""
    file = Path(path, "metadata.json")
    metadata = read_json(file, _METADATA, fix=_AGAIN)
    # Of its parts and what versions before 0.2 did not write, what is there.
    form = {"settings": dict.fromkeys(metadata["settings"], dict)}
    if "source" in metadata:
        form["source"] = {"hash": str, "summary": str}
    if problem := misfit(metadata, form):
        raise InputError(f"{file}: {problem}; {_AGAIN}")
    check_seal(file, metadata, _AGAIN)
    return metadata


def _class_names(part: Any) -> set[str]:
    """All classes that a part of `features.json` names, in either of protobuf's spellings."""
    if isinstance(part, list):
        return set().union(*map(_class_names, part))
    if not isinstance(part, dict):
        return set()
    named = {str(part[key]) for key in ("pythonClassName", "python_class_name") if key in part}
    return named.union(*map(_class_names, part.values()))


def load_index(files: Sequence[str], lengths: Sequence[int], split: str, layout: Layout) -> Index:
    """Reads the index of a split, or makes it when it is missing or the shards have changed.

    It lies beside the shards; where that folder is read-only, in the user's cache folder.

    Args:
        files: the shards, in order.
        lengths: records in each.
        split: its name.
        layout: what every record must hold.

    Raises:
        InputError: a shard is missing, torn or damaged, or a record does not hold what it should.
    """
    try:
        stats = [os.stat(file) for file in files]
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is missing; {_AGAIN}") from None
    stamp = json.dumps(
        [[Path(f).name, s.st_size, s.st_mtime_ns] for f, s in zip(files, stats, strict=True)]
    )
    ends = np.array([status.st_size for status in stats])
    beside = Path(files[0]).absolute().with_name(f"index-{split}.npz")
    folder = hashlib.sha256(os.fsencode(beside.parent)).hexdigest()[:16]
    places = beside, user_cache("indexes") / folder / beside.name
    for place in places:
        try:
            with np.load(place) as stored:
                if str(stored["stamp"]) == stamp:
                    index = _unflatten(stored)
                    if _fits(index, lengths, ends, layout):
                        return index
        except Exception:  # missing, torn, flipped or another program's: any error means
            pass  # that it is made again
    index = _make_index(files, lengths, split, layout)
    for place in places:
        try:
            _save_index(place, index, stamp)
            break
        except OSError:
            pass  # read-only; with no place left, the index is made at every start
    return index


def exists(path: epath.Path) -> bool:
    """Whether a local or remote file is there.

    Raises:
        InputError: the bucket cannot be reached.
    """
    try:
        return path.exists()
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"cannot read {path}: {error}") from None


def stage(remote: epath.Path) -> Path:
    """Copies a remote data set into the user's cache folder, except for what is there already.

    Args:
        remote: its folder, such as `gs://bucket/tfrecords/fma_small/mel/1.0.0`.

    Returns:
        The local folder.

    Raises:
        InputError: it cannot be read, or does not fit on the disk.
    """
    local = user_cache("data") / str(remote).replace("://", "/")
    try:
        local.mkdir(parents=True, exist_ok=True)
        # Another machine's index is of no use here, as its shards have other times.
        files = [f for f in remote.iterdir() if f.suffix != ".npz" and not f.is_dir()]
        stats = {file: (file.stat().length, int(file.stat().mtime)) for file in files}
        missing = [f for f in files if not _is_copy(local / f.name, *stats[f])]
        total = sum(stats[file][0] for file in missing)
        if total > (free := shutil.disk_usage(local).free):
            raise InputError(
                f"{remote} takes {total:,} bytes, but {local} has {free:,} free: let "
                "XDG_CACHE_HOME name a folder on a larger disk"
            )
        with console.progress_bar(total=total, description=f"copying {remote}", unit="B") as bar:
            for file in missing:
                with replacing(local / file.name) as part:
                    with file.open("rb") as source, open(part, "wb") as target:
                        while chunk := source.read(_COPIED_AT_ONCE):
                            bar.update(target.write(chunk))
                    os.utime(part, (stats[file][1],) * 2)
    except (OSError, tf.errors.OpError) as error:
        raise InputError(f"cannot copy {remote} to {local}: {error}") from None
    return local


def _is_copy(path: Path, size: int, modified: int) -> bool:
    return path.exists() and (path.stat().st_size, int(path.stat().st_mtime)) == (size, modified)


def _fits(index: Index, lengths: Sequence[int], ends: np.ndarray, layout: Layout) -> bool:
    """Whether a stored index is one of these shards: so many rows, all inside."""
    count = sum(lengths)
    arrays = [index.shard, *index.offsets.values(), *index.labels.values()]
    if any(array.shape != (count,) for array in arrays) or set(index.offsets) != set(layout.sizes):
        return False
    if not np.array_equal(index.shard, np.repeat(np.arange(len(lengths)), lengths)):
        return False
    label = index.labels["label"]
    inside = (label >= 0) & (label < layout.genres)
    for name, size in layout.sizes.items():
        starts = index.offsets[name]
        inside &= (starts >= _RECORD_HEAD) & (starts + size + _RECORD_TAIL <= ends[index.shard])
    return bool(inside.all())


def _make_index(files: Sequence[str], lengths: Sequence[int], split: str, layout: Layout) -> Index:
    """Reads every record once, checking its CRC and content, and notes where its payloads lie."""
    shards = []
    offsets = {name: [] for name in layout.sizes}
    labels = {name: [] for name in _LABELS}
    with console.progress_bar(
        total=sum(lengths), description=f"indexing {split}", unit="clip", leave=False
    ) as bar:
        for shard, (path, length) in enumerate(zip(files, lengths, strict=True)):
            position = 0
            for number, record in enumerate(_read_records(path, length)):
                try:
                    found, payloads = _parse(record, layout)
                except (DecodeError, IndexError, ValueError) as error:
                    raise InputError(f"{path}: record {number}: {error}; {_AGAIN}") from None
                for name, value in found.items():
                    labels[name].append(value)
                for name, payload in payloads.items():
                    offsets[name].append(position + _RECORD_HEAD + payload)
                shards.append(shard)
                position += _RECORD_HEAD + len(record) + _RECORD_TAIL
                bar.update()
    return Index(
        np.array(shards, np.int32),
        {name: np.array(values, np.int64) for name, values in offsets.items()},
        {name: np.array(values, np.int64) for name, values in labels.items()},
    )


def _parse(record: bytes, layout: Layout) -> tuple[dict[str, int], dict[str, int]]:
    """A record's labels, and where in it its payloads begin.

    Raises:
        DecodeError, IndexError, ValueError: it is no example, or does not hold what it should.
    """
    example = tf.train.Example.FromString(record).features.feature
    labels = {name: example[name].int64_list.value[0] for name in _LABELS}
    if not 0 <= labels["label"] < layout.genres:
        raise ValueError(f"its label is {labels['label']}, of {layout.genres} genres")
    payloads = {}
    for name, size in layout.sizes.items():
        payload = example[name].bytes_list.value[0]
        if len(payload) != size:
            raise ValueError(f"its {name} has {len(payload)} bytes, expected {size}")
        # Wherever these bytes are found first, they are the payload's.
        payloads[name] = record.find(payload)
    return labels, payloads


def _read_records(path: str, length: int) -> Iterator[bytes]:
    """The records of a shard, which must be `length` whole ones."""
    records = tf.data.TFRecordDataset(path).as_numpy_iterator()
    for number in itertools.count():
        try:
            record = next(records, None)
        except tf.errors.OpError:
            raise InputError(f"{path}: record {number} is damaged; {_AGAIN}") from None
        if (record is None) != (number == length):
            raise InputError(
                f"{path}: record {number} is {'missing' if record is None else 'one too many'}, as "
                f"dataset_info.json counts {length}; {_AGAIN}"
            )
        if record is None:
            return
        yield record


def _save_index(path: Path, index: Index, stamp: str) -> None:
    offsets = {f"offset_{name}": values for name, values in index.offsets.items()}
    with replacing(path) as part, open(part, "wb") as file:
        checksum = np.array(_checksum(index))
        stamps = {"stamp": np.array(stamp), "checksum": checksum}
        np.savez(file, allow_pickle=False, **stamps, shard=index.shard, **offsets, **index.labels)


def _unflatten(stored: Mapping[str, np.ndarray]) -> Index:
    """The index that `_save_index` saved; raises ValueError if it is not to the bit the same."""
    offsets = {
        name.removeprefix("offset_"): stored[name] for name in stored if name.startswith("offset_")
    }
    index = Index(stored["shard"], offsets, {name: stored[name] for name in _LABELS})
    if int(stored["checksum"]) != _checksum(index):
        raise ValueError("another checksum")
    return index


def _checksum(index: Index) -> int:
    """Of all arrays."""
    value = zlib.crc32(np.ascontiguousarray(index.shard))
    for part in (index.offsets, index.labels):
        for name in sorted(part):
            value = zlib.crc32(np.ascontiguousarray(part[name]), value)
    return value
