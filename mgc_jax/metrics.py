"""Scores of a classifier, computed once from all its predictions, so that batch sizes cannot change
them.

0/0 counts as 0: the precision of a genre never predicted, the recall of one that never occurs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Predictions(NamedTuple):
    """What a network said of a set of clips (or tracks), row by row.

    Attributes:
        track_id: `[n] int64`.
        clip: `[n] int64`, position of the clip in its track.
        label: `[n] int64`, the true class.
        log_probs: `[n, classes] float32`.
    """

    track_id: np.ndarray
    clip: np.ndarray
    label: np.ndarray
    log_probs: np.ndarray


def classification_metrics(predictions: Predictions, genres: Sequence[str]) -> dict:
    """All scores of a set of predictions.

    Args:
        predictions: at clip or at track level.
        genres: names in label order.

    Returns:
        `count`; `loss`, the mean cross entropy in nats; `top1`; `precision` and `recall`, macro
        means over classes; `f1`, 2PR/(P+R) of those two means; `accuracy_ovr`, the macro mean of
        (TP+TN)/all; `f1_macro`, the mean of per-class F1; `per_class`, `{genre: {precision, recall,
        f1, support}}`; `confusion_matrix`, `[true][predicted]`.
    """
    k, n = len(genres), len(predictions.label)
    confusion = np.zeros((k, k), np.int64)
    np.add.at(confusion, (predictions.label, predictions.log_probs.argmax(axis=1)), 1)
    hits, support, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = _ratio(hits, predicted), _ratio(hits, support)
    f1 = _ratio(2 * hits, support + predicted)
    losses = -np.take_along_axis(predictions.log_probs, predictions.label[:, None], axis=1)
    return {
        "count": n,
        "loss": float(losses.mean(dtype=np.float64)),
        "top1": float(hits.sum() / n),
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(_ratio(2 * precision.mean() * recall.mean(), precision.mean() + recall.mean())),
        "accuracy_ovr": float((1 - (support + predicted - 2 * hits) / n).mean()),
        "f1_macro": float(f1.mean()),
        "per_class": {
            genre: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(support[i]),
            }
            for i, genre in enumerate(genres)
        },
        "confusion_matrix": confusion.tolist(),
    }


def track_predictions(clips: Predictions) -> Predictions:
    """Joins the clips of each track: the mean of their log-probabilities, made to sum to one again.

    Returns:
        One row a track, in the order of track ids, with clip 0.
    """
    track_id, first, owner = np.unique(clips.track_id, return_index=True, return_inverse=True)
    mean = np.zeros((len(track_id), clips.log_probs.shape[1]))
    np.add.at(mean, owner, clips.log_probs)
    mean /= np.bincount(owner)[:, None]
    mean -= np.log(np.exp(mean).sum(axis=1, keepdims=True))
    return Predictions(track_id, np.zeros_like(track_id), clips.label[first], mean)


def _ratio(numerator, denominator) -> np.ndarray:
    """Elementwise quotient, with 0/0 = 0."""
    return np.divide(
        numerator, denominator, out=np.zeros(np.shape(denominator)), where=denominator != 0
    )
