"""The commands, as a user types them."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import child
import numpy as np
import pytest
from child import ROOT, assert_one_error, call
from shared import training_flags
from sklearn import metrics as sk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgc_jax.models import MODELS


def call_afresh(module, *arguments, env=None):
    """Runs a command in a process that imports everything itself."""
    command = [sys.executable, "-m", f"mgc_jax.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(prepared, workdir, tmp_path_factory):
    """A finished run, from another current directory: workdir, flags and what it printed."""
    run = Path(shutil.copytree(workdir, tmp_path_factory.mktemp("a folder") / "run"))
    said = (workdir.parent / "said").read_text()
    return run, training_flags(prepared, run), said.replace(str(workdir), str(run))


def test_run_leaves_what_the_design_names(finished):
    workdir, _, said = finished
    for name in ("index.html", "metrics.json", "predictions.csv"):
        assert (workdir / "report" / name).stat().st_size > 500
    facts = json.loads((workdir / "report" / "run.json").read_text())
    assert facts["run"]["parameters"] == 661_058
    assert facts["run"]["flops_per_clip"] == pytest.approx(0.177e9, rel=0.02)  # 2.2 times forward
    for name in ("confusion_matrix", "training_curves", "reliability", "spectrograms"):
        assert (workdir / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((workdir / "config.json").read_text())["model"] == "baseline_a_2d"
    assert json.loads((workdir / "genres.json").read_text())[0] == "Electronic"
    assert "epoch 2/2" in said and "left" in said and "661,058 parameters" in said
    assert str(workdir / "report" / "index.html") in said
    assert "Traceback" not in said and "Warning" not in said


def test_predictions_give_the_metrics(finished):
    workdir, _, _ = finished
    scores = json.loads((workdir / "report" / "metrics.json").read_text())["clip"]
    with open(workdir / "report" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    genres = json.loads((workdir / "genres.json").read_text())
    labels, predicted = ([row[name] for row in rows] for name in ("label", "prediction"))
    assert len(rows) == scores["count"] == 24
    macro = {"labels": genres, "average": "macro", "zero_division": 0}
    assert scores["top1"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert scores["precision"] == pytest.approx(sk.precision_score(labels, predicted, **macro))
    assert scores["recall"] == pytest.approx(sk.recall_score(labels, predicted, **macro))
    confusion = sk.confusion_matrix(labels, predicted, labels=genres)
    assert scores["confusion_matrix"] == confusion.tolist()
    probabilities = np.array([[float(row[f"prob_{g}"]) for g in genres] for row in rows])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert [genres[i] for i in probabilities.argmax(axis=1)] == predicted


def test_same_command_again_says_complete(finished):
    workdir, flags, _ = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = call("main", *flags)
    assert again.returncode == 0
    assert "complete" in again.stderr and "top-1" in again.stderr
    assert (workdir / "metrics.jsonl").read_text() == before


def test_compiled_functions_are_kept_in_the_users_cache_alone(finished, corpus, tmp_path):
    """Compiled code is never read from beside a workdir, which may come from somebody else."""
    workdir, _, _ = finished
    song = next(corpus.rglob("*.mp3"))
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    done = call_afresh("predict", f"--workdir={workdir}", song, env=environment)
    done.check_returncode()
    assert (tmp_path / "mgc_jax" / "jax").is_dir()
    assert not (workdir.parent / "jax_cache").exists() and not (workdir / "jax_cache").exists()


def test_tensorboard_shows_scalars_and_pictures(finished):
    workdir, _, _ = finished
    events = EventAccumulator(str(workdir)).Reload()
    shown = set(events.Tags()["tensors"])
    assert {"train/loss", "train/top1", "validation/loss", "validation/f1"} < shown
    assert {"test/confusion_matrix", "test/spectrograms"} < shown
    picture = events.Tensors("test/confusion_matrix")[0].tensor_proto.string_val
    assert picture[2].startswith(b"\x89PNG")


def test_told_to_stop_then_finished_by_two_hosts(finished, tmp_path):
    """SIGTERM, exit code 75, and the same command on 2 processes of 2 devices: the same scores."""
    workdir, flags, _ = finished
    ours = tmp_path / "run"
    running = child.Python("-m", "mgc_jax.main", *flags, f"--workdir={ours}")
    while not (ours / "metrics.jsonl").exists() and running.process.is_alive():
        time.sleep(0.05)
    running.process.terminate()
    stopped = running.finish()
    said = stopped.stderr
    assert stopped.returncode == 75, said
    assert said.strip().endswith("of 6, which is saved; the same command goes on")

    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{child.free_port()}",
        "JAX_NUM_PROCESSES": "2",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    hosts = [
        child.Python(
            *("-m", "mgc_jax.main", *flags, f"--workdir={folder}", "--multihost"),
            env=environment | {"JAX_PROCESS_ID": str(i)},
        )
        for i, folder in enumerate((ours, tmp_path / "unused"))
    ]
    done = [host.finish() for host in hosts]
    outputs = [host.stderr for host in done]
    assert [host.returncode for host in done] == [0, 0], outputs
    assert "4 x cpu on 2 hosts" in outputs[0] and "resuming after step" in outputs[0]
    assert not (tmp_path / "unused").exists() and "epoch" not in outputs[1]
    for path in ("clip", "track"):
        one, two = (
            json.loads((w / "report" / "metrics.json").read_text())[path] for w in (workdir, ours)
        )
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)
        # Rounding may flip a clip between two genres that are all but tied.
        moved = np.abs(np.subtract(two["confusion_matrix"], one["confusion_matrix"])).sum()
        assert moved <= 2


def test_training_starts_from_another_run(finished, tmp_path):
    workdir, flags, _ = finished
    flags = [flag for flag in flags if not flag.startswith(("--workdir", "--config.num_epochs"))]
    done = call(
        "main",
        *flags,
        f"--workdir={tmp_path / 'a tuned run'}",
        "--config.num_epochs=1",
        f"--config.init_from={workdir}",
    )
    assert done.returncode == 0, done.stderr
    assert f"weights   {workdir}" in done.stderr
    tuned, fresh = ((w / "metrics.jsonl").read_text() for w in (tmp_path / "a tuned run", workdir))
    loss = json.loads(tuned.splitlines()[0])["loss"]
    assert loss < json.loads(fresh.splitlines()[0])["loss"] - 0.3


def test_models_command_prints_sizes():
    done = call("models", "baseline_a_2d", "baseline_b")
    assert done.returncode == 0, done.stderr
    assert "baseline_a_2d    661,058 parameters   0.081 GFLOP" in done.stdout
    assert "conv2" in done.stdout and "1,252,162" in done.stdout


def test_eval_mode_writes_the_same_report(finished):
    workdir, flags, _ = finished
    before = json.loads((workdir / "report" / "metrics.json").read_text())
    shutil.rmtree(workdir / "report")
    done = call("main", *flags, "--mode=eval")
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "report" / "metrics.json").read_text()) == before


@pytest.mark.parametrize(
    "wrong,says",
    [
        ("--config.no_such_key=1", "no_such_key"),
        ("--config.learning_rate=fast", "fast"),
        ("--config=configs/no_such_config.py", "no_such_config.py"),
        ("--config.learning_rate=0.5", "learning_rate is 0.001 there, 0.5 now"),
        ("--config.data_dir=/no/such/folder", "no TFRecords in /no/such/folder"),
        ("--config.model=resnet", "'resnet' is unknown: one of baseline_a_1d"),
        ("--no_such_flag", "no_such_flag"),
        ("stray", "unexpected argument 'stray'"),
    ],
)
def test_bad_use_of_main_is_one_line(finished, wrong, says):
    _, flags, _ = finished
    done = call("main", *flags, wrong)
    assert_one_error(done, says)


def test_unwritable_workdir_is_one_line(prepared, tmp_path):
    (tmp_path / "file").write_text("in the way")  # root may write into any folder, but not here
    done = call("main", *training_flags(prepared, tmp_path / "file" / "run"))
    assert_one_error(done, "error: cannot write to --workdir=")


def test_predict_table(finished, corpus):
    workdir, _, _ = finished
    path = sorted(corpus.rglob("*.mp3"))[0]
    done = call("predict", f"--workdir={workdir}", path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(path) and len(lines) == 4
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True)


def test_predict_agrees_with_the_evaluation(finished, corpus, tmp_path):
    """A folder of test files: JSON, track by track the mean of the clips in predictions.csv."""
    workdir, _, _ = finished
    clips = {}
    with open(workdir / "report" / "predictions.csv", newline="") as file:
        for row in csv.DictReader(file):
            probabilities = {k[5:]: float(v) for k, v in row.items() if k.startswith("prob_")}
            clips.setdefault(int(row["track_id"]), []).append(probabilities)
    for track_id in clips:
        (tmp_path / f"{track_id:06d}.mp3").symlink_to(next(corpus.rglob(f"{track_id:06d}.mp3")))
    (tmp_path / "notes.txt").write_text("not audio, and not asked for")
    done = call("predict", f"--workdir={workdir}", tmp_path, "--format=json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [int(Path(f["path"]).stem) for f in found] == sorted(clips)
    for f in found:
        log_probs = np.log([list(c.values()) for c in clips[int(Path(f["path"]).stem)]]).mean(
            axis=0
        )
        expected = np.exp(log_probs) / np.exp(log_probs).sum()
        for genre, probability in zip(clips[int(Path(f["path"]).stem)][0], expected, strict=True):
            assert f["probabilities"][genre] == pytest.approx(probability, abs=1e-4)
        assert f["genre"] == max(f["probabilities"], key=f["probabilities"].get)


def test_predict_goes_on_after_a_bad_file(finished, corpus, tmp_path):
    workdir, _, _ = finished
    (tmp_path / "bad.mp3").write_text("text")
    good = next(corpus.rglob("*.mp3"))
    paths = (tmp_path / "bad.mp3", tmp_path / "gone.mp3", good)
    done = call("predict", f"--workdir={workdir}", "--format=json", *paths)
    assert done.returncode == 1
    bad, gone, ranked = map(json.loads, done.stdout.splitlines())
    assert gone == {"path": str(paths[1]), "error": "no such file"}
    assert bad["path"].endswith("bad.mp3") and "cannot be decoded" in bad["error"]
    assert ranked["path"] == str(good) and len(ranked["probabilities"]) == 8
    assert "bad.mp3: cannot be decoded" in done.stderr


def test_predict_bad_use(finished, tmp_path):
    workdir, _, _ = finished
    for arguments, says in [
        ((f"--workdir={workdir}", tmp_path), "no audio files"),
        ((f"--workdir={tmp_path}", __file__), "holds no trained run"),
        (("x.mp3",), "--workdir=... is missing"),
    ]:
        done = call("predict", *arguments)
        assert_one_error(done, says)


@pytest.mark.parametrize("module", ["main", "prepare", "predict", "app", "export"])
def test_help_shows_how_to_use_it(module):
    done = call_afresh(module, "--help")
    assert f"python -m mgc_jax.{module} --" in done.stdout and done.returncode == 0
    assert "Traceback" not in done.stderr


def test_predict_imports_no_tensorflow(finished, corpus):
    """Nor does the step, nor anything else that runs on an accelerator machine."""
    workdir, _, _ = finished
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from mgc_jax import models, parallel\n"
        "from mgc_jax.data import features\n"
        "from mgc_jax.results import metrics\n"
        "from mgc_jax.training import augment, step\n"
        "import mgc_jax\n"
        "print(len(mgc_jax.load(sys.argv[1]).predict(sys.argv[2])[0].ranking))"
    )
    arguments = [sys.executable, "-c", code, str(workdir), str(next(corpus.rglob("*.mp3")))]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "8", done.stderr


def test_every_network_has_a_config_and_every_key_is_read():
    from mgc_jax.configs import default
    from mgc_jax.data.features import FEATURES

    for name in MODELS:
        assert (ROOT / "configs" / f"{name}.py").exists()
    code = "\n".join(path.read_text() for path in (ROOT / "mgc_jax").rglob("*.py"))
    config = default.get_config()
    for part in (config, config.demo, config.optimizer, config.probe):
        for key in part:
            if key in FEATURES:  # whose class reads the part of its name
                continue
            read = (f'config["{key}"]', *(f"{name}.{key}" for name in ("config", ".demo", "o")))
            assert any(text in code for text in (*read, f".optimizer.{key}", f".probe.{key}")), key


def launch_tpu(tmp_path, *arguments, exists=True):
    """Runs `launch.sh tpu` with a stand-in for gcloud that notes how it is called."""
    tool = tmp_path / "gcloud"
    tool.write_text(
        f"""#!/usr/bin/env bash
