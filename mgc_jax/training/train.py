"""One run from a config to a report: claim the workdir, open the data, train, evaluate, report."""

import csv
import datetime
import functools
import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import jax
import matplotlib.axes
import numpy as np
from ml_collections import ConfigDict

from mgc_jax import console, models, parallel
from mgc_jax.data import preparation, shards
from mgc_jax.data.input_pipeline import ClipDataset, Split, open_dataset
from mgc_jax.data.tracks import SKIPPED_FILE, read_paths
from mgc_jax.errors import InputError, choices
from mgc_jax.results import files, report
from mgc_jax.results.metrics import SplitPredictions
from mgc_jax.training import loop
from mgc_jax.training.augment import Augmenter, augmented_forms
from mgc_jax.training.evaluate import predict_split
from mgc_jax.training.network import Network, load_run, with_defaults
from mgc_jax.training.optimizer import learning_rate_schedule, make_optimizer
from mgc_jax.training.run_log import total_seconds, write_images
from mgc_jax.training.step import compile_predict_step

# What may change between two starts of a run.
_MAY_DIFFER = {"data_dir", "checkpoint_every_minutes", "profile", "skip_nonfinite"}
# Types that a network computes in.
DTYPES = ("float32", "bfloat16", "float16")
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


def train_and_evaluate(config: ConfigDict, workdir: Path, *, training: bool, command: str) -> None:
    """Trains (or goes on), evaluates the best epoch on `test` and writes the report.

    Args:
        config: as in `configs/default.py`.
        workdir: made if missing; it belongs to this config from then on.
        training: False evaluates and reports only.
        command: shown in the report.

    Raises:
        InputError: another config's workdir, no data, no checkpoint, ...
    """
    feature_names = models.inputs_of(config.model)
    _check_config(config)
    if parallel.is_main():
        _check_workdir(workdir, config, new=training)
    parallel.use_compilation_cache(workdir.parent / "jax_cache")
    _make_demo_if_missing(config, feature_names)
    dataset = open_dataset(config, feature_names)
    network = Network.from_config(config, dataset.genres)
    if parallel.is_main():
        _claim_workdir(workdir, network)
    _announce(network, workdir, dataset)
    progress = loop.load_progress(workdir)
    reported = parallel.share_text(str(files.has_report(workdir))) == "True"
    if training and reported and loop.is_finished(config, progress):
        console.log.info(
            "this run is complete: %d epochs; --mode=eval evaluates it again", progress.epoch
        )
        _summarise(workdir, files.read_metrics(workdir, network.genres))
        return
    if training:
        progress = loop.train(network, workdir, dataset)
    predictions, epoch = _evaluate(workdir, network, dataset.splits["test"])
    if not parallel.is_main():
        return
    paths = read_paths(dataset.path)
    scores = files.write_evaluation(workdir, predictions, dataset.genres, epoch, paths)
    # FMA's tracks are known by their ids; a hash of a path says nothing.
    names = paths if config.dataset == "audio_folder" else {}
    report.write_report(
        workdir,
        examples=_examples(network, dataset, names),
        names=names,
        data=_describe_data(network, dataset),
        run={
            "command": command,
            "devices": parallel.describe_devices(),
            "parameters": network.parameters,
            "seconds": total_seconds(workdir),
            "flops_per_clip": _flops_per_clip(network),
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in _PACKAGES},
            "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        },
    )
    if training:
        pictures = ("confusion_matrix", "spectrograms")
        pictures = {f"test/{name}": workdir / files.REPORT / f"{name}.png" for name in pictures}
        write_images(workdir, progress.step, pictures)
    _summarise(workdir, scores)


def _check_config(config: ConfigDict) -> None:
    """Raises InputError for a setting that cannot be met, before any data are made or read."""
    parallel.check_batch_size(config.batch_size, config.optimizer.accumulate)
    if config.dtype not in DTYPES:
        raise InputError(f"config.dtype={config.dtype!r}: {choices(config.dtype, DTYPES)}")
    if config.init_from and not os.path.exists(config.init_from):
        raise InputError(f"config.init_from={config.init_from!r}: no such file or folder")
    # A network of two genres has all the fields and settings that one of any number has.
    network = Network.from_config(config, ["one", "other"])
    Augmenter(config, network.features)
    make_optimizer(config, learning_rate_schedule(config, 1), network.shapes["params"])


