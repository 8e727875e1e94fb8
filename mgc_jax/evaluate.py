"""A network over a whole split: predictions gathered once, scored at clip and track level."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc_jax import parallel
from mgc_jax.files import replacing, write_text
from mgc_jax.metrics import Predictions, classification_metrics, track_predictions

if TYPE_CHECKING:
    from mgc_jax.input_pipeline import Split


def predict_split(
    predict_step: Callable, variables: Any, split: "Split", batch_size: int
) -> Predictions:
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
    return Predictions(**split.labels, log_probs=log_probs)


def write_evaluation(
    workdir: str | os.PathLike, predictions: Predictions, genres: Sequence[str], epoch: int
) -> dict:
    """Scores test predictions and writes `report/metrics.json` and `report/predictions.csv`.

    Returns:
        What `metrics.json` holds: `split`, `epoch`, and the scores of `clip` and `track`.
    """
    report = Path(workdir) / "report"
    scores = {
        "split": "test",
        "epoch": epoch,
        "clip": classification_metrics(predictions, genres),
        "track": classification_metrics(track_predictions(predictions), genres),
    }
    write_text(report / "metrics.json", json.dumps(scores, indent=2))
    order = np.lexsort((predictions.clip, predictions.track_id))
    with (
        replacing(report / "predictions.csv") as part,
        open(part, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(
            ["track_id", "clip", "label", "prediction", *(f"prob_{genre}" for genre in genres)]
        )
        for i in order:
            log_probs = predictions.log_probs[i]
            names = genres[predictions.label[i]], genres[log_probs.argmax()]
            # Nine digits give float32 back exactly.
            probabilities = (f"{p:.9g}" for p in np.exp(log_probs))
            writer.writerow([predictions.track_id[i], predictions.clip[i], *names, *probabilities])
    return scores
