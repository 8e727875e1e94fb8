"""Training: learning, resuming, one device or eight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mgc_jax import parallel, train
from mgc_jax.checkpoints import Checkpoints
from mgc_jax.errors import InputError
from mgc_jax.features import to_network_input
from mgc_jax.input_pipeline import open_dataset


def read_log(workdir, kind):
    lines = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def restore(config, workdir):
    state = train.create_train_state(config, train.make_model(config, 8))
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_last(state), checkpoints.restore_best(state.variables)


@pytest.fixture(scope="module")
def whole_run(prepared, tmp_path_factory):
    """Four epochs without interruption."""
    config = prepared.copy_and_resolve_references()
    config.update(batch_size=8, num_epochs=4, learning_rate=1e-3)
    workdir = tmp_path_factory.mktemp("whole")
    train.train(config, workdir, open_dataset(config, ("mel",)))
    return config, workdir


def test_learns_and_keeps_the_best_epoch(whole_run):
    config, workdir = whole_run
    losses = [line["loss"] for line in read_log(workdir, "train")]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    validation = [line["loss"] for line in read_log(workdir, "validation")]
    with Checkpoints(workdir) as checkpoints:
        best, done = checkpoints.best, checkpoints.epochs_done
    assert best == {"epoch": 1 + int(np.argmin(validation)), "loss": min(validation)}
    assert done == 4
    assert list(Path(workdir).glob("events.out.tfevents*"))


def test_resumed_run_equals_the_uninterrupted_one(whole_run, tmp_path):
    config, whole = whole_run
    dataset = open_dataset(config, ("mel",))
    first = config.copy_and_resolve_references()
    first.num_epochs = 2
    train.train(first, tmp_path, dataset)
    with open(tmp_path / "metrics.jsonl", "a") as file:  # as if killed in epoch 3
        file.write('{"kind": "train", "epoch": 3, "step": 9, "loss": 0.1}\n{"kind": "tra')
    train.train(config, tmp_path, dataset)
    for kind in ("train", "validation"):
        losses = [[line["loss"] for line in read_log(w, kind)] for w in (whole, tmp_path)]
        assert losses[0] == losses[1]
    (last, best), (expected_last, expected_best) = restore(config, tmp_path), restore(config, whole)
    assert last.step == expected_last.step == 12
    jax.tree.map(np.testing.assert_array_equal, last.params, expected_last.params)
    jax.tree.map(np.testing.assert_array_equal, last.opt_state, expected_last.opt_state)
    jax.tree.map(np.testing.assert_array_equal, best, expected_best)


def test_bfloat16_learns_as_float32_does(whole_run, tmp_path):
    config, whole = whole_run
    config = config.copy_and_resolve_references()
    config.dtype = "bfloat16"
    train.train(config, tmp_path, open_dataset(config, ("mel",)))
    losses = [[line["loss"] for line in read_log(w, "train")] for w in (whole, tmp_path)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.1, atol=0.05)


def test_step_is_adamw_on_the_cross_entropy(config, dataset):
    """One step against optax and jax.grad without pmap."""
    config.weight_decay = 0.1
    batch = dataset.splits["train"].gather(np.arange(8))
    model = train.make_model(config, 8).clone(axis_name=None)
    state = train.create_train_state(config, model)
    stats = {"batch_stats": state.batch_stats}

    def loss_fn(params):
        x = to_network_input("mel", batch["mel"])
        logits, _ = model.apply({"params": params, **stats}, x, train=True, mutable="batch_stats")
        log_probs = jax.nn.log_softmax(logits)
        return -log_probs[np.arange(8), batch["label"]].mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    step = parallel.data_parallel(lambda s, b: train.train_step(s, b, ("mel",)))
    after, scores = step(state, {"mel": batch["mel"], "label": batch["label"]})
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-5)
    adam = after.opt_state[0]

    def check(before, after, gradient, mean, square):
        np.testing.assert_allclose(mean, 0.1 * gradient, rtol=1e-2, atol=1e-6)
        np.testing.assert_allclose(square, 0.001 * gradient**2, rtol=2e-2, atol=1e-10)
        update = (mean / 0.1) / (np.sqrt(square / 0.001) + 1e-8)
        expected = before - config.learning_rate * (update + 0.1 * before)
        np.testing.assert_allclose(after, expected, atol=1e-6)

    jax.tree.map(check, state.params, after.params, gradients, adam.mu, adam.nu)


def test_first_step_compiles_once(config, dataset):
    model = train.make_model(config, 8)
    traces = []

    def step(state, batch):
        traces.append(None)
        return train.train_step(state, batch, ("mel",))

    compiled = parallel.data_parallel(step, donate=True)
    state = train.create_train_state(config, model)
    for _ in range(3):
        state, _ = compiled(state, dataset.splits["train"].gather(np.arange(8)))
    assert len(traces) == 1


def test_steps_that_follow_do_not_disturb_a_save(config, dataset, tmp_path):
    """Saves run in the background while the state's memory is given to the next steps."""
    model = train.make_model(config, 8)
    step = parallel.data_parallel(lambda s, b: train.train_step(s, b, ("mel",)), donate=True)
    batch = dataset.splits["train"].gather(np.arange(8))
    state, _ = step(train.create_train_state(config, model), batch)
    saved = jax.tree.map(np.array, (state.params, state.opt_state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_last(1, state)
        for _ in range(5):
            state, _ = step(state, batch)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_last(train.create_train_state(config, model))
    jax.tree.map(np.testing.assert_array_equal, (restored.params, restored.opt_state), saved)
    assert state.step == 6 and restored.step == 1


_RUN_ON_DEVICES = """
import json, sys
from pathlib import Path
from ml_collections import ConfigDict
from mgc_jax import parallel, train
from mgc_jax.evaluate import predict_split
from mgc_jax.input_pipeline import open_dataset
import jax
config, workdir = ConfigDict(json.loads(sys.argv[1])), Path(sys.argv[2])
workdir.mkdir()
train.train(config, workdir, open_dataset(config, ("mel",)))
print(jax.device_count())
"""


@pytest.mark.parametrize("devices", [8])
def test_same_on_eight_devices(config, tmp_path, devices):
    """Batch norm and gradients are shared: losses agree to rounding, which Adam amplifies."""
    losses = {}
    for count in (1, devices):
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        workdir = tmp_path / str(count)
        arguments = [sys.executable, "-c", _RUN_ON_DEVICES, config.to_json(), str(workdir)]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(count)
        losses[count] = [
            [line["loss"] for line in read_log(workdir, kind)] for kind in ("train", "validation")
        ]
    np.testing.assert_allclose(losses[1], losses[devices], rtol=1e-3)


def test_batch_must_divide(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    parallel.check_batch_size(32)
    with pytest.raises(InputError, match="batch_size=20 does not divide by 8 devices: use 16"):
        parallel.check_batch_size(20)
    with pytest.raises(InputError, match="use 8$"):
        parallel.check_batch_size(3)


def test_not_finite_loss_stops_and_keeps_the_checkpoint(config, tmp_path):
    config.learning_rate = float("nan")
    with pytest.raises(InputError, match="the loss of epoch 1 is nan.*config.learning_rate"):
        train.train(config, tmp_path, open_dataset(config, ("mel",)))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.epochs_done == 0
