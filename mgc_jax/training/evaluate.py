"""A network over a whole split."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc_jax import parallel
from mgc_jax.results.metrics import SplitPredictions

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
