"""The soak's own parts, in small: that it is quiet about what holds, and sees what does not."""

import random
import runpy
import shutil
from types import SimpleNamespace

import pytest
from child import ROOT

from mgc_jax import console
from mgc_jax.results import files
from mgc_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def soak():
    return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "soak.py")))


@pytest.fixture
def doors(soak, workdir, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(console.log, "handlers", [])
    shutil.copytree(workdir, tmp_path / "base" / "run")
    shutil.copytree(prepared.data_dir, tmp_path / "base" / "records")
    return soak._Doors(tmp_path / "base")


def test_flips_are_noticed_or_change_nothing(doors):
    found = {seed: doors.flip(random.Random(seed)) for seed in range(25)}
    assert not any(found.values()), found


def test_another_result_without_a_word_is_seen(doors, monkeypatch):
    config = files.read_config(doors.run)
    files.write_config(doors.run, config | {"mel": config["mel"] | {"top_db": 81.0}})
    answers = doors.readers[""][0]
    assert not doors._read(answers)  # it is refused
    monkeypatch.setattr(Checkpoints, "_check_proof", lambda *_: None)
    assert doors._read(answers) == "answers: another result without a word"
    monkeypatch.setattr(files, "read_json", lambda *_, **__: 1 / 0)
    assert doors._read(answers).startswith("answers: ZeroDivisionError")


def test_mutations_depend_on_their_seed_alone(soak):
    whole = bytes(range(256)) * 50
    made = [soak._mutated(whole, random.Random(seed)) for seed in (1, 1, 2, 3, 4, 5)]
    assert made[0] == made[1] and len(set(made)) == 5 and whole not in made


def test_complaints(soak):
    said = "12:00:00 fine\nerror: no such file"
    assert not soak._complaint(said, 1, {0, 1})
    assert soak._complaint(said, -11, {0, 1}).startswith("exit code -11")
    assert soak._complaint("Traceback (most recent call last)\nx", 1, {1}) == "a traceback: x"
