"""Training that is killed, torn, starved of disk, or spread over devices and hosts."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import child
import jax
import numpy as np
import pytest
from child import log_lines, said
from shared import train

from mgc_jax import parallel
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError
from mgc_jax.training import loop
from mgc_jax.training.checkpoints import Checkpoints
from mgc_jax.training.network import Network
from mgc_jax.training.step import create_train_state


@pytest.fixture(scope="module")
def recipe(prepared):
    """120 steps in ten epochs, with all that a state can hold."""
    config = prepared.copy_and_resolve_references()
    config.update(batch_size=2, num_epochs=10, learning_rate=1e-3, average_decay=0.9)
    config.optimizer.update(schedule="cosine", warmup_epochs=0.25, clip_norm=5.0)
    config.model_overrides = {"dropout": 0.2}
    return config


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """The run without disturbance, with a profile."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    config = recipe.copy_and_resolve_references()
    config.profile = True
    child.finish(child.start(config, workdir), workdir=workdir)
    return workdir


@pytest.fixture(scope="module")
def disturbed(recipe, tmp_path_factory):
    """The run killed at random points, in two saves, torn, told to stop, and finished."""
    workdir = tmp_path_factory.mktemp("runs") / "disturbed"
    config = recipe.copy_and_resolve_references()
    config.checkpoint_every_minutes = 0.0
    seed = random.randrange(1000)
    print("seed", seed)  # shown if a test here fails
    rng = random.Random(seed)
    for point in ("save", "random", "torn", "stop"):
        step = newest_checkpoint(workdir) + rng.randrange(1, 4)
        process = child.start(config, workdir)
        wait_for_checkpoint(workdir, step, process)
        if point == "save":
            wait_for(lambda: list(workdir.glob("checkpoints/last/*tmp*")), process)
        if point == "stop":
            process.terminate()
            child.finish(process, code=75, workdir=workdir)
            continue
        time.sleep(rng.random() * 0.05)
        process.kill()
        child.finish(process, code=-signal.SIGKILL, workdir=workdir)
        if point == "torn":
            tear_newest(workdir)
    child.finish(child.start(recipe, workdir), workdir=workdir)
    return workdir


def wait_for(condition, process):
    """Waits until a condition holds or the process has ended (the tests see the difference)."""
    while not condition() and process.is_alive():
        time.sleep(0.005)


def wait_for_checkpoint(workdir, step, process):
    wait_for(lambda: newest_checkpoint(workdir) >= step, process)


