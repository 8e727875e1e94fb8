"""A probe from a config to a report: one pass through frozen networks, a head, and the evaluation.

What the networks say of the clips is kept in the workdir as it is computed, in
`statistics-HASH/SPLIT/FIRST.npy`, so that a killed run goes on; it is deleted at the end.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mgc_jax import console, models, parallel
from mgc_jax.data.features import settings_of
from mgc_jax.data.input_pipeline import ClipDataset, Split, open_dataset
from mgc_jax.errors import InputError
from mgc_jax.files import replacing
from mgc_jax.models import create_model
from mgc_jax.results import files
from mgc_jax.results.metrics import classification_metrics
from mgc_jax.training.checkpoints import Checkpoints
from mgc_jax.training.claim import check_config, check_workdir, claim_workdir, locked
from mgc_jax.training.embedding import fingerprint
from mgc_jax.training.heads import Head, TrackStatistics, fit_head
from mgc_jax.training.network import Network
from mgc_jax.training.pretrained import load_weights
from mgc_jax.training.public_weights import find_weights
from mgc_jax.training.reporting import summarise
from mgc_jax.training.run_log import RunLog
from mgc_jax.training.track_head import by_track, compile_statistics_step, join_statistics
from mgc_jax.training.train import announce, evaluate_and_report, make_demo_if_missing

_FEATURES = models.inputs_of("probe")
# A probe has no epochs: its one fit counts as the first.
_EPOCH = 1
# Clips whose statistics are kept in one file: what a kill costs at most.
_CLIPS_A_FILE = 256


def probe_and_evaluate(config: ConfigDict, workdir: Path, command: str) -> None:
    """Fits a probe (or goes on), evaluates it on `test` and writes the report.

    Args:
        config: as in `configs/default.py`; `init_from` names the networks, with commas between
            them: public weights, or what else `config.init_from` takes for musicnn.
        workdir: made if missing; it belongs to this config from then on.
        command: shown in the report.

    Raises:
        InputError: another config's workdir, no data, weights that do not fit, ...
    """
    parallel.use_compilation_cache()
    config = probe_config(config)
    check_workdir(workdir, config, new=True)
    make_demo_if_missing(config, _FEATURES)
    dataset = open_dataset(config, _FEATURES)
    with locked(workdir):
        if files.has_report(workdir):
            console.log.info("this probe is complete")
            summarise(workdir, files.read_metrics(workdir, dataset.genres))
            return
        start = time.perf_counter()
        network = Network.from_config(config, dataset.genres)
        frozen = load_frozen(network)
        announce(network, workdir, dataset)
        names = ("train", "validation")
        found = compute_statistics(network, frozen, dataset, names, workdir)
        head = fit_head(*found, dataset.genres, config)
        console.log.info("head      %s; validation loss %.3f", head, head.loss)
        network = save_probe(network, frozen, head, dataset, workdir)
        _log(workdir, head, dataset.genres, time.perf_counter() - start)
        evaluate_and_report(network, workdir, dataset, command)
        for folder in workdir.glob("statistics-*"):
            shutil.rmtree(folder)


def probe_config(config: ConfigDict) -> ConfigDict:
    """The config of a probe on the networks that another config's `init_from` names.

    Raises:
        InputError: a setting cannot be met, or the config is of another network.
    """
    if config.model not in ("musicnn", "probe"):
        raise InputError(
            f"config.model={config.model!r}: a probe is on musicnn: give --config=probe"
        )
    if config.crop_seconds:
        raise InputError("config.crop_seconds: a probe reads all of each clip, so it must be 0")
    names = config.init_from.split(",")
    if not all(names):
        raise InputError("--pretrained=... is missing: the networks to probe, such as msd_musicnn")
    with config.copy_and_resolve_references().unlocked() as each:
        each.model = "musicnn"
        each.model_overrides = ConfigDict()
        for each.init_from in names:
            check_config(each)
    with config.copy_and_resolve_references().unlocked() as probe:
        probe.model = "probe"
        probe.model_overrides = ConfigDict({"networks": len(names)})
    return probe


def load_frozen(network: Network) -> dict:
    """Variables of a probe without a head: the networks that `init_from` names; on all devices."""
    module = create_model("musicnn", axis_name=None)
    shape = (1, *network.stored[0].shape)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), np.zeros(shape, np.float32), train=False)
    )
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    frozen = {"params": {}, "batch_stats": {}}
    for number, name in enumerate(network.config.init_from.split(",")):
        loaded = load_weights(find_weights(name), "musicnn", fresh)
        for part in frozen:
            frozen[part][f"trunks_{number}"] = loaded[part]["trunk"]
    return parallel.replicate(frozen)


def compute_statistics(
    network: Network, frozen: dict, dataset: ClipDataset, names: Sequence[str], workdir: Path
) -> list[TrackStatistics]:
    """What the frozen networks say of the tracks of the splits of these names.

    What is in the workdir of an earlier start is taken from there.
    """
    of = [dataset.fingerprint()["hash"], fingerprint(frozen), network.config.dtype]
    digest = hashlib.sha256(json.dumps([of, settings_of(network.stored)]).encode())
    folder = workdir / f"statistics-{digest.hexdigest()[:16]}"
    step = compile_statistics_step(network)
    found = []
    for name in names:
        split = dataset.splits[name]
        batches = _Pass(step, frozen, split, network.config.batch_size, folder / name)
        clips = batches.run(f"{name} clips")
        ids, groups = by_track(split.labels["track_id"])
        statistics = np.stack([join_statistics(clips[group]) for group in groups])
        labels = split.labels["label"][[group[0] for group in groups]]
        found.append(TrackStatistics(ids, labels, statistics))
    return found


def save_probe(
    network: Network, frozen: dict, head: Head, dataset: ClipDataset, workdir: Path
) -> Network:
    """Makes the workdir that of a probe with this head; returns the probe's network."""
    with network.config.copy_and_resolve_references().unlocked() as config:
        config.model_overrides.support = head.support
    network = Network.from_config(config, dataset.genres)
    params = jax.tree.map(np.float32, head.params)
    variables = {**frozen, "params": frozen["params"] | params}
    claim_workdir(workdir, network, dataset.fingerprint())
    with Checkpoints(workdir, writing=True) as checkpoints:
        checkpoints.save_best(variables, {"epoch": _EPOCH, "loss": head.loss})
    files.write_calibration(workdir, _EPOCH, head.temperature)
    return network


