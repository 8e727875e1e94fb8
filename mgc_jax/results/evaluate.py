"""A network over a whole split: predictions gathered once, scored at clip and track level, and read
back from a finished run."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mgc_jax.errors import InputError
from mgc_jax.files import replacing, write_text
from mgc_jax.results.metrics import (
    Predictions,
    bootstrap,
    classification_metrics,
    interval,
    track_predictions,
)

if TYPE_CHECKING:
    from mgc_jax.data.input_pipeline import Split

_COLUMNS = ["track_id", "clip", "label", "prediction"]


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
    from mgc_jax import parallel  # not at the top: reports are read and compared without JAX

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
        What `metrics.json` holds: `split`, `epoch`, and of `clip` and `track` the scores, with
        `intervals`, `{score: [low, high]}`: 95% intervals, bootstrapped over tracks.
    """
    report = Path(workdir) / "report"
    scores = {"split": "test", "epoch": epoch}
    levels = {"clip": predictions, "track": track_predictions(predictions)}
    for level, rows in levels.items():
        intervals = {name: interval(values) for name, values in bootstrap(rows).items()}
        scores[level] = classification_metrics(rows, genres) | {"intervals": intervals}
    write_text(report / "metrics.json", json.dumps(scores, indent=2))
    order = np.lexsort((predictions.clip, predictions.track_id))
    with (
        replacing(report / "predictions.csv") as part,
        open(part, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *(f"prob_{genre}" for genre in genres)])
        for i in order:
            log_probs = predictions.log_probs[i].astype(float)  # whose exp is hardly ever 0
            names = genres[predictions.label[i]], genres[log_probs.argmax()]
            # Nine digits give float32 back exactly.
            probabilities = (f"{p:.9g}" for p in np.exp(log_probs))
            writer.writerow([predictions.track_id[i], predictions.clip[i], *names, *probabilities])
    return scores


def read_predictions(workdir: str | os.PathLike, genres: Sequence[str]) -> Predictions:
    """Reads `report/predictions.csv` of a finished run, clip by clip.

    Args:
        workdir: of the run.
        genres: the run's, in label order.

    Raises:
        InputError: the file is missing, damaged or of other genres.
    """
    path = Path(workdir) / "report" / "predictions.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        if header != [*_COLUMNS, *(f"prob_{genre}" for genre in genres)] or not rows:
            raise ValueError("it has no rows, or other columns than the run's genres")
        tracks, clips = (np.array([int(row[i]) for row in rows]) for i in (0, 1))
        labels = np.array([genres.index(row[2]) for row in rows])
        probabilities = np.array([row[4:] for row in rows], dtype=float)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: evaluate the run with --mode=eval") from None
    except (ValueError, IndexError) as error:
        raise InputError(f"{path} cannot be read ({error}): evaluate with --mode=eval") from None
    return Predictions(tracks, clips, labels, np.log(np.maximum(probabilities, 1e-300)))