def _check_workdir(workdir: Path, config: ConfigDict, *, new: bool) -> None:
    """Raises InputError where the workdir is another config's, or cannot be written to.

    A workdir without a checkpoint is free: a start that failed does not claim it.
    """
    if not (workdir / files.CONFIG).exists():
        if not new:
            raise InputError(f"no run in {workdir} (it has no config.json): train first")
        return
    if not os.access(workdir, os.W_OK):
        raise InputError(f"cannot write to --workdir={workdir}: permission denied")
    if not any((workdir / "checkpoints").glob("*/*")):
        return
    stored = _flatten(json.loads(with_defaults(files.read_config(workdir)).to_json()))
    wanted = _flatten(json.loads(config.to_json()))
    differences = [
        f"{key} is {stored.get(key)!r} there, {wanted.get(key)!r} now"
        for key in sorted(stored.keys() | wanted.keys())
        if stored.get(key) != wanted.get(key) and key not in _MAY_DIFFER
    ]
    if differences:
        raise InputError(
            f"{workdir} holds a run of another config: {'; '.join(differences)}. "
            "Give another --workdir, or the same config"
        )


def _claim_workdir(workdir: Path, network: Network) -> None:
    """Writes config and genres into a fresh workdir; checks that an old one is of these genres."""
    if any((workdir / "checkpoints").glob("*/*")):
        stored = files.read_genres(workdir)
        if stored != list(network.genres):
            raise InputError(
                f"{workdir} was trained on the genres {stored}, the data set now has "
                f"{list(network.genres)}"
            )
        return
    try:
        files.write_config(workdir, json.loads(network.config.to_json()))
        files.write_genres(workdir, network.genres)
    except OSError as error:
        raise InputError(f"cannot write to --workdir={workdir}: {error.strerror}") from None


def _flatten(tree: dict, prefix: str = "") -> dict:
    """Nested dictionaries to one with dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def _make_demo_if_missing(config: ConfigDict, feature_names: tuple[str, ...]) -> None:
    """The demo needs nothing from the user, so it is not asked for."""
    path = shards.dataset_path(config, feature_names)
    for mine in (parallel.is_main(), not parallel.is_main()):  # the others may see the same disk
        if config.dataset == "demo" and mine and not path.exists():
            preparation.prepare(config, feature_names, workers=os.cpu_count())
        parallel.wait_for_main("demo")


def _announce(network: Network, workdir: Path, dataset: ClipDataset) -> None:
    """Says what is about to run."""
    sizes = ", ".join(f"{name} {len(split)}" for name, split in dataset.splits.items())
    console.log.info("devices   %s", parallel.describe_devices())
    model = network.config.model
    console.log.info("network   %s, %s parameters", model, f"{network.parameters:,}")
    console.log.info("data      %s: clips %s; %d genres", dataset.path, sizes, len(dataset.genres))
    console.log.info(
        "writes to %s: checkpoints/, metrics.jsonl, TensorBoard events, report/", workdir
    )


def _flops_per_clip(network: Network) -> float | None:
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


def _evaluate(workdir: Path, network: Network, test: Split) -> tuple[SplitPredictions, int]:
    """The best checkpoint's predictions of the test split, and its epoch."""
    variables = network.init()
    epoch = 0
    if parallel.is_main():
        _, variables, epoch = load_run(workdir)
    variables = parallel.replicate(parallel.share_arrays(variables))
    predict_fn = compile_predict_step(network)
    return predict_split(predict_fn, variables, test, network.config.batch_size), epoch


def _examples(
    network: Network, dataset: ClipDataset, track_names: Mapping[int, str]
) -> list[tuple[str, Callable[[matplotlib.axes.Axes], None]]]:
    """One test clip of each genre, and the first of them augmented: titles, and what draws each."""
    feature = network.features[0]
    test = dataset.splits["test"]
    labels, rows = np.unique(test.labels["label"], return_index=True)
    inputs = feature.network_input(test.gather(rows)[feature.name])
    tracks = [track_names.get(i, f"track {i}") for i in test.labels["track_id"][rows].tolist()]
    names = [dataset.genres[label] for label in labels]
    titles = [f"{name} ({track})" for name, track in zip(names, tracks, strict=True)]
    examples = list(zip(titles, inputs, strict=True))
    for form, array in augmented_forms(network.config, feature, inputs[0]):
        examples.append((f"{names[0]}, {form}", array))
    return [
        (title, functools.partial(feature.plot, values=feature.decode(x))) for title, x in examples
    ]


def _describe_data(network: Network, dataset: ClipDataset) -> dict:
    """What was read, used and skipped when the data set was prepared."""
    splits = dataset.metadata["splits"]
    with open(dataset.path / SKIPPED_FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        "dataset": network.config.dataset,
        "features": " and ".join(feature.name for feature in network.features),
        "inputs": [feature.describe() for feature in network.features],
        "splits": splits,
        "tracks_listed": dataset.metadata["tracks_listed"],
        "tracks_used": sum(split["tracks"] for split in splits.values()),
        "skipped": rows,
        "synthetic": dataset.metadata["synthetic"],
    }


def _summarise(workdir: Path, scores: dict) -> None:
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
