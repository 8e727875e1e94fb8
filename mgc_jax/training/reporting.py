"""What a run's report is told: scores, examples of the network's input, data, cost and versions."""

import datetime
import functools
import hashlib
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import distributions, version
from pathlib import Path

import jax
import numpy as np
from matplotlib.axes import Axes

from mgc_jax import console, parallel
from mgc_jax.data.input_pipeline import ClipDataset, Split
from mgc_jax.data.tracks import read_paths, read_skipped
from mgc_jax.results import files, plots, report
from mgc_jax.results.metrics import SplitPredictions
from mgc_jax.training.augment import augmented_forms
from mgc_jax.training.network import Network, load_best
from mgc_jax.training.run_log import total_seconds

_PACKAGES = (
    "mgc_jax",
    "jax",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "soundfile",
    "soxr",
    "numpy",
)
_MOST_EXAMPLES = 24  # pictures of clips; with more of them, nobody looks at each


def report_run(
    network: Network,
    workdir: Path,
    dataset: ClipDataset,
    predictions: SplitPredictions,
    epoch: int,
    command: str,
) -> dict:
    """Scores the predictions of the test split, and writes `report/`.

    Args:
        network: of the run.
        workdir: of the run.
        dataset: that the network was trained on.
        predictions: of the test split, clip by clip.
        epoch: whose weights predicted.
        command: that made the run.

    Returns:
        What `metrics.json` holds.
    """
    paths = read_paths(dataset.path)
    scores = files.write_evaluation(workdir, predictions, dataset.genres, epoch, paths)
    # FMA's tracks are known by their ids; a hash of a path says nothing.
    names = paths if network.config.dataset == "audio_folder" else {}
    report.write_report(
        workdir,
        examples=_examples(network, dataset, names),
        attention=_attention(network, workdir, dataset),
        names=names,
        data=_describe_data(network, dataset),
        run={
            "command": command,
            "devices": parallel.describe_devices(),
            "parameters": network.parameters,
            "seconds": total_seconds(workdir),
            # A probe takes no training steps.
            "flops_per_clip": None if network.config.model == "probe" else flops_per_clip(network),
            "code": _code_hash(),
            "packages": _packages_hash(),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in _PACKAGES},
            "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        },
    )
    return scores


def summarise(workdir: Path, scores: dict) -> None:
    """Says the scores and where the report is."""
    for level in ("track", "clip"):
        s = scores[level]
        console.log.info(
            "test, %-5s level (%d)  top-1 %.3f  F1 %.3f  precision %.3f  recall %.3f  "
            "accuracy_ovr %.3f",
            level,
            s["count"],
            *(s[name] for name in ("top1", "f1", "precision", "recall", "accuracy_ovr")),
        )
    page = workdir / files.REPORT / files.PAGE
    console.log.info("best epoch %d  report %s", scores["epoch"], page)


def _examples(
    network: Network, dataset: ClipDataset, track_names: Mapping[int, str]
) -> list[tuple[str, Callable[[Axes], None]]]:
    """A test clip of each genre, and the first of them augmented: titles, and what draws each."""
    feature = network.features[0]
    test = dataset.splits["test"]
    labels, rows = _clip_of_each_genre(test)
    stored = test.gather(rows)[feature.name]
    inputs = feature.network_input(stored[:, : feature.shape[0]])
    tracks = [track_names.get(i, f"track {i}") for i in test.labels["track_id"][rows].tolist()]
    names = [dataset.genres[label] for label in labels]
    titles = [f"{name} ({track})" for name, track in zip(names, tracks, strict=True)]
    examples = list(zip(titles, inputs, strict=True))
    for form, array in augmented_forms(network.config, feature, inputs[0]):
        examples.append((f"{names[0]}, {form}", array))
    return [
        (title, functools.partial(feature.plot, values=feature.decode(x))) for title, x in examples
    ]


def _attention(
    network: Network, workdir: Path, dataset: ClipDataset
) -> list[tuple[str, Callable[[Axes], None]]]:
    """What a network that says its attention attends to in a test clip of each genre."""

    def look(variables, *inputs):
        given = variables, *inputs
        _, seen = network.module.apply(*given, train=False, mutable=["intermediates"])
        return seen.get("intermediates", {})

    test = dataset.splits["test"]
    labels, rows = _clip_of_each_genre(test)
    stored = test.gather(rows)
    inputs = network.inputs({f.name: stored[f.name][:, : f.shape[0]] for f in network.features})
    if "attention" not in jax.eval_shape(look, network.shapes, *inputs.values()):
        return []
    seen = jax.jit(look)(load_best(workdir, network)[0], *inputs.values())
    seconds = np.asarray(seen["instants"][0]) * network.features[0].audio.clip_seconds
    return [
        (
            dataset.genres[label],
            functools.partial(plots.draw_attention, seconds=seconds, attention=x),
        )
        for label, x in zip(labels, np.asarray(seen["attention"][0]), strict=True)
    ]


def _clip_of_each_genre(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Labels `[genres]` and rows `[genres]` of a clip of each of the first genres of a split."""
    labels, rows = np.unique(split.labels["label"], return_index=True)
    return labels[:_MOST_EXAMPLES], rows[:_MOST_EXAMPLES]


def _describe_data(network: Network, dataset: ClipDataset) -> dict:
    """What was read, used and skipped when the data set was prepared."""
    splits = dataset.metadata["splits"]
    return {
        "dataset": network.config.dataset,
        "features": " and ".join(feature.name for feature in network.features),
        "inputs": [feature.describe() for feature in network.features],
        "splits": splits,
        "source": dataset.metadata.get("source", {}).get("hash"),
        "fingerprint": dataset.fingerprint()["hash"],
        "tracks_listed": dataset.metadata["tracks_listed"],
        "silent_clips": dataset.metadata.get("silent_clips"),
        "tracks_used": sum(split["tracks"] for split in splits.values()),
        "skipped": read_skipped(dataset.path),
        "synthetic": dataset.metadata["synthetic"],
    }


def _code_hash() -> str:
    """SHA-256 of the package's own code, its configs included."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *(package / "configs").glob("*.py")]):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _packages_hash() -> str:
    """SHA-256 of the names and versions of all packages in this environment."""
    names = {f"{package.name.lower()}=={package.version}" for package in distributions()}
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def flops_per_clip(network: Network) -> float | None:
    """XLA's count for the forward and backward pass of one clip, where the platform counts."""
    model = network.module.clone(axis_name=None)
    variables = network.shapes
    inputs = [jax.ShapeDtypeStruct((1, *f.shape), np.float32) for f in network.features]

    def loss(params, variables, *inputs):
        variables = variables | {"params": params}
        rngs = {"dropout": jax.random.key(0)}
        logits, _ = model.apply(variables, *inputs, train=True, mutable=["batch_stats"], rngs=rngs)
        return logits.sum()

    lowered = jax.jit(jax.grad(loss)).lower(variables["params"], variables, *inputs)
    return (lowered.cost_analysis() or {}).get("flops")
