"""Batches from the shards, against plain TFDS."""

import itertools
import json
import os
import shutil
import tempfile
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from child import Python, free_port
from etils import epath

from mgc_jax import parallel
from mgc_jax.configs import default
from mgc_jax.data import input_pipeline
from mgc_jax.data.buffers import BufferPool
from mgc_jax.data.features import make_features, settings_of
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.data.tracks import SPLITS
from mgc_jax.errors import InputError


def plain_records(config, split):
    path = f"{config.data_dir}/fma_small/mel_waveform/2.0.0"
    records = tfds.as_numpy(tfds.builder_from_directory(path).as_dataset(split))
    return {(int(r["track_id"]), int(r["clip"])): r for r in records}


def test_gathered_bytes_equal_plain_tfds(dataset, prepared):
    for name in ("train", "validation", "test"):
        split, records = dataset.splits[name], plain_records(prepared, name)
        assert len(split) == len(records) == 24
        batch = split.gather(np.arange(24))
        for i, key in enumerate(zip(split.labels["track_id"], split.labels["clip"], strict=True)):
            for feature in ("mel", "waveform", "label"):
                np.testing.assert_array_equal(batch[feature][i], records[key][feature])


def test_any_shards_and_record_lengths(tmp_path):
    """Tiny clips in seven shards; equal and empty payloads, numbers of one to nine bytes."""
    config = default.get_config()
    config.data_dir = str(tmp_path)
    config.audio.clip_seconds = 4 / config.audio.sample_rate
    config.mel.update(frames=3, n_mels=5, hop_length=1)
    rng = np.random.default_rng(0)
    clips = [
        {
            "mel": rng.integers(0, 256, (3, 5), np.uint8) * (i % 3),
            "waveform": rng.integers(-9, 9, 4, np.int16) * (i % 2),
            "label": i % 2,
            "track_id": 3**i,
            "clip": i,
        }
        for i in range(39)
    ]
    write_clips(config, clips, shards=7)
    split, records = open_dataset(config, ("waveform", "mel")).splits["train"], {}
    folder = tmp_path / "fma_small" / "mel_waveform" / "2.0.0"
    assert len(list(folder.glob("*.tfrecord-*"))) == 7
    for record in tfds.as_numpy(tfds.builder_from_directory(folder).as_dataset("train")):
        records[int(record["clip"])] = record
    batch = split.gather(np.arange(39))
    assert sorted(split.labels["clip"]) == sorted(records) == list(range(39))
    for i, clip in enumerate(split.labels["clip"]):
        assert split.labels["track_id"][i] == records[clip]["track_id"] == 3**clip
        for feature in ("mel", "waveform", "label"):
            np.testing.assert_array_equal(batch[feature][i], records[clip][feature])
            np.testing.assert_array_equal(batch[feature][i], clips[clip][feature])


def write_clips(config, clips, shards):
    """A data set of given clips, as `prepare` lays it out, by plain TFDS."""
    features = make_features(("mel", "waveform"), config)
    tensors = {
        feature.name: tfds.features.Tensor(shape=feature.shape, dtype=dtype, encoding="bytes")
        for feature, dtype in zip(features, (np.uint8, np.int16), strict=True)
    }
    labels = {"label": tfds.features.ClassLabel(names=["a", "b"])}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="fma_small",
        config="mel_waveform",
        version="2.0.0",
        data_dir=config.data_dir,
        features=tfds.features.FeaturesDict(
            tensors | labels | {"track_id": np.int64, "clip": np.int64}
        ),
        split_datasets={"train": enumerate(clips)},
        download_config=tfds.download.DownloadConfig(num_shards=shards),
    )
    metadata = Path(config.data_dir) / "fma_small/mel_waveform/2.0.0/metadata.json"
    content = {"settings": settings_of(features), "synthetic": True, "tracks_listed": len(clips)}
    content["splits"] = dict.fromkeys(SPLITS, {"tracks": 0, "clips": 0})
    metadata.write_text(json.dumps(content))


def test_records_of_the_version_without_tails_are_refused(own_data):
    folder = Path(own_data.data_dir) / "fma_small/mel_waveform"
    (folder / "2.0.0").rename(folder / "1.0.0")
    with pytest.raises(InputError, match="left out the tails of tracks: prepare it again"):
        open_dataset(own_data, ("mel",))