class _Pass:
    """A split's way through a step, whose results are kept on disk part by part."""

    def __init__(self, step: Callable, variables: Any, split: Split, batch_size: int, folder: Path):
        """Arguments are those of `evaluate.rows_of`, and where the parts are kept."""
        self._step = step
        self._variables = variables
        self._split = split
        self._batch_size = batch_size
        self._folder = folder

    def run(self, description: str) -> np.ndarray:
        """The step's rows of all clips, `[clips, width]`, in stored order."""
        parts = self._kept()
        done = sum(map(len, parts))
        total = len(self._split)
        pending = []
        with console.progress_bar(total=total, description=description, unit="clip") as bar:
            bar.update(done)
            try:
                for batch in self._split.eval_batches(self._batch_size, first=done):
                    rows = np.asarray(self._step(self._variables, batch))[batch["mask"]]
                    pending.append(rows)
                    if sum(map(len, pending)) >= _CLIPS_A_FILE:
                        done += self._keep(parts, pending, done)
                    bar.update(len(rows))
            finally:
                self._keep(parts, pending, done)
        return np.concatenate(parts)

    def _kept(self) -> list[np.ndarray]:
        """Parts of an earlier start, up to the first that is missing or damaged."""
        parts = []
        while True:
            try:
                parts.append(np.load(self._path(sum(map(len, parts)))))
            except (OSError, ValueError, EOFError):
                return parts

    def _keep(self, parts: list[np.ndarray], pending: list[np.ndarray], first: int) -> int:
        """Writes what is pending as the part that begins with a clip; returns how many it has."""
        if not pending:
            return 0
        parts.append(np.concatenate(pending))
        pending.clear()
        with replacing(self._path(first)) as path, open(path, "wb") as file:
            np.save(file, parts[-1])
        return len(parts[-1])

    def _path(self, first: int) -> Path:
        return self._folder / f"{first}.npy"


def _log(workdir: Path, head: Head, genres: list[str], seconds: float) -> None:
    """The line of metrics.jsonl, of the validation tracks."""
    scores = classification_metrics(head.validation, genres)
    scores = {name: scores[name] for name in ("loss", "top1", "f1", "f1_macro")}
    with RunLog(workdir, 0, 0, 1) as log:
        log.write("validation", _EPOCH, 1, **scores, seconds=seconds)
