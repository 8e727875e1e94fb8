"""The package where users have it: a clone, an editable install, another clone, a wheel alone."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from child import assert_one_error

ROOT = Path(__file__).parents[1]
COPIED = ("mgc_jax", "configs", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
OWN_CONFIG = """
from configs import default

def get_config():
    config = default.get_config()
    config.model = "baseline_b"
    return config
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the tracked files, with a config of the user's own."""
    folder = tmp_path_factory.mktemp("clone")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            # mgc_jax/configs is a link to ../configs, and stays one.
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(source, folder)
    (folder / "mine.py").write_text(OWN_CONFIG)
    return folder


@pytest.fixture(scope="module")
def environments(clone, tmp_path_factory) -> dict[str, Path]:
    """Pythons with the package installed from a wheel, and as an editable copy of a clone.

    Other packages come from the environment of the tests.
    """
    folder = tmp_path_factory.mktemp("environments")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
        + ["--no-index", "-w", folder, clone],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(clone / "build", ignore_errors=True)
    pythons = {}
    for name, what in (("wheel", [wheel]), ("editable", ["--no-build-isolation", "-e", clone])):
        venv.create(folder / name, symlinks=True)
        pythons[name] = folder / name / "bin" / "python"
        site = next((folder / name / "lib").glob("python*/site-packages"))
        theirs = [path for path in sys.path if path.endswith("site-packages")]
        # Without their .pth files, one of which is our own editable install.
        (site / "others.pth").write_text("\n".join(theirs))
        subprocess.run(
            [pythons[name], "-m", "pip", "install", "-q", "--no-deps", "--no-index", *what],
            check=True,
            capture_output=True,
        )
    return pythons


def run(python, *arguments, cwd) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def place_of(python, cwd) -> Path:
    code = "import mgc_jax, mgc_jax.configs.default as d; print(mgc_jax.__file__); d.get_config()"
    done = run(python, "-c", code, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).parents[1].resolve()


def assert_config_is_read(python, config, cwd) -> None:
    """That it is found and run; a key that none has is named then, before anything slow."""
    arguments = (f"--config={config}", "--config.no_such_key=1")
    done = run(python, "-m", "mgc_jax.prepare", *arguments, cwd=cwd)
    assert done.returncode == 1
    assert done.stderr.startswith("error: no such config key: no_such_key"), done.stderr


def assert_commands_work(python, cwd) -> None:
    """The list, a help, a built-in config by its name, and one that does not exist."""
    listed = run(python, "-m", "mgc_jax", cwd=cwd)
    assert listed.returncode == 0 and "prepare" in listed.stdout and "models" in listed.stdout
    helped = run(python, "-m", "mgc_jax", "prepare", "--help", cwd=cwd)
    assert helped.returncode == 0 and "--audio_dir" in helped.stdout
    same = run(python, "-m", "mgc_jax.prepare", "--help", cwd=cwd)
    assert same.stdout == helped.stdout
    assert_config_is_read(python, "densenet", cwd)
    missing = run(python, "-m", "mgc_jax.main", "--config=densent", cwd=cwd)
    assert missing.returncode == 1 and "did you mean 'densenet'?" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1


def test_clone_without_an_install(clone):
    assert place_of(sys.executable, clone) == clone.resolve()
    assert_commands_work(sys.executable, clone)
    # A config of the user's own, as those before version 0.2 begin.
    assert_config_is_read(sys.executable, "mine.py", clone)


def test_editable_install(environments, clone, tmp_path):
    python = environments["editable"]
    assert place_of(python, tmp_path) == clone.resolve()
    assert_commands_work(python, tmp_path)
    (tmp_path / "mine.py").write_text(OWN_CONFIG)
    assert_config_is_read(python, "mine.py", tmp_path)


def test_another_clone_with_the_same_environment(environments, clone, tmp_path):
    other = shutil.copytree(clone, tmp_path / "other", symlinks=True)
    assert place_of(environments["editable"], other) == other.resolve()
    assert_commands_work(environments["editable"], other)


def test_wheel_alone(environments, tmp_path):
    python = environments["wheel"]
    place = place_of(python, tmp_path)
    assert place.name == "site-packages" and place.is_relative_to(python.parents[1].resolve())
    assert not (place / "configs").exists()  # a name that any project may have
    assert (place / "mgc_jax" / "py.typed").exists()
    assert_commands_work(python, tmp_path)
    script = subprocess.run(
        [python.parent / "mgc_jax"], cwd=tmp_path, capture_output=True, text=True
    )
    assert script.returncode == 0 and "usage: mgc_jax COMMAND" in script.stdout
    named = run(python, "-m", "mgc_jax", "prepare", "--config=densenet", cwd=tmp_path)
    assert_one_error(named, "fma_small needs --audio_dir")
    printed = run(python, "-m", "mgc_jax.models", "baseline_a_2d", cwd=tmp_path)
    assert "661,058 parameters" in printed.stdout, printed.stderr


def test_every_module_can_be_documented(clone):
    """As pydoc and documentation generators do it: all modules in one process."""
    code = (
        "import importlib, pkgutil, pydoc, mgc_jax\n"
        "for module in pkgutil.walk_packages(mgc_jax.__path__, 'mgc_jax.'):\n"
        "    pydoc.render_doc(importlib.import_module(module.name))\n"
    )
    done = run(sys.executable, "-c", code, cwd=clone)
    assert done.returncode == 0, done.stderr


def test_dockerfile_copies_what_there_is():
    """What its set-up needs is there, and not left out of the image."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    left_out = set((ROOT / ".dockerignore").read_text().splitlines())
    first, everything = copied[0] + copied[1], copied[2]
    assert everything == ["."] and "launch.sh" in first
    for name in [*first, "configs"]:
        assert (ROOT / name).exists(), name
        assert not left_out & {name, name.partition("/")[0]}, name
    assert {".git", ".venv", "tfrecords", "runs"} <= left_out
