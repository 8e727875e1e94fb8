"""A network over a whole split, and the best epoch of a run over the test split."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc_jax import parallel
from mgc_jax.results.metrics import SplitPredictions
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
    batches = []
    for batch in split.eval_batches(batch_size):
        batches.append(predict_step(variables, batch))
        if len(batches) > parallel.STEPS_IN_FLIGHT:  # else all inputs would pile up on the device
            batches[-1 - parallel.STEPS_IN_FLIGHT].block_until_ready()
    log_probs = np.concatenate([np.asarray(batch) for batch in batches])[: len(split)]
    return SplitPredictions(**split.labels, log_probs=log_probs)


def evaluate_best(workdir: Path, network: Network, test: "Split") -> tuple[SplitPredictions, int]:
    """The best checkpoint's predictions of the test split, and its epoch."""
    variables = network.init()
    epoch = 0
    if parallel.is_main():
        _, variables, epoch = load_run(workdir)
    variables = parallel.replicate(parallel.share_arrays(variables))
    predict_fn = compile_predict_step(network)
    return predict_split(predict_fn, variables, test, network.config.batch_size), epoch