printf '%s\\0' "$@" >> {tmp_path}/calls && echo >> {tmp_path}/calls
case $4 in
  describe) {str(exists).lower()} ;;
  scp) cp "$5" {tmp_path}/archive ;;
esac
"""
    )
    tool.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}  # no HOME either
    command = ["./launch.sh", "tpu", "pod", "--zone=z", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else ""
    return done.stdout, [call.split("\0")[:-1] for call in calls.splitlines()]


def test_launch_tpu_runs_the_command_on_every_worker(tmp_path):
    _, calls = launch_tpu(tmp_path, "--type=v4-32", "--", "--workdir=/mnt/r", "a b", exists=False)
    assert [call[:4] for call in calls] == [
        ["compute", "tpus", "tpu-vm", name] for name in ("describe", "create", "scp", "ssh")
    ]
    _, create, copy, run = calls
    assert {"pod", "--zone=z", "--accelerator-type=v4-32"} < set(create)
    assert {"pod:mgc_jax.tar.gz", "--worker=all", "--zone=z"} < set(copy)
    assert {"pod", "--worker=all", "--zone=z"} < set(run)
    # The last word is what each worker's shell runs: unpack, install, start.
    listed = subprocess.run(
        ["tar", "-tzf", tmp_path / "archive"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"./launch.sh", "./setup.cfg", "./mgc_jax/main.py", "./configs/demo.py"} < set(listed)
    assert not any(name.startswith(("./.venv", "./.git/", "./runs", "./data")) for name in listed)
    folder = tmp_path / "worker"
    folder.mkdir()
    shutil.copy(tmp_path / "archive", folder / "mgc_jax.tar.gz")
    remote = run[-1].removeprefix("--command=").replace("./launch.sh", "printf '%s|' $EXTRAS")
    remote = remote.replace("EXTRAS=tpu", "export EXTRAS=tpu;")
    done = subprocess.run(["bash", "-ec", remote], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "tpu|--multihost|--workdir=/mnt/r|a b|", done.stderr


def test_launch_tpu_takes_what_is_there(tmp_path):
    _, calls = launch_tpu(tmp_path, "--type=v4-32")
    assert [call[3] for call in calls] == ["describe", "scp", "ssh"]


def test_launch_tpu_dry_run_only_prints(tmp_path):
    arguments = ("--type", "v4-32", "--dry_run", "--", "--workdir=/mnt/r", "a b")
    printed, calls = launch_tpu(tmp_path, *arguments)
    assert not calls
    words = [line.split()[:5] for line in printed.splitlines()]
    assert [line[4] for line in words] == ["create", "scp", "ssh"]
    # Pasted into a shell, the line is the call that is made without --dry_run.
    pasted = shlex.split(printed.splitlines()[2])
    assert pasted[4:7] == ["ssh", "pod", "--worker=all"] and "--zone=z" in pasted
    assert pasted[-1].endswith("./launch.sh --multihost --workdir=/mnt/r a\\ b")
    assert not (ROOT / "mgc_jax.tar.gz").exists()
