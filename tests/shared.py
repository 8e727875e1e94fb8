"""A small corpus of synthesised MP3s and its TFRecords, made once a session."""

import fcntl
import functools
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import child
import jax
import numpy as np
import pytest
import soundfile
from child import ROOT, call
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from mgc_jax import parallel
from mgc_jax.configs import default
from mgc_jax.data import preparation
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.demo.corpus import write_corpus
from mgc_jax.files import user_cache
from mgc_jax.models import inputs_of
from mgc_jax.training import loop
from mgc_jax.training.network import Network
from mgc_jax.training.pretrained import to_torch, torch_name
from mgc_jax.training.public_weights import PUBLIC_WEIGHTS

# Compiled functions are kept from run to run, as users' are.
parallel.use_compilation_cache()

# For what a test computes once: fewer of the passes that take long and make code fast. At level 0 a
# CPU finds NaN for gradients of max pools (jaxlib 0.10.2).
once = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})


def pytest_sessionstart():
    child.import_everything()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Calls a function with an empty folder of a name, in the first process that asks for it.

    The suite's other processes wait for its end. What is in the folder is not to be written to.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def folder_of(name: str, make: Callable[[Path], None]) -> Path:
        folder, made = root / name, root / f"{name}.made"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def corpus(made_once) -> Path:
    """24 tracks in FMA's layout, one a genre and split; kept for as long as nothing changes them.

    Not to be written to.
    """
    sources = sorted((ROOT / "mgc_jax" / "demo").glob("*.py"))
    made_by = zlib.crc32(b"".join(source.read_bytes() for source in sources))
    root = user_cache("tests") / f"corpus-{made_by:08x}"
    if not (root / "fma_metadata" / "tracks.csv").exists():
        made_once("corpus", lambda _: write_corpus(root, tracks=24, seed=1, workers=2))
    return root


@pytest.fixture(scope="session")
def prepared(corpus, made_once):
    """The config of the prepared corpus, with both features."""
    config = default.get_config()
    config.model = "baseline_a_2d"

    def prepare(folder):
        config.data_dir = str(folder)
        preparation.prepare(config, ("mel", "waveform"), audio_dir=corpus / "fma_small", workers=2)

    config.data_dir = str(made_once("tfrecords", prepare))
    return config


@pytest.fixture
def config(prepared):
    """A copy of the prepared corpus's config that a test may change; trains in seconds."""
    config = prepared.copy_and_resolve_references()
    config.batch_size = 8
    config.num_epochs = 2
    config.learning_rate = 1e-3
    return config


@pytest.fixture(scope="session")
def dataset(prepared):
    """The prepared corpus, opened with both features."""
    return open_dataset(prepared, ("mel", "waveform"))


def train(config, workdir: Path) -> loop.Progress:
    """Trains the network of a config on its records, without a report."""
    dataset = open_dataset(config, inputs_of(config.model))
    return loop.train(Network.from_config(config, dataset.genres), workdir, dataset)


@pytest.fixture
def own_data(config, tmp_path):
    """The config with a copy of its data that a test may damage."""
    shutil.copytree(config.data_dir, tmp_path / "tfrecords")
    config.data_dir = str(tmp_path / "tfrecords")
    return config


def write_audio(path: Path, seconds: float, rate: int = 44100, channels: int = 2, seed: int = 0):
    """Writes decaying noise bursts over a chord: broadband, with silence and transients."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * rate)) / rate
    chord = sum(np.sin(2 * np.pi * f * t) for f in (110, 277.2, 659.3)) / 6
    bursts = rng.normal(size=(len(t), channels)) * np.exp(-8 * (t % 0.5))[:, None] * 0.2
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (chord[:, None] + bursts).astype(np.float32), rate)


def training_flags(config, workdir) -> tuple[str, ...]:
    """For six steps, on the data of a config."""
    return (
        f"--config={ROOT}/configs/baseline_a_2d.py",
        f"--config.data_dir={config.data_dir}",
        f"--workdir={workdir}",
        "--config.batch_size=8",
        "--config.num_epochs=2",
        "--config.learning_rate=1e-3",
    )


@pytest.fixture(scope="session")
def workdir(prepared, made_once) -> Path:
    """A trained run of Baseline A (2D); beside it, in `said`, what the command printed."""

    def train(folder):
        done = call("main", *training_flags(prepared, folder / "run"), cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / "said").write_text(done.stderr)

    return made_once("runs", train) / "run"


def random_musicnn(cache: Path) -> None:
    """Writes random numbers into a cache, as if they were all public weights; 5 tags."""
    rng = np.random.default_rng(0)
    tags = ["rock", "Hip-Hop", "female vocals", "60s", "jazz"]
    config = default.get_config()
    config.model = "musicnn"
    leaves = flatten_dict(Network.from_config(config, tags).shapes)
    for name in PUBLIC_WEIGHTS:
        tensors = {}
        for key, leaf in leaves.items():
            scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if len(leaf.shape) > 1 else 0.3
            drawn = rng.normal(0, scale, leaf.shape)
            if key[-1] in ("var", "scale"):
                drawn = rng.uniform(0.5, 1.5, leaf.shape)
            tensors[torch_name(key)] = np.ascontiguousarray(to_torch(drawn.astype(np.float32)))
        path = cache / "mgc_jax" / "weights" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, {"tags": json.dumps(tags)})


@pytest.fixture(scope="module")
def public_cache(tmp_path_factory):
    """A cache that holds random numbers for public weights, while a module's tests run."""
    cache = tmp_path_factory.mktemp("cache")
    random_musicnn(cache)
    with pytest.MonkeyPatch.context() as patch:
        # For JAX, what was compiled with another folder for it is something else.
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(user_cache("jax")))
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield cache
