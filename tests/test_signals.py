"""Requests to stop, at any moment of any command."""

import os
import signal
import subprocess
import sys
import time

import pytest
from child import ROOT
from shared import write_audio

PREPARE = ("prepare", "--config=baseline_a_2d", "--config.dataset=audio_folder")


def start(*command, cwd=ROOT):
    """A process in a group of its own, as a terminal starts them."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process, code):
    """What a process said, once it has ended; a traceback is never part of it."""
    said = process.communicate()[0]
    assert process.returncode == code, said
    assert "Traceback" not in said and "Error" not in said and "Exception" not in said, said
    return said


def start_python(code):
    """A small program that listens, and says when it does."""
    head = (
        "import gc, os, signal, sys, time\nfrom mgc_jax import signals\nsignals.PATIENCE = 1.0\n"
        "signals.listen(75)\nprint('listening', flush=True)\n"
    )
    process = start("-c", head + code)
    assert process.stdout.readline() == "listening\n"
    return process


def test_no_request_is_lost_where_exceptions_are_swallowed():
    """As JAX does with what comes up while it is called back by the garbage collector."""
    code = (
        "def callback(*_):\n"
        "    try:\n        sum(range(3000))\n    except BaseException:\n        pass\n"
        "gc.callbacks.append(callback)\n"
        "while not signals.stop_requested():\n    [[] for _ in range(2000)]\n"
        "sys.exit(3)\n"
    )
    processes = [start_python(code) for _ in range(8)]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        ended(process, 3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_work_that_does_not_look_is_ended(number):
    process = start_python("time.sleep(1000)")
    process.send_signal(number)
    assert "stopped: what it was at did not end within 1 s" in ended(process, 75)


def test_work_that_does_not_look_is_ended_where_nobody_listens():
    process = start_python("time.sleep(1000)")
    process.stdout.close()
    process.terminate()
    assert process.wait() == 75


def test_held_work_is_ended_by_a_second_request_alone():
    process = start_python("signals.hold()\ntime.sleep(1000)")
    for _ in range(2):  # both at once, as launchers may send it to a group and to its leader
        process.send_signal(signal.SIGTERM)
    time.sleep(2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert "stopped at once" in ended(process, 75)


def test_work_that_looks_stops():
    code = (
        "from mgc_jax.errors import Interrupted\n"
        "try:\n    while True:\n        signals.check()\nexcept Interrupted:\n    sys.exit(4)\n"
    )
    process = start_python(code)
    process.send_signal(signal.SIGINT)
    ended(process, 4)


def wait_for(process, condition):
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_while_the_demo_is_synthesised(tmp_path):
    """SIGTERM to the whole group, as schedulers do: workers and all; then no process is left."""
    flags = ("--config=demo", "--config.data_dir=records", "--workdir=run")
    process = start("-m", "mgc_jax", "train", *flags, cwd=tmp_path)
    wait_for(process, lambda: list(tmp_path.rglob("*.part")))
    os.killpg(process.pid, signal.SIGTERM)
    assert "the same command goes on" in ended(process, 75)
    assert not (tmp_path / "run").exists()
    while group_exists(process.pid):  # a worker ends once it notices that it is alone
        time.sleep(0.05)


def group_exists(number):
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


def test_while_audio_is_decoded(tmp_path):
    """Ctrl-C, which the terminal sends to the workers too; then the same command goes on."""
    for split in ("train", "validation", "test"):
        for genre in ("Folk", "Rock"):
            seed = hash((split, genre)) % 1000
            write_audio(tmp_path / "music" / split / genre / "a.wav", 5, 16000, 1, seed)
    command = ("-m", "mgc_jax", *PREPARE, "--audio_dir=music", "--data_dir=records")
    process = start(*command, "--workers=1", cwd=tmp_path)
    records = tmp_path / "records"
    wait_for(process, lambda: list(records.rglob("clips.incomplete/*")))
    os.killpg(process.pid, signal.SIGINT)
    said = ended(process, 75)
    assert said.strip().endswith("stopped; the same command goes on")
    assert not list(records.rglob("dataset_info.json"))


def test_prediction_ends_with_130(workdir, tmp_path):
    write_audio(tmp_path / "0.wav", 3600, 8000, 1)
    for number in range(1, 50):
        os.link(tmp_path / "0.wav", tmp_path / f"{number}.wav")
    process = start("-m", "mgc_jax.predict", f"--workdir={workdir}", tmp_path)
    process.stdout.readline()  # the first answer
    os.killpg(process.pid, signal.SIGINT)
    ended(process, 130)


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.4])
def test_ctrl_c_while_modules_load_shows_no_traceback(seconds):
    process = start("-m", "mgc_jax.predict", "--help")
    wait_for(process, lambda: "mgc_jax" in open(f"/proc/{process.pid}/cmdline").read())
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate()[0]
