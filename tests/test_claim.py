"""Whose a workdir is, and what is refused before anything is made."""

import json
import shutil

import numpy as np
import pytest
from shared import train

import mgc_jax
from mgc_jax.configs import default
from mgc_jax.data import input_pipeline
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError
from mgc_jax.results import files
from mgc_jax.training import loop
from mgc_jax.training.claim import check_config, check_workdir, claim_workdir
from mgc_jax.training.network import Network, load_run
from mgc_jax.training.pretrained import load_weights
from mgc_jax.training.train import train_and_evaluate


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("dtype", "bf16", "config.dtype='bf16': use bfloat16"),
        ("dtype", "float23", "did you mean 'float32'"),
        ("init_from", "/no/such/run", "config.init_from='/no/such/run': no such file or folder"),
        ("keep", "best", "config.keep='best': one of loss, top1, last"),
        ("batch_size", 0, "config.batch_size=0 does not divide"),
        ("optimizer.schedule", "cosin", "schedule='cosin' is unknown: .*'cosine'"),
        ("augment.noise_probability", 1.5, "noise_probability=1.5 is not between 0 and 1"),
        ("optimizer.freeze", "nothing/", "matches none of the parameters"),
        ("mel.frames", 4000, "mel.frames=4000, but a clip of 10 s gives 129 frames"),
    ],
)
def test_settings_are_checked_before_anything_else(key, value, message):
    config = default.get_config()
    config.model = "baseline_a_2d"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message):
        check_config(config)


def test_what_is_off_is_not_checked():
    config = default.get_config()
    config.model = "baseline_a_2d"
    config.mel.n_mels = 40  # below mel_mask_bands, but there are no masks
    check_config(config)
    config.augment.mel_masks = 1
    with pytest.raises(InputError, match="mel_mask_bands=64 is not between 0 and 40"):
        check_config(config)


def test_a_start_that_failed_leaves_the_workdir_free(config, tmp_path):
    broken = config.copy_and_resolve_references()
    broken.data_dir = str(tmp_path / "nothing")
    with pytest.raises(InputError, match="no TFRecords"):
        train_and_evaluate(broken, tmp_path / "run", training=True, command="x")
    assert not (tmp_path / "run").exists()
    # A folder with a config but no checkpoint is free as well.
    network = Network.from_config(config, list("abcdefgh"))
    claim_workdir(tmp_path / "run", network, {"hash": "0", "summary": ""})
    config.learning_rate = 0.5
    check_workdir(tmp_path / "run", config, new=True)


@pytest.fixture
def run(config, workdir, tmp_path):
    """A copy of a finished run of two epochs, and its config."""
    shutil.copytree(workdir, tmp_path / "run")
    stored = files.read_config(tmp_path / "run")
    config.update(stored)
    return config, tmp_path / "run"


def test_training_longer_goes_on_where_the_rate_is_constant(run):
    config, workdir = run
    log = (workdir / "metrics.jsonl").read_text()
    config.num_epochs = 3
    train_and_evaluate(config, workdir, training=True, command="x")
    assert (workdir / "metrics.jsonl").read_text().startswith(log)
    assert loop.load_progress(workdir).epoch == 3
    assert files.read_config(workdir)["num_epochs"] == 3
    config.num_epochs = 2
    with pytest.raises(InputError, match="num_epochs is 3 there, 2 now"):
        check_workdir(workdir, config, new=True)


def test_training_longer_under_a_schedule_is_explained(run):
    config, workdir = run
    config.optimizer.schedule = "cosine"
    files.write_config(workdir, json.loads(config.to_json()))
    config.num_epochs = 3
    with pytest.raises(InputError, match="run of 2 epochs, 3 are wanted.*another learning rate"):
        check_workdir(workdir, config, new=True)