def test_no_buffer_is_overwritten_while_a_step_reads_it(dataset):
    """Steps that come to their batch late, many under way, and nobody else who holds the batch."""
    split = dataset.splits["train"]

    def late(state, batch):
        zero = jax.lax.fori_loop(0, 300, lambda _, x: jnp.tanh(x @ x) * 0, state)[0, 0].astype(int)
        late_mel = jax.lax.dynamic_slice_in_dim(batch["mel"], zero, len(batch["mel"]))
        return jax.lax.all_gather(late_mel.astype(int).sum((1, 2)), parallel.AXIS, tiled=True)

    step, state = parallel.data_parallel(late), parallel.replicate(jnp.ones((256, 256)))
    stored = split.gather(np.arange(24))["mel"].astype(int).sum((1, 2))
    expected = stored[split.train_rows(np.arange(40), 8, seed=0)]
    batches, found, late_steps = split.train_batches(8, seed=0), [], 0
    for _ in range(40):
        batch = next(batches)
        assert batch["mel"].ctypes.data % 64 == 0  # JAX takes such memory as it is
        found.append(step(state, batch))
        late_steps += not found[-1].is_ready()
        del batch
    assert late_steps > 4  # else this would prove nothing
    np.testing.assert_array_equal(np.array(found), expected)


def test_a_loop_goes_round_a_few_buffers():
    pool, in_flight = BufferPool(2**16), deque()
    step = parallel.data_parallel(lambda state, batch: state + batch["x"].max())
    state = parallel.replicate(jnp.uint8(0))
    for _ in range(100):
        in_flight.append(step(state, {"x": pool.take()}))
        if len(in_flight) > 4:
            in_flight.popleft().block_until_ready()
    assert pool.made <= 8


def test_batches_may_be_kept(dataset):
    """More than are ever under way."""
    split = dataset.splits["train"]
    for step, batch in enumerate(take(split, 48, batch_size=8, seed=1)):
        expected = split.gather(split.train_rows(np.array([step]), 8, seed=1)[0])
        for name, array in expected.items():
            np.testing.assert_array_equal(batch[name], array)


def take(split, steps, **kwargs):
    return list(itertools.islice(split.train_batches(**kwargs), steps))


def test_an_epoch_is_a_complete_shuffle(dataset):
    split = dataset.splits["train"]
    batches = take(split, 6, batch_size=8, seed=3)
    first, second = (
        np.concatenate([b["mel"] for b in part]) for part in (batches[:3], batches[3:])
    )
    stored = split.gather(np.arange(24))["mel"]

    def positions(mels):
        return [int(np.flatnonzero((stored == mel).all(axis=(1, 2)))[0]) for mel in mels]

    assert sorted(positions(first)) == sorted(positions(second)) == list(range(24))
    assert positions(first) != positions(second) != list(range(24))


def test_any_position_is_reached_directly(dataset):
    split = dataset.splits["train"]
    whole = take(split, 8, batch_size=7, seed=3)
    resumed = take(split, 3, batch_size=7, seed=3, first_step=5)
    for expected, found in zip(whole[5:], resumed, strict=True):
        np.testing.assert_array_equal(expected["waveform"], found["waveform"])
    other = take(split, 1, batch_size=7, seed=4)[0]
    assert not np.array_equal(other["waveform"], whole[0]["waveform"])


def test_evaluation_sees_every_clip_once_in_order(dataset):
    split = dataset.splits["test"]
    batches = list(split.eval_batches(9))
    assert [len(b["label"]) for b in batches] == [9, 9, 9]
    mask = np.concatenate([b["mask"] for b in batches])
    mels = np.concatenate([b["mel"] for b in batches])[mask]
    np.testing.assert_array_equal(mels, split.gather(np.arange(24))["mel"])


