"""One run from a config to a report: claim the workdir, open the data, train, evaluate, report."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from mgc_jax import console, models, parallel
from mgc_jax.data import preparation, shards
from mgc_jax.data.input_pipeline import ClipDataset, open_dataset
from mgc_jax.results import files
from mgc_jax.training import loop
from mgc_jax.training.checkpoints import has_best
from mgc_jax.training.claim import check_config, check_workdir, claim_workdir, locked
from mgc_jax.training.evaluate import calibrate, evaluate_best, keep_known
from mgc_jax.training.levels import find_levels
from mgc_jax.training.network import Network
from mgc_jax.training.progress import is_finished
from mgc_jax.training.reporting import report_run, summarise
from mgc_jax.training.run_log import write_images


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
    parallel.use_compilation_cache()
    feature_names = models.inputs_of(config.model)
    check_config(config)
    if parallel.is_main():
        check_workdir(workdir, config, new=training)
    make_demo_if_missing(config, feature_names)
    dataset = open_dataset(config, feature_names)
    levels = find_levels(config, workdir, dataset)
    network = Network.from_config(config, dataset.genres, levels=levels)
    reported = parallel.share_text(str(files.has_report(workdir))) == "True"
    if not training and reported and not os.access(workdir, os.W_OK):
        console.log.info("%s is read-only: these are the scores of its report", workdir)
        summarise(workdir, files.read_metrics(workdir, network.genres))
        return
    if not training:
        announce(network, workdir, dataset)
        evaluate_and_report(network, workdir, dataset, command)
        return
    with locked(workdir):
        if parallel.is_main():
            claim_workdir(workdir, network, dataset.fingerprint())
        announce(network, workdir, dataset)
        progress = loop.load_progress(workdir)
        # A finished run may have lost its training state: it is finished all the same.
        lost = progress.epoch == 0 and parallel.share_text(str(has_best(workdir))) == "True"
        if reported and (lost or is_finished(config, progress)):
            epochs = config.num_epochs if lost else progress.epoch
            console.log.info(
                "this run is complete: %d epochs; --mode=eval evaluates it again", epochs
            )
            summarise(workdir, files.read_metrics(workdir, network.genres))
            return
        progress = loop.train(network, workdir, dataset)
        calibrate(workdir, network, dataset.splits["validation"])
        evaluate_and_report(network, workdir, dataset, command)
        if parallel.is_main():
            report = workdir / files.REPORT
            names = ("confusion_matrix", "spectrograms")
            pictures = {f"test/{name}": report / f"{name}.png" for name in names}
            write_images(workdir, progress.step, pictures)


def evaluate_and_report(
    network: Network, workdir: Path, dataset: ClipDataset, command: str
) -> None:
    """Evaluates the best epoch on all devices; process 0 writes the report and says the scores."""
    keep_known(workdir, network, dataset.splits)
    console.log.info("testing   the best epoch")
    predictions, epoch = evaluate_best(workdir, network, dataset.splits["test"])
    if parallel.is_main():
        console.log.info("writing   the report")
        scores = report_run(network, workdir, dataset, predictions, epoch, command)
        summarise(workdir, scores)


def make_demo_if_missing(config: ConfigDict, feature_names: tuple[str, ...]) -> None:
    """The demo needs nothing from the user, so it is not asked for."""
    for mine in (parallel.is_main(), not parallel.is_main()):  # the others may see the same disk
        if config.dataset == "demo" and mine and not shards.has_records(config, feature_names):
            preparation.prepare(config, feature_names, workers=os.cpu_count())
        parallel.wait_for_main("demo")


def announce(network: Network, workdir: Path, dataset: ClipDataset) -> None:
    """Says what is about to run."""
    sizes = ", ".join(f"{name} {len(split)}" for name, split in dataset.splits.items())
    console.log.info("devices   %s", parallel.describe_devices())
    model = network.config.model
    console.log.info("network   %s, %s parameters", model, f"{network.parameters:,}")
    console.log.info("data      %s: clips %s; %d genres", dataset.path, sizes, len(dataset.genres))
    console.log.info(
        "writes to %s: checkpoints/, metrics.jsonl, TensorBoard events, report/", workdir
    )
