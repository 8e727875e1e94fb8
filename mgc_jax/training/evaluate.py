"""A network over a whole split, and the best epoch of a run over the test split."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mgc_jax import console, parallel, signals
from mgc_jax.errors import InputError
from mgc_jax.results.calibration import fit_temperature
from mgc_jax.results.files import read_known, write_calibration, write_known
from mgc_jax.results.known import fit_known
from mgc_jax.results.metrics import SplitPredictions, track_predictions
from mgc_jax.training.embedding import compile_embed_step
from mgc_jax.training.network import Network, load_best
from mgc_jax.training.track_head import compile_rows_step, reads_tracks, track_head

if TYPE_CHECKING:  # it imports TensorFlow, which the training step does without
    from mgc_jax.data.input_pipeline import Split


def predict_split(
    predict_step: Callable, variables: Any, split: "Split", batch_size: int
) -> SplitPredictions:
    """Runs a network over every clip of a split, once each.

    Args:
        predict_step: `(variables, batch) -> log_probs [batch, classes]`, compiled.
        variables: of the network.
        split: the clips, in stored order.
        batch_size: clips a step; does not change the result.
    """
    log_probs = rows_of(predict_step, variables, split, batch_size)
    return SplitPredictions(**split.labels, log_probs=log_probs)


def rows_of(step: Callable, variables: Any, split: "Split", batch_size: int) -> np.ndarray:
    """What a step gives for each clip of a split, `[clips, width]`; arguments as above."""
    batches = []
    for batch in split.eval_batches(batch_size):
        batches.append(step(variables, batch))
        if len(batches) > parallel.STEPS_IN_FLIGHT:  # else all inputs would pile up on the device
            batches[-1 - parallel.STEPS_IN_FLIGHT].block_until_ready()
    return np.concatenate([np.asarray(batch) for batch in batches])[: len(split)]


def best_variables(workdir: Path, network: Network) -> tuple[Any, int]:
    """The variables of the best epoch on every device, and which it is: process 0's for all."""
    if parallel.is_main():
        variables, epoch = load_best(workdir, network)
    else:
        variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), network.shapes)
        epoch = 0
    return parallel.replicate(parallel.share_arrays(variables)), epoch


def calibrate(workdir: Path, network: Network, validation: "Split") -> None:
    """Fits the temperature of a trained run on its validation split, and keeps it in the workdir.

    It is that of tracks, as answers are about files; log-probabilities of clips, divided by it,
    have that of their track as their mean.
    """
    variables, epoch = best_variables(workdir, network)
    predict_step = _stopping(network.predict_step)
    clips = predict_split(predict_step, variables, validation, network.config.batch_size)
    if parallel.is_main():
        temperature = fit_temperature(track_predictions(clips))
        write_calibration(workdir, epoch, temperature)
        console.log.info("temperature of the probabilities, by validation: %.3g", temperature)


def keep_known(workdir: Path, network: Network, splits: Mapping[str, "Split"]) -> None:
    """Keeps in the workdir what "unknown" is told by, unless that of the best epoch is there.

    Args:
        workdir: of a trained run.
        network: of the run.
        splits: `train`, whose clips the genres' means are of, and `validation`.
    """
    if reads_tracks(network):
        return  # a probe's statistics are too many for a covariance
    variables, epoch = best_variables(workdir, network)
    if parallel.share_text(_missing_known(workdir, epoch)) != "missing":
        return
    console.log.info("embedding the training and the validation split")
    step = _stopping(compile_embed_step(network))
    train, validation = (
        rows_of(step, variables, splits[name], network.config.batch_size)
        for name in ("train", "validation")
    )
    if parallel.is_main():
        _, track = np.unique(splits["validation"].labels["track_id"], return_inverse=True)
        tracks = np.stack([validation[track == i].mean(axis=0) for i in range(track.max() + 1)])
        write_known(workdir, epoch, fit_known(train, splits["train"].labels["label"], tracks))


def _missing_known(workdir: Path, epoch: int) -> str:
    """`missing` if there is no sound file; on process 0, which alone sees the workdir."""
    if parallel.is_main():
        try:
            read_known(workdir, epoch)
        except InputError:
            return "missing"
    return "there"


def evaluate_best(workdir: Path, network: Network, test: "Split") -> tuple[SplitPredictions, int]:
    """The best checkpoint's predictions of the test split at temperature 1, and its epoch."""
    variables, epoch = best_variables(workdir, network)
    step = _stopping(compile_rows_step(network))
    rows = rows_of(step, variables, test, network.config.batch_size)
    clips = SplitPredictions(**test.labels, log_probs=rows[:, : len(network.genres)])
    if head := track_head(network, variables):
        clips = clips._replace(tracks=head.of_split(clips, rows))
    return clips, epoch


def _stopping(step: Callable) -> Callable:
    """A step that obeys a request to stop; not for training, which saves first."""

    def run(variables, batch):
        signals.check()
        return step(variables, batch)

    return run
