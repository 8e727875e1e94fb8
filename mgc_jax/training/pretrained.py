"""Other people's weights, and other runs', as the start of a training.

A `.safetensors` file holds a PyTorch state dict, such as that of torchvision's `densenet121`. A
run's workdir counts as the state dict that its best checkpoint would be. Tensors go by their names:

| ours | PyTorch's | layout |
|---|---|---|
| params, LAYER/kernel of a 2-D convolution | LAYER.weight | [O, I, H, W] to [H, W, I, O] |
| params, LAYER/kernel of a 1-D convolution | LAYER.weight | [O, I, W] to [W, I, O] |
| params, LAYER/kernel of a dense layer | LAYER.weight | [O, I] to [I, O] |
| params, LAYER/scale of a norm | LAYER.weight | |
| params, LAYER/bias | LAYER.bias | |
| batch_stats, LAYER/mean | LAYER.running_mean | |
| batch_stats, LAYER/var | LAYER.running_var | |

LAYER is our path with dots for slashes:

| network | layers |
|---|---|
| baseline_a_1d | trunk.conv{0..4}, trunk.norm{0..4}, head.dense0, head.dense1, head.classifier |
| baseline_a_2d, baseline_b | conv{0..2}, norm{0..2}, head.dense0, head.dense1, head.classifier |
| densenet | torchvision's: features.conv0, features.norm0, classifier, and for example \
features.denseblock1.denselayer1.conv1 where ours is features/denseblock1_denselayer1/conv1 |
| fusionnet | densenet.* as densenet's features.*, trunk.* as baseline_a_1d's, classifier |
| musicnn | trunk.* as the table in models/musicnn.py names them, classifier |

FusionNet also takes a DenseNet's file or run: its branch `densenet` is filled, the rest is fresh.

Accepted besides: a DenseNet's `conv0` over three channels (their sum is what it computes on a grey
picture); `conv0` of baseline_a_2d and baseline_b over a one-channel picture, [O, 1, frames, mels];
torchvision's old spelling `denselayer1.norm.1`; `module.` before all names. `num_batches_tracked`
has no counterpart. Of a run's classifier, rows of genres with the same name are taken; a file's
classifier of another number of classes stays fresh; any other difference is an error.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mgc_jax import console
from mgc_jax.errors import InputError
from mgc_jax.training.network import load_run

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_OLD_SPELLING = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def load_weights(
    path: str | os.PathLike,
    model_name: str,
    variables: Mapping,
    genres: Sequence[str] | None = None,
) -> dict:
    """Puts stored weights into a network's fresh variables.

    Args:
        path: a `.safetensors` file with a PyTorch state dict, or the workdir of another run.
        model_name: a key of `mgc_jax.models.MODELS`.
        variables: `params` and `batch_stats` as initialised, on whatever devices.
        genres: in label order; of a run's classifier, rows of the same names are taken.

    Returns:
        Variables of the same tree, shapes and dtypes; new leaves lie on the default device.

    Raises:
        InputError: the file or run does not hold exactly this network's weights.
    """
    path = Path(path)
    theirs = None
    if path.is_dir():
        tensors, theirs = _read_run(path, model_name)
    else:
        tensors = _read_file(path)
    fresh = flatten_dict(dict(variables))
    names = {torch_name(key): key for key in fresh}
    if model_name == "fusionnet" and any(name.startswith("features.") for name in tensors):
        outcome = _select_densenet_branch(tensors, names)
    elif theirs and genres and list(theirs) != list(genres):
        outcome = _match_genres(tensors, names, fresh, theirs, genres)
    else:
        outcome = _select_classifier(tensors, names, fresh)
    shapes = {name: _torch_shape(fresh[key].shape) for name, key in names.items()}
    _adapt_first_convolution(tensors, shapes)
    if problem := _first_problem(tensors, shapes):
        raise InputError(
            f"{path} does not fit {model_name}: {problem} (mgc_jax/training/pretrained.py lists "
            "the names)"
        )
    loaded = {
        key: jnp.asarray(_to_ours(tensors[name]), fresh[key].dtype) for name, key in names.items()
    }
    console.log.info("weights   %s: %s", path, outcome)
    return unflatten_dict(fresh | loaded)


def _read_file(path: Path) -> dict[str, np.ndarray]:
    """A file's state dict, in torchvision's present spelling."""
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    try:
        stored = load_file(path)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} holds numbers of a type that NumPy has not ({error}): write it in float32"
        ) from error
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a safetensors file ({error}): write a PyTorch state dict as one with "
            "safetensors.torch.save_file"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if stored and all(name.startswith("module.") for name in stored):
        # As torch.nn.DataParallel names them.
        stored = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
    tensors = {}
    for name, tensor in stored.items():
        if name.endswith("num_batches_tracked"):
            continue
        if not jnp.issubdtype(tensor.dtype, jnp.floating):
            raise InputError(f"{path}: tensor {name!r} is {tensor.dtype}, expected floats")
        renamed = _OLD_SPELLING.sub(r"\1\2", name)
        # Of a tensor in both spellings, one is left over and reported as surplus.
        tensors[name if renamed in stored else renamed] = tensor
    return tensors


def _read_run(workdir: Path, model_name: str) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """The best checkpoint of a run as a state dict, so that one code checks both sources, and the
    run's genres."""
    run = load_run(workdir)
    stored = run.network.config.model
    if stored != model_name and (stored, model_name) != ("densenet", "fusionnet"):
        raise InputError(
            f"{workdir} holds a run of {stored}, whose weights do not fit {model_name}"
        )
    leaves = flatten_dict(run.variables).items()
    tensors = {torch_name(key): to_torch(np.asarray(leaf)) for key, leaf in leaves}
    return tensors, run.network.genres


