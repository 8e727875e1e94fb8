"""Records, indexes and checkpoints that were damaged, or made to deceive."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from child import Python

from mgc_jax import console
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError
from mgc_jax.training.claim import locked
from mgc_jax.training.network import load_run


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
    done = Python("-c", code, own_data.data_dir, cwd=tmp_path).finish()
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


def test_a_foreign_template_of_names_is_one_line(own_data):
    path = folder_of(own_data) / "dataset_info.json"
    path.write_text(path.read_text().replace("{SHARD_X_OF_Y}", "{SHARD_X_OF_X}"))
    with pytest.raises(InputError, match="cannot be read .ValueError: Could not format template"):
        open_dataset(own_data, ("mel",))


def rewrite(config, change) -> None:
    """Changes the third record of the train split."""
    (path,) = folder_of(config).glob("*-train.tfrecord*")
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


@pytest.fixture
def run(workdir, tmp_path) -> Path:
    """A copy of a finished run that a test may damage."""
    return Path(shutil.copytree(workdir, tmp_path / "run"))


def arrays_of(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's arrays."""
    return [path for path in folder.rglob("*") if path.is_file() and "/d/" in str(path)]


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x04
    path.write_bytes(content)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.8])
def test_a_changed_bit_in_a_checkpoint_is_noticed(run, caplog, monkeypatch, place):
    monkeypatch.setattr(console.log, "propagate", True)
    _, variables, epoch, _ = load_run(run)
    newest = run / "checkpoints" / "best" / str(epoch)
    flip(max(arrays_of(newest), key=lambda path: path.stat().st_size), place)
    older = len(list((run / "checkpoints" / "best").iterdir())) > 1
    if older:
        assert load_run(run).epoch < epoch
    else:
        with pytest.raises(InputError, match="can be read"):
            load_run(run)
    assert "is damaged and passed over" in caplog.text


def test_a_checkpoint_of_another_run_is_noticed(run, tmp_path):
    _, variables, epoch, _ = load_run(run)
    data = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(data | {"run": "another"}))
    with pytest.raises(InputError, match="can be read .*it is of another run"):
        load_run(run)
    # Older runs do not tell: what they hold is taken as it is.
    (run / "data.json").unlink()
    assert load_run(run).epoch == epoch


def test_two_processes_on_one_workdir(prepared, tmp_path):
    """The second one ends with one line that names the first, which is not disturbed."""
    command = ["-m", "mgc_jax", "train", "--config=baseline_a_2d"]
    command += [f"--config.data_dir={prepared.data_dir}", "--config.batch_size=8"]
    command += ["--config.num_epochs=1000", f"--workdir={tmp_path / 'run'}"]
    first = Python(*command)
    try:
        while "epoch " not in first.read("stderr"):
            assert first.process.is_alive(), first.read("stderr")
            time.sleep(0.05)
        second = Python(*command).finish()
        assert second.returncode == 1
        last = second.stderr.splitlines()[-1]
        assert f"is trained in by process {first.process.pid} on " in last and " since 20" in last
        assert "Traceback" not in second.stderr
    finally:
        first.process.terminate()
        first.finish()
    assert first.process.exitcode == 75
    # A lock does not outlive its process, however that ends.
    with locked(tmp_path / "run"):
        pass
