"""Records, indexes and checkpoints that were damaged, or made to deceive."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from mgc_jax.data import shards
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError


def folder_of(config) -> Path:
    return Path(config.data_dir) / "fma_small" / "mel_waveform" / "2.0.0"


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_records_name_no_code_to_run(own_data, tmp_path, key):
    """TFDS would import the module, which may lie in the current folder."""
    path = folder_of(own_data) / "features.json"
    features = json.loads(path.read_text())
    tensor = features["featuresDict"]["features"]["mel"]
    del tensor["pythonClassName"]
    tensor[key] = "evil.Tensor"
    path.write_text(json.dumps(features))
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()")
    code = (
        "import sys\n"
        "from mgc_jax.configs import default\n"
        "from mgc_jax.data.input_pipeline import open_dataset\n"
        "config = default.get_config()\n"
        "config.data_dir = sys.argv[1]\n"
        "open_dataset(config, ('mel',))\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{Path(shards.__file__).parents[2]}:{tmp_path}"}
    command = [sys.executable, "-c", code, own_data.data_dir]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "features.json names the class 'evil.Tensor'" in last
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "metadata.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"splits": 3}', b"\xff\xfe", b"[" * 9999])
def test_damaged_metadata_are_one_line(own_data, name, content):
    (folder_of(own_data) / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        open_dataset(own_data, ("mel",))
    assert "\n" not in str(error.value) and "prepare it again" in str(error.value)


def rewrite(config, change) -> None:
    """Changes the third record of the train split."""
    (path,) = folder_of(config).glob("*train*")
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    example = tf.train.Example.FromString(records[2])
    change(example.features.feature)
    records[2] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda f: f["mel"].bytes_list.value.__setitem__(0, b"short"), "its mel has 5 bytes"),
        (lambda f: f["label"].int64_list.value.__setitem__(0, 8), "its label is 8, of 8 genres"),
        (lambda f: f["label"].int64_list.value.__setitem__(0, -1), "its label is -1"),
        (lambda f: f["waveform"].Clear(), "record 2: "),
        (lambda f: f["clip"].Clear(), "record 2: "),
    ],
)
def test_records_that_do_not_hold_what_they_should_are_named(own_data, change, says):
    rewrite(own_data, change)
    with pytest.raises(InputError, match=f"train.*record 2: .*{says.removeprefix('record 2: ')}"):
        open_dataset(own_data, ("mel",))


def test_any_damage_of_an_index_has_it_made_again(own_data):
    """Every 97th byte flipped in turn; arrays swapped for such that point elsewhere."""
    good = open_dataset(own_data, ("mel",)).splits["train"]
    expected = good.gather(np.arange(len(good)))["mel"]
    path = folder_of(own_data) / "index-train.npz"
    content = path.read_bytes()
    for place in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        split = open_dataset(own_data, ("mel",)).splits["train"]
        np.testing.assert_array_equal(split.gather(np.arange(len(split)))["mel"], expected)
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["offset_mel"] = arrays["offset_mel"][::-1] + 10**9
    np.savez(path, **arrays)
    split = open_dataset(own_data, ("mel",)).splits["train"]
    np.testing.assert_array_equal(split.gather(np.arange(len(split)))["mel"], expected)
