"""Batches from the shards, against plain TFDS."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mgc_jax.errors import InputError
from mgc_jax.input_pipeline import open_dataset


def plain_records(config, split):
    path = f"{config.data_dir}/fma_small/mel_waveform/1.0.0"
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
    mels = np.concatenate([b["mel"] for b in batches])
    np.testing.assert_array_equal(mels[:24], split.gather(np.arange(24))["mel"])


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


def test_damaged_record_is_named(own_data):
    shard = next(Path(own_data.data_dir).rglob("*-train.tfrecord*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    with pytest.raises(InputError, match=f"{shard.name}: record 12 is damaged"):
        open_dataset(own_data, ("mel",))


def test_index_is_made_again_when_a_shard_changes(own_data):
    open_dataset(own_data, ("mel",))
    folder = Path(own_data.data_dir) / "fma_small/mel_waveform/1.0.0"
    train, test = (next(folder.glob(f"*-{name}.tfrecord*")) for name in ("train", "test"))
    train.write_bytes(test.read_bytes())
    dataset = open_dataset(own_data, ("mel",))
    for name, values in dataset.splits["train"].labels.items():
        np.testing.assert_array_equal(values, dataset.splits["test"].labels[name])