# Each process sums every clip of its share on its two devices, and gathers the sums of all.
_HOST = """
import sys
from itertools import islice
import jax
import numpy as np
process, port, config = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, process)
from mgc_jax.configs import default
from mgc_jax import parallel
from mgc_jax.data.input_pipeline import open_dataset

config = default.get_config()
config.data_dir = sys.argv[3]
splits = open_dataset(config, ("mel",)).splits

def sums(state, batch):
    found = batch["mel"].astype(int).sum((1, 2)) * batch.get("mask", 1)
    return jax.lax.all_gather(found, parallel.AXIS, tiled=True)

def gathered_sums(state, batch, stored):
    return sums(state, batch | {name: clips[batch["row"]] for name, clips in stored.items()})

step = parallel.data_parallel(sums)
train = islice(splits["train"].train_batches(8, seed=3), 4)
for batches in (list(train), list(splits["test"].eval_batches(20))):
    assert all(len(batch["mel"]) * 2 in (8, 20) for batch in batches)
    found = [np.asarray(step(np.int32(0), batch)) for batch in batches]
    print(process, *np.concatenate(found), flush=True)

parallel.device_memory = lambda: 2**40
train = splits["train"]
step = parallel.data_parallel(gathered_sums, kept=train.on_devices(0.25))
batches = islice(train.train_batches(8, seed=3, copy=False), 4)
print(process, *np.concatenate([np.asarray(step(np.int32(0), b)) for b in batches]), flush=True)
"""


def test_global_batches_do_not_depend_on_the_number_of_hosts(dataset, prepared):
    port = free_port()
    hosts = [Python("-c", _HOST, process, port, prepared.data_dir) for process in range(2)]
    batches = take(dataset.splits["train"], 4, batch_size=8, seed=3)
    expected = np.concatenate([batch["mel"] for batch in batches])
    test = dataset.splits["test"].gather(np.arange(24))["mel"]
    expected = [mels.astype(int).sum((1, 2)).tolist() for mels in (expected, test)]
    expected[1] += [0] * 16  # the mask's part of two batches of 20
    for process, host in enumerate(hosts):
        done = host.finish()
        lines = [line for line in done.stdout.splitlines() if line[:1].isdigit()]
        assert done.returncode == 0, done.stderr
        assert [list(map(int, line.split())) for line in lines] == [
            [process, *sums] for sums in [*expected, expected[0]]
        ]


@pytest.mark.parametrize("at_once", [2**26, 500_000])  # all 24 clips, or one after another
def test_batches_gathered_on_the_device_are_the_same(dataset, monkeypatch, at_once):
    split = dataset.splits["train"]
    size = len(split) * (128 * 513 + 2 * 160000)
    monkeypatch.setattr(parallel, "device_memory", lambda: 4 * size)
    monkeypatch.setattr(input_pipeline, "_MOVED_AT_ONCE", at_once)
    assert split.on_devices(0.2) == {}
    stored = split.on_devices(0.25)

    def gather(state, batch, stored):
        return {name: clips[batch["row"]] for name, clips in stored.items()}

    step = parallel.data_parallel(gather, kept=stored)
    where = {"batch_size": 7, "seed": 3, "first_step": 5}
    for copied, numbered in zip(
        take(split, 4, **where), take(split, 4, **where, copy=False), strict=True
    ):
        assert numbered.keys() == {"label", "row"}
        np.testing.assert_array_equal(numbered["label"], copied["label"])
        for name, clips in step(np.int32(0), numbered).items():
            assert clips.dtype == copied[name].dtype
            np.testing.assert_array_equal(clips, copied[name])


def test_reads_only_what_is_asked_for(prepared):
    split = open_dataset(prepared, ("mel",)).splits["train"]
    assert split.gather(np.arange(2)).keys() == {"mel", "label"}


def test_batch_larger_than_the_split(dataset):
    with pytest.raises(InputError, match="batch_size=25, but the training split holds 24 clips"):
        next(dataset.splits["train"].train_batches(25, seed=0))


def test_missing_records(config, tmp_path):
    config.data_dir = str(tmp_path)
    with pytest.raises(InputError, match="no TFRecords in .*mgc_jax.prepare"):
        open_dataset(config, ("mel",))


def test_other_audio_settings(config):
    config.mel.hop_length = 1000
    with pytest.raises(InputError, match="hop_length is 1250 there, 1000 in the config"):
        open_dataset(config, ("mel",))


def shard_of(config, split):
    return next(Path(config.data_dir).rglob(f"*-{split}.tfrecord*"))


def test_damaged_record_is_named(own_data):
    shard = shard_of(own_data, "train")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    with pytest.raises(InputError, match=f"{shard.name}: record 12 is damaged"):
        open_dataset(own_data, ("mel",))