def newest_checkpoint(workdir):
    names = (path.name for path in (workdir / "checkpoints" / "last").glob("*"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def tear_newest(workdir):
    newest = workdir / "checkpoints" / "last" / str(newest_checkpoint(workdir))
    largest = max(newest.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def restore(config, workdir):
    state = create_train_state(Network.from_config(config, [str(i) for i in range(8)]), 12)
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore_last(state), checkpoints.restore_best(state.variables)


def test_disturbed_run_equals_the_whole_one(recipe, whole, disturbed):
    assert log_lines(disturbed) == log_lines(whole)
    assert [line["step"] for line in log_lines(disturbed, "step")] == [*range(1, 121)]
    (state, progress), best = restore(recipe, disturbed)
    (expected, expected_progress), expected_best = restore(recipe, whole)
    assert expected_progress["step"] == 120 and progress == expected_progress
    for ours, theirs in ((state, expected), (best[0], expected_best[0])):
        leaves = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
        assert all(np.array_equal(a, b) for a, b in leaves)
    losses = [line["loss"] for line in log_lines(whole, "validation")]
    assert best[1] == {"epoch": 1 + int(np.argmin(losses)), "loss": min(losses)}


def test_disturbed_run_says_what_it_goes_on_from(disturbed):
    output = said(disturbed)
    assert output.count("resuming after step") >= 3
    assert output.count("is damaged and passed over") == 1
    assert "which is saved; the same command goes on" in output
    assert "Traceback" not in output


def test_evaluates_and_keeps_the_average(recipe, whole):
    (state, _), (best, score) = restore(recipe, whole)
    kernels = (v["params"]["conv0"]["kernel"] for v in (best, state.average, state.variables))
    best, average, plain = kernels
    assert not np.array_equal(average, plain)
    assert np.array_equal(best, average) == (score["epoch"] == 10)


def test_profile_is_written(whole):
    assert list((whole / "profile").rglob("*.xplane.pb"))


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of its own that holds two checkpoints of the run, but not three."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_loses_nothing(recipe, whole, small_disk):
    workdir = small_disk / "run"
    child.finish(child.start(recipe, workdir), code=1, workdir=workdir)
    message = said(workdir).strip().splitlines()[-1]
    assert message.startswith("error: no space is left on the disk")
    assert "Traceback" not in said(workdir)
    done = loop.load_progress(workdir)
    assert done.epoch == 1 and log_lines(workdir)[: done.step] == log_lines(whole)[: done.step]
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    child.finish(child.start(recipe, workdir), workdir=workdir)
    assert log_lines(workdir) == log_lines(whole)


def test_same_on_any_number_of_devices_and_hosts(recipe, tmp_path):
    """Sums are ordered differently, and Adam amplifies rounding: 1e-5 at first, 2e-3 in the end."""
    config = recipe.copy_and_resolve_references()
    config.update(batch_size=8, num_epochs=3)
    runs = {name: tmp_path / name for name in ("one", "eight", "hosts")}
    child.finish(child.start(config, runs["one"]), workdir=runs["one"])

    killed = child.start(config, runs["eight"], devices=2)  # a run may change its devices
    wait_for_checkpoint(runs["eight"], 1, killed)
    killed.kill()
    killed.join()
    child.finish(child.start(config, runs["eight"], devices=8), workdir=runs["eight"])
    assert "resuming after step" in said(runs["eight"])

    job = child.start_job(config, runs["hosts"], processes=2, devices=2)
    wait_for_checkpoint(runs["hosts"], 1, job[0])
    job[1].terminate()  # which stops all of them
    child.finish(*job, code=75, workdir=runs["hosts"])
    job = child.start_job(config, runs["hosts"], processes=2, devices=2)
    child.finish(*job, workdir=runs["hosts"])

    expected = log_lines(runs["one"])
    for name in ("eight", "hosts"):
        found = log_lines(runs[name])
        assert [(line["kind"], line["step"]) for line in found] == [
            (line["kind"], line["step"]) for line in expected
        ]
        assert found[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-5)
        for line, one in zip(found, expected, strict=True):
            for key in line.keys() - {"kind"}:
                # Rounding may flip a clip between two genres that are all but tied.
                clips = 8 if line["kind"] == "step" else 24
                flip = 1.5 / clips if key in ("top1", "f1", "f1_macro") else 0.0
                assert line[key] == pytest.approx(one[key], rel=2e-3, abs=flip), (name, line, one)
    assert len(list(runs["hosts"].glob("events.out.tfevents*"))) == 2  # process 0's, two starts


def test_a_job_ends_where_one_of_its_processes_is_killed(recipe, tmp_path):
    """Whichever it is, in one line, and the same command on both goes on."""
    config = recipe.copy_and_resolve_references()
    config.update(batch_size=8, num_epochs=1000, checkpoint_every_minutes=0.0)
    workdir = tmp_path / "run"
    for killed in (0, 1):
        job = child.start_job(config, workdir, processes=2, devices=1)
        wait_for_checkpoint(workdir, newest_checkpoint(workdir) + 2, job[0])
        began = time.monotonic()
        job[killed].kill()
        left = job[1 - killed]
        left.join()
        print(f"the other ended after {time.monotonic() - began:.1f} s")
        assert left.exitcode == 75, said(workdir)
        # Before it or after it a thread of JAX's may say that a socket was closed.
        text = Path(f"{workdir}.said/{1 - killed}").read_text()
        assert text.count("is gone; the same command on all of them goes on\n") == 1, text
    job = child.start_job(config, workdir, processes=2, devices=1)
    wait_for_checkpoint(workdir, newest_checkpoint(workdir) + 1, job[0])
    job[0].terminate()
    child.finish(*job, code=75, workdir=workdir)
    assert said(workdir).count("resuming after step") == 2
    assert "Traceback" not in said(workdir)
    steps = [line["step"] for line in log_lines(workdir, "step")]
    assert steps == [*range(1, newest_checkpoint(workdir) + 1)]


@pytest.mark.parametrize("change", ["renamed", "deleted"])
def test_a_workdir_that_goes_while_it_is_trained_in(prepared, tmp_path, change):
    workdir = tmp_path / "run"
    flags = [f"--config.data_dir={prepared.data_dir}", "--config.batch_size=8"]
    flags += ["--config.num_epochs=100000", "--config.checkpoint_every_minutes=0.0"]
    command = ["-m", "mgc_jax", "train", "--config=baseline_a_2d", *flags, f"--workdir={workdir}"]
    process = child.Python(*command)
    wait_for_checkpoint(workdir, 3, process.process)
    if change == "renamed":
        workdir.rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.rmtree(workdir, ignore_errors=True)
    done = process.finish()
    assert done.returncode == 1, done.stderr
    assert "was moved or deleted while it was trained in" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr, done.stderr


def test_an_end_after_a_failed_save_waits_for_no_one(tmp_path):
    """A thread of orbax may wait for minutes then, as this one does, which is called like them."""
    code = """
import atexit, threading
from mgc_jax.cli import exit_codes
from mgc_jax.errors import InputError

class Waiting(threading.Thread):
    __module__ = "orbax.checkpoint.future"
    def run(self):
        threading.Event().wait(60)

atexit.register(print, "an orderly end")
with exit_codes(75):
    Waiting().start()
    raise InputError("the folder is gone")
"""
    done = child.Python("-c", code, cwd=tmp_path).finish()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "error: the folder is gone"


def test_batch_must_divide(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    parallel.check_batch_size(32)
    with pytest.raises(InputError, match="=20 does not divide by 8 devices: use 16 or 24"):
        parallel.check_batch_size(20)
    with pytest.raises(InputError, match="use 8$"):
        parallel.check_batch_size(3)
    with pytest.raises(InputError, match=r"8 devices x 3 parts .*: use 24 or 48"):
        parallel.check_batch_size(40, parts=3)


@pytest.fixture
def poisoned(config, monkeypatch):
    """A run in which the loss of every clip of genre 0 is infinite; the steps that have one."""
    config.update(batch_size=2, num_epochs=1, balance_classes=True, checkpoint_every_minutes=0.0)
    weights = np.array([np.inf] + [1] * 7, np.float32)
    monkeypatch.setattr(loop, "class_weights", lambda labels, classes: weights)
    dataset = open_dataset(config, ("mel",))
    labels = dataset.splits["train"].labels
    order = np.random.default_rng([config.seed, 0]).permutation(24).reshape(12, 2)
    bad = [step for step, rows in enumerate(order) if 0 in labels["label"][rows]]
    return config, dataset, bad, labels["track_id"][order]


def test_not_finite_stops_before_anything_bad_is_saved(poisoned, tmp_path):
    config, dataset, bad, tracks = poisoned
    with pytest.raises(InputError, match=f"step {bad[0] + 1}: the loss is inf .*skip_nonfinite"):
        loop.train(Network.from_config(config, dataset.genres), tmp_path, dataset)
    written = json.loads((tmp_path / "nonfinite.json").read_text())
    assert written["step"] == bad[0] + 1 and written["loss"] == np.inf
    assert written["track_ids"] == sorted(set(tracks[bad[0]].tolist()))
    assert written["learning_rate"] == pytest.approx(config.learning_rate)
    assert loop.load_progress(tmp_path).step <= bad[0]
    assert len(log_lines(tmp_path, "step")) == bad[0]


def test_not_finite_steps_can_be_skipped(poisoned, tmp_path):
    config, dataset, bad, _ = poisoned
    config.skip_nonfinite = True
    progress = loop.train(Network.from_config(config, dataset.genres), tmp_path, dataset)
    lines = log_lines(tmp_path, "step")
    assert [line["step"] - 1 for line in lines if line["loss"] is None] == bad
    assert progress.skipped == log_lines(tmp_path, "train")[0]["skipped"] == len(bad) > 0
    mean = np.mean([line["loss"] for line in lines if line["loss"] is not None])
    assert log_lines(tmp_path, "train")[0]["loss"] == pytest.approx(mean)
    state = restore(config, tmp_path)[0][0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_stops_early(config, tmp_path):
    config.update(num_epochs=40, early_stopping_epochs=1, learning_rate=1.0)
    progress = train(config, tmp_path)
    losses = [line["loss"] for line in log_lines(tmp_path, "validation")]
    worse = [i for i in range(1, len(losses)) if losses[i] >= min(losses[:i])]
    assert progress.epoch == len(losses) == worse[0] + 1
    before = Path(tmp_path / "metrics.jsonl").read_text()
    assert train(config, tmp_path) == progress
    assert Path(tmp_path / "metrics.jsonl").read_text() == before


def test_workdir_without_a_readable_checkpoint_is_an_error(whole, recipe, tmp_path):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints" / "last").rglob("_METADATA"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no checkpoint in .*last can be read"):
        restore(recipe, tmp_path)