def test_data_that_changed_under_a_run_are_refused(run, monkeypatch):
    config, workdir = run
    plain = input_pipeline.Split.labels.fget

    def changed(split):
        labels = dict(plain(split))
        return labels | {"track_id": labels["track_id"] % 5}

    monkeypatch.setattr(input_pipeline.Split, "labels", property(changed))
    with pytest.raises(InputError, match="other data: .* 8 tracks in 24 clips.* there, .* now"):
        train_and_evaluate(config, workdir, training=True, command="x")
    # The checkpoint knows it too.
    changed_data = open_dataset(config, ("mel",)).fingerprint()
    run_id = files.read_data(workdir)["run"]
    files.write_data(workdir, changed_data | {"run": run_id})
    config.num_epochs = 3
    with pytest.raises(InputError, match="are of a run on other data"):
        train_and_evaluate(config, workdir, training=True, command="x")


def test_a_finished_run_without_its_last_state_is_finished(run, caplog, monkeypatch):
    from mgc_jax import console

    config, workdir = run
    monkeypatch.setattr(console.log, "propagate", True)
    caplog.set_level("INFO", "mgc_jax")
    log = (workdir / "metrics.jsonl").read_text()
    shutil.rmtree(workdir / "checkpoints" / "last")
    train_and_evaluate(config, workdir, training=True, command="x")
    assert "this run is complete" in caplog.text
    assert (workdir / "metrics.jsonl").read_text() == log


def test_workdirs_without_newer_keys_can_be_used(run):
    """As those of older versions: a key that is missing counts as its default."""
    config, workdir = run
    stored = files.read_config(workdir)
    for key in ("name", "average_decay"):
        del stored[key]
    del stored["augment"]["mixup_alpha"]
    files.write_config(workdir, stored)
    (workdir / "data.json").unlink()
    check_workdir(workdir, config, new=True)
    with pytest.raises(InputError, match="records of an older version.*it predicts"):
        claim_workdir(workdir, Network.from_config(config, load_run(workdir).network.genres), {})
    assert load_run(workdir).network.config.augment.mixup_alpha == 0


def test_genres_are_matched_by_name(run, caplog, monkeypatch):
    from mgc_jax import console

    monkeypatch.setattr(console.log, "propagate", True)
    caplog.set_level("INFO", "mgc_jax")
    config, workdir = run
    network, variables, *_ = load_run(workdir)
    ours = ["Zydeco", *network.genres[:3]]
    fresh = Network.from_config(config, ours).init()
    loaded = load_weights(workdir, config.model, fresh, ours)
    kernel = loaded["params"]["head"]["classifier"]["kernel"]
    theirs = variables["params"]["head"]["classifier"]["kernel"]
    np.testing.assert_array_equal(kernel[:, 1:], theirs[:, :3])
    first = fresh["params"]["head"]["classifier"]["kernel"][:, 0]
    np.testing.assert_array_equal(kernel[:, 0], first)
    conv = loaded["params"]["conv0"]["kernel"]
    np.testing.assert_array_equal(conv, variables["params"]["conv0"]["kernel"])
    assert f"the classifier of {', '.join(network.genres[:3])}; fresh: Zydeco" in caplog.text


def test_the_report_knows_the_data(run):
    config, workdir = run
    dataset = open_dataset(config, ("mel",))
    found = files.read_facts(workdir)["data"]["fingerprint"]
    assert found == dataset.fingerprint()["hash"] == files.read_data(workdir)["hash"]
    train(config, workdir)  # the run goes on being of these data


def test_read_only_runs_show_their_scores(run, caplog, monkeypatch):
    """As root may write anywhere, the answer of the system is posed."""
    from mgc_jax import console

    config, workdir = run
    monkeypatch.setattr(console.log, "propagate", True)
    caplog.set_level("INFO", "mgc_jax")
    before = (workdir / "report" / "index.html").stat().st_mtime_ns
    monkeypatch.setattr("os.access", lambda path, mode: False)
    train_and_evaluate(config, workdir, training=False, command="x")
    assert "read-only" in caplog.text and "track level" in caplog.text
    assert (workdir / "report" / "index.html").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="permission denied"):
        train_and_evaluate(config, workdir, training=True, command="x")


def test_networks_of_the_demo_say_so(run):
    config, workdir = run
    assert mgc_jax.load(workdir).notice is None
    config.dataset = "demo"
    files.write_config(workdir, json.loads(config.to_json()))
    assert "synthesised music" in mgc_jax.load(workdir).notice