@pytest.mark.parametrize(("kept", "problem"), [(0.5, "12 is missing"), (0, "0 is missing")])
def test_torn_shard_is_named(own_data, kept, problem):
    shard = shard_of(own_data, "train")
    os.truncate(shard, int(shard.stat().st_size * kept))
    with pytest.raises(InputError, match=f"{shard.name}: record {problem}"):
        open_dataset(own_data, ("mel",))
    shard.unlink()
    with pytest.raises(InputError, match=f"{shard.name} is missing"):
        open_dataset(own_data, ("mel",))


def test_shard_that_ends_between_two_records_is_named(own_data):
    shard = shard_of(own_data, "train")
    length = int.from_bytes(shard.read_bytes()[:8], "little")
    os.truncate(shard, 12 + length + 4)
    with pytest.raises(InputError, match="record 1 is missing, as dataset_info.json counts 24"):
        open_dataset(own_data, ("mel",))


def test_index_is_made_once_and_again_when_a_shard_changes(own_data):
    before = open_dataset(own_data, ("mel",)).splits["train"].labels
    shard, other = shard_of(own_data, "train"), shard_of(own_data, "test")
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    os.utime(shard, ns=times)
    open_dataset(own_data, ("mel",))  # the records are not read again, or this would be noticed
    shard.write_bytes(other.read_bytes())
    splits = open_dataset(own_data, ("mel",)).splits
    for name, values in splits["train"].labels.items():
        np.testing.assert_array_equal(values, splits["test"].labels[name])
    assert not np.array_equal(before["track_id"], splits["train"].labels["track_id"])


def test_torn_index_is_made_again(own_data):
    labels = open_dataset(own_data, ("mel",)).splits["train"].labels
    index = shard_of(own_data, "train").with_name("index-train.npz")
    for size in (0, 100, index.stat().st_size - 100):
        os.truncate(index, size)
        found = open_dataset(own_data, ("mel",)).splits["train"].labels
        np.testing.assert_array_equal(found["track_id"], labels["track_id"])
    assert not list(index.parent.glob(".index*"))


@contextmanager
def read_only(folder):
    """A folder that this process cannot write to, even if it is root's."""
    folder.chmod(0o555)
    if root := os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_index_of_a_read_only_folder_is_kept_elsewhere(config, monkeypatch):
    with tempfile.TemporaryDirectory() as root:  # not tmp_path, which only its owner may enter
        Path(root).chmod(0o755)
        shutil.copytree(config.data_dir, f"{root}/data", ignore=shutil.ignore_patterns("*.npz"))
        Path(root, "data").chmod(0o755)
        (cache := Path(root, "cache")).mkdir()
        cache.chmod(0o777)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        config.data_dir = f"{root}/data"
        folder = shard_of(config, "train").parent
        with read_only(folder):
            first = open_dataset(config, ("mel",)).splits["train"]
            index = next(cache.rglob("index-train.npz"))
            made = index.stat().st_mtime_ns
            second = open_dataset(config, ("mel",)).splits["train"]
        assert not list(folder.glob("*.npz"))
        assert index.stat().st_mtime_ns == made
        np.testing.assert_array_equal(first.labels["clip"], second.labels["clip"])


def test_data_in_a_bucket_is_copied_first(own_data, tmp_path, monkeypatch):
    """Local files pose as a bucket's, through etils.epath."""
    bucket, cache, read = Path(own_data.data_dir), tmp_path / "cache", []

    def posing(function, path, *args):
        local = str(path).replace("gs://bucket", str(bucket))
        read.extend([Path(local).name] if args == ("rb",) else [])
        return function(local, *args)

    def gather():
        split = open_dataset(own_data, ("mel",)).splits["train"]
        return split.gather(np.arange(len(split)))["mel"]

    expected = gather()
    shard, other = shard_of(own_data, "train"), shard_of(own_data, "test")
    own_data.data_dir = "gs://bucket"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr("etils.epath.gpath._is_tf_installed", lambda: False)  # else it ignores us
    operations = ("open", "exists", "isdir", "listdir", "stat")
    with epath.testing.mock_epath(**dict.fromkeys(operations, posing)):
        np.testing.assert_array_equal(gather(), expected)
        assert shard.name in read and "dataset_info.json" in read
        read.clear()
        np.testing.assert_array_equal(gather(), expected)
        assert read == []
        shard.write_bytes(other.read_bytes())
        assert not np.array_equal(gather(), expected)
        assert read == [shard.name]
    copies = cache / "mgc_jax/data/gs/bucket/fma_small/mel_waveform/2.0.0"
    assert (copies / shard.name).read_bytes() == other.read_bytes()