def _select_densenet_branch(tensors: dict, names: dict) -> str:
    """Reduces both lists to a DenseNet's layers, under a DenseNet's names; says so."""
    branch = {name: key for name, key in names.items() if name.startswith("densenet.")}
    names.clear()
    names.update({name.replace("densenet", "features", 1): key for name, key in branch.items()})
    for name in ("classifier.weight", "classifier.bias"):
        tensors.pop(name, None)
    return "the DenseNet branch; the rest is fresh"


def _match_genres(
    tensors: dict, names: Mapping, fresh: Mapping, theirs: Sequence[str], ours: Sequence[str]
) -> str:
    """Gives the classifier the rows of the genres that both have, the rest stay fresh; says so."""
    weight = next(name for name in names if name.endswith("classifier.weight"))
    for name in (weight, weight.removesuffix("weight") + "bias"):
        if name not in tensors or len(tensors[name]) != len(theirs):
            continue  # left for the checks to find
        rows = np.array(to_torch(np.asarray(fresh[names[name]])))
        for row, genre in enumerate(ours):
            if genre in theirs:
                rows[row] = tensors[name][list(theirs).index(genre)]
        tensors[name] = rows
    shared = [genre for genre in ours if genre in theirs]
    others = [genre for genre in ours if genre not in theirs]
    kept = f"of {', '.join(shared)}" if shared else "of no genre, as none has the same name"
    return f"everything, the classifier {kept}" + (
        f"; fresh: {', '.join(others)}" if others else ""
    )


def _select_classifier(tensors: dict, names: dict, fresh: Mapping) -> str:
    """Takes a classifier of another number of classes off both lists; says what becomes of it.

    Only the number of classes may differ; anything else odd is left for the checks to find.
    """
    weight = next(name for name in names if name.endswith("classifier.weight"))
    bias = weight.removesuffix("weight") + "bias"
    width, classes = fresh[names[weight]].shape
    shapes = [np.shape(tensors.get(name)) for name in (weight, bias)]
    found = max(shapes[1], default=classes)
    if found == classes or shapes != [(found, width), (found,)]:
        return f"everything, with the classifier of {classes} classes"
    for name in (weight, bias):
        del tensors[name], names[name]
    return f"everything but the classifier, fresh: {found} classes there, {classes} here"


def _adapt_first_convolution(tensors: dict, shapes: Mapping[str, tuple]) -> None:
    """Replaces a first convolution over another kind of picture, where that makes it fit."""
    for name in shapes.keys() & tensors.keys():
        tensor = tensors[name]
        channels = tensor.shape[1] if tensor.ndim == 4 else None
        if name in ("features.conv0.weight", "densenet.conv0.weight") and channels == 3:
            tensor = tensor.sum(axis=1, keepdims=True, dtype=np.float32)
        elif name == "conv0.weight" and channels == 1:
            tensor = tensor[:, 0].swapaxes(1, 2)
        if tensor.shape == shapes[name]:
            tensors[name] = tensor


def _first_problem(tensors: Mapping, shapes: Mapping[str, tuple]) -> str | None:
    """What keeps tensors from having exactly these names and shapes.

    The first in alphabetical order, but the classifier last: it says least about what is wrong.
    """
    for name in sorted(shapes, key=lambda name: ("classifier" in name, name)):
        expected = list(shapes[name])
        if name not in tensors:
            return f"tensor {name!r} {expected} is missing"
        if (found := list(tensors[name].shape)) != expected:
            return f"tensor {name!r} is {found}, expected {expected}"
    for name in sorted(tensors.keys() - shapes.keys()):
        return f"tensor {name!r} {list(tensors[name].shape)} is unknown"
    return None


def torch_name(key: tuple[str, ...]) -> str:
    """PyTorch's name of one of our leaves, `(collection, layers..., leaf)`."""
    *layers, leaf = key[1:]
    return ".".join([*layers, _LEAVES.get(leaf, leaf)]).replace("_denselayer", ".denselayer")


def _torch_shape(ours: tuple[int, ...]) -> tuple[int, ...]:
    return (*ours[-2:][::-1], *ours[:-2])


def to_torch(tensor: np.ndarray) -> np.ndarray:
    """`[..., I, O]` to `[O, I, ...]`; vectors as they are."""
    return np.moveaxis(tensor, (-1, -2), (0, 1)) if tensor.ndim > 1 else tensor


def _to_ours(tensor: np.ndarray) -> np.ndarray:
    """`[O, I, ...]` to `[..., I, O]`; vectors as they are."""
    return np.moveaxis(tensor, (0, 1), (-1, -2)) if tensor.ndim > 1 else tensor
