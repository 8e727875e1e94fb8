"""A network over a whole split, and the best epoch of a run over the test split."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc_jax import console, parallel, signals
from mgc_jax.results.calibration import fit_temperature
from mgc_jax.results.files import write_calibration
from mgc_jax.results.metrics import SplitPredictions, track_predictions
from mgc_jax.training.network import Network, load_run
from mgc_jax.training.step import compile_predict_step

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
    variables = network.init()
    epoch = 0
    if parallel.is_main():
        _, variables, epoch, _ = load_run(workdir)
    return parallel.replicate(parallel.share_arrays(variables)), epoch


def calibrate(workdir: Path, network: Network, validation: "Split") -> None:
    """Fits the temperature of a trained run on its validation split, and keeps it in the workdir.

    It is that of tracks, as answers are about files; log-probabilities of clips, divided by it,
    have that of their track as their mean.
    """
    variables, epoch = best_variables(workdir, network)
    predict_step = _stopping(compile_predict_step(network))
    clips = predict_split(predict_step, variables, validation, network.config.batch_size)
    if parallel.is_main():
        temperature = fit_temperature(track_predictions(clips))
        write_calibration(workdir, epoch, temperature)
        console.log.info("temperature of the probabilities, by validation: %.3g", temperature)


def evaluate_best(workdir: Path, network: Network, test: "Split") -> tuple[SplitPredictions, int]:
    """The best checkpoint's predictions of the test split at temperature 1, and its epoch."""
    variables, epoch = best_variables(workdir, network)
    predict_step = _stopping(compile_predict_step(network))
    return predict_split(predict_step, variables, test, network.config.batch_size), epoch


def _stopping(step: Callable) -> Callable:
    """A step that obeys a request to stop; not for training, which saves first."""

    def run(variables, batch):
        signals.check()
        return step(variables, batch)

    return run
