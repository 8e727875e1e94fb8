"""Training: learning, and the step."""

import dataclasses
import io
import json
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import tqdm
from shared import once, train

from mgc_jax import console, parallel
from mgc_jax.configs import default
from mgc_jax.training import loop
from mgc_jax.training.checkpoints import Checkpoints
from mgc_jax.training.network import Network
from mgc_jax.training.run_log import ProgressLine
from mgc_jax.training.step import create_train_state, train_step


def read_log(workdir, kind):
    lines = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


@pytest.fixture(scope="module")
def whole_run(prepared, tmp_path_factory):
    """Four epochs without interruption."""
    config = prepared.copy_and_resolve_references()
    config.update(batch_size=8, num_epochs=4, learning_rate=1e-3)
    workdir = tmp_path_factory.mktemp("whole")
    train(config, workdir)
    return config, workdir


def test_learns_and_keeps_the_best_epoch(whole_run):
    config, workdir = whole_run
    losses = [line["loss"] for line in read_log(workdir, "train")]
    assert len(losses) == 4 and losses[-1] < 0.7 * losses[0]
    validation = [line["loss"] for line in read_log(workdir, "validation")]
    progress = loop.load_progress(workdir)
    assert progress.best_epoch == 1 + int(np.argmin(validation))
    assert progress.best_loss == min(validation)
    assert progress.epoch == 4 and progress.step == 12
    assert list(Path(workdir).glob("events.out.tfevents*"))


@pytest.mark.parametrize("keep,kept", [("loss", 2), ("top1", 3), ("last", 5)])
def test_the_epoch_that_is_kept(keep, kept):
    """Whatever it is, the lowest loss is known, by which training stops early."""
    epochs = [(2.0, 0.2), (1.0, 0.4), (1.5, 0.6), (1.5, 0.6), (1.2, 0.5)]
    best = 0
    progress = loop.Progress()
    for epoch, (loss, top1) in enumerate(epochs, start=1):
        # As it comes back from a checkpoint.
        progress = loop.Progress(**json.loads(json.dumps(dataclasses.asdict(progress))))
        if progress.validated(epoch, {"loss": loss, "top1": top1}, keep):
            best = epoch
    assert best == kept
    assert (progress.best_epoch, progress.best_loss) == (2, 1.0)


@pytest.mark.parametrize("keep", ["top1", "last"])
def test_what_is_kept_is_the_same_after_a_restart(whole_run, tmp_path, keep):
    config, whole = whole_run
    config = config.copy_and_resolve_references()
    for epochs in (2, 4):
        config.update(keep=keep, num_epochs=epochs)
        train(config, tmp_path)
    validation = read_log(whole, "validation")
    top1 = [line["top1"] for line in validation]
    kept = {"top1": 1 + int(np.argmax(top1)), "last": 4}[keep]
    network = Network.from_config(config, list("abcdefgh"))
    with Checkpoints(tmp_path) as checkpoints:
        _, score = checkpoints.restore_best(network.shapes)
    assert score == {"epoch": kept, "loss": validation[kept - 1]["loss"]}


def test_clips_on_the_devices_change_nothing(whole_run, tmp_path, monkeypatch, caplog):
    """Of a run that began with clips copied step by step."""
    caplog.set_level("INFO", "mgc_jax")
    config, whole = whole_run
    config = config.copy_and_resolve_references()
    config.num_epochs = 1
    train(config, tmp_path)
    assert "clips     are copied to the devices step by step" in caplog.text
    monkeypatch.setattr(parallel, "device_memory", lambda: 10**9)
    config.num_epochs = 4
    train(config, tmp_path)
    assert "clips     lie on every device: 0.0016 GB" in caplog.text
    logs = [read_log(workdir, "step") for workdir in (whole, tmp_path)]
    assert logs[0] == logs[1]


def test_bfloat16_learns_as_float32_does(whole_run, tmp_path):
    config, whole = whole_run
    config = config.copy_and_resolve_references()
    config.dtype = "bfloat16"
    train(config, tmp_path)
    losses = [[line["loss"] for line in read_log(w, "train")] for w in (whole, tmp_path)]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.1, atol=0.05)


def test_step_is_adamw_on_the_cross_entropy(config, dataset):
    """One step against optax and jax.grad without pmap."""
    config.weight_decay = 0.1
    batch = dataset.splits["train"].gather(np.arange(8))
    network = Network.from_config(config, dataset.genres)
    model = network.module.clone(axis_name=None)
    state = create_train_state(network)
    stats = {"batch_stats": state.batch_stats}

    def loss_fn(params):
        x = batch["mel"].astype(np.float32) / 255 * 2 - 1
        logits, _ = model.apply({"params": params, **stats}, x, train=True, mutable="batch_stats")
        log_probs = jax.nn.log_softmax(logits)
        return -log_probs[np.arange(8), batch["label"]].mean()

    loss, gradients = once(jax.value_and_grad(loss_fn))(state.params)
    step = parallel.data_parallel(lambda s, b: train_step(s, b, network))
    after, scores = step(state, {"mel": batch["mel"], "label": batch["label"]})
    assert scores["loss"] == pytest.approx(float(loss), rel=1e-5)

    def check(before, after, gradient, mean, square):
        np.testing.assert_allclose(mean, 0.1 * gradient, rtol=1e-2, atol=1e-6)
        np.testing.assert_allclose(square, 0.001 * gradient**2, rtol=2e-2, atol=1e-10)
        update = (mean / 0.1) / (np.sqrt(square / 0.001) + 1e-8)
        expected = before - config.learning_rate * (update + 0.1 * before)
        np.testing.assert_allclose(after, expected, atol=1e-6)

    moments = (optax.tree.get(after.opt_state, name) for name in ("mu", "nu"))
    jax.tree.map(check, *jax.device_get((state.params, after.params, gradients, *moments)))


def test_first_step_compiles_once(config, dataset):
    network = Network.from_config(config, dataset.genres)
    traces = []

    def step(state, batch):
        traces.append(None)
        return train_step(state, batch, network)

    compiled = parallel.data_parallel(step, donate=True)
    state = create_train_state(network)
    batch = dataset.splits["train"].gather(np.arange(8))
    compiled.lower(state, batch).compile()  # as predicting does while it decodes
    assert len(traces) == 1
    for _ in range(3):
        state, _ = compiled(state, batch)
    assert len(traces) == 1


def test_steps_that_follow_do_not_disturb_a_save(config, dataset, tmp_path):
    """Saves run in the background while the state's memory is given to the next steps."""
    network = Network.from_config(config, dataset.genres)
    step = parallel.data_parallel(lambda s, b: train_step(s, b, network), donate=True)
    batch = dataset.splits["train"].gather(np.arange(8))
    state, _ = step(create_train_state(network), batch)
    saved = jax.tree.map(np.array, (state.params, state.opt_state))
    with Checkpoints(tmp_path, writing=True) as checkpoints:
        checkpoints.save_last(state, {"step": 1})
        for _ in range(5):
            state, _ = step(state, batch)
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore_last(create_train_state(network))
    jax.tree.map(np.testing.assert_array_equal, (restored.params, restored.opt_state), saved)
    assert state.step == 6 and restored.step == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("live", [True, False])
def test_progress_line(monkeypatch, caplog, live):
    stream = Terminal() if live else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(tqdm.std, "time", lambda: clock[0])
    # What a terminal of 80 columns says of itself.
    monkeypatch.setattr(tqdm.std, "_screen_shape_wrapper", lambda: lambda file: (80, 24))
    monkeypatch.setattr(console.log, "propagate", True)
    caplog.set_level("INFO", "mgc_jax")
    line = ProgressLine(epochs=2, steps_per_epoch=100, batch_size=8)
    line.start_epoch(0)
    for step in range(1, 62):  # a second a step, a quarter of it waiting
        clock[0] += 1
        line.waited(0.25)
        line.update(step, loss=1.5, top1=0.25)
    line.clear()
    said = stream.getvalue() if live else "".join(f"{m}\n" for m in caplog.messages)
    shown = [part.strip() for part in said.replace("\n", "\r").split("\r") if part.strip()]
    assert len(shown) == (60 if live else 2)
    start = "epoch 1/2  step 61/200  02:19 left, 8 clips/s  loss 1.500  top-1 0.250  "
    if live:  # cut off at the terminal's width, but for what comes last
        assert shown[-1].startswith(start) and all(len(part) <= 80 for part in shown)
        assert "\n" not in said
    else:
        assert shown[-1].startswith("epoch 1/2  step 60/200  02:2")
        assert "left, 8 clips/s  loss 1.500" in shown[-1]
        assert shown[-1].endswith("25% waiting for data")


@pytest.mark.parametrize("clips", [1, 3, 4])
def test_predicting_in_parts_changes_nothing(clips):
    small = {"growth_rate": 4, "block_sizes": (2, 1), "initial_features": 8}
    config = default.get_config()
    config.mel.update(frames=30, n_mels=40)
    config.model_overrides.update(small)
    network = Network.from_config(config, ["a", "b", "c"])
    model = network.module
    rng = np.random.default_rng(0)
    mel = rng.integers(0, 256, (clips, 30, 40), np.uint8)
    inputs = mel.astype(np.float32) / 255 * 2 - 1
    variables = once(partial(model.init, train=False))(jax.random.key(0), inputs[:1])
    apply = once(partial(model.apply, train=False))
    logits = [apply(variables, x[None])[0] for x in inputs]
    found = network.predict_step(variables, {"mel": mel, "label": np.zeros(clips)})
    np.testing.assert_allclose(found, jax.nn.log_softmax(np.array(logits)), atol=1e-5)
