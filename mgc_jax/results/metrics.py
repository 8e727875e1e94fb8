"""Scores of a classifier, computed once from all its predictions, so that batch sizes, devices and
hosts cannot change them.

0/0 counts as 0: the precision of a genre never predicted, the recall of one that never occurs. The
ROC-AUC of a genre that never (or always) occurs does not exist: None, and no part of the mean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Those with an interval, of `classification_metrics`.
SCORES = (
    "top1",
    "f1",
    "f1_macro",
    "precision",
    "recall",
    "roc_auc",
    "top3",
    "accuracy_ovr",
    "loss",
    "ece",
)
CALIBRATION_BINS = 15  # of equal width, as in Guo et al. 2017
RESAMPLES = 1000
_CHUNK = 100  # resamples at a time, which bounds memory


class SplitPredictions(NamedTuple):
    """What a network said of a set of clips (or tracks), row by row.

    Attributes:
        track_id: `[n] int64`.
        clip: `[n] int64`, position of the clip in its track.
        label: `[n] int64`, the true class.
        log_probs: `[n, classes] float32`.
        tracks: what a network that reads whole tracks said of these clips' tracks; None where that
            is the mean of the clips' log-probabilities.
    """

    track_id: np.ndarray
    clip: np.ndarray
    label: np.ndarray
    log_probs: np.ndarray
    tracks: "SplitPredictions | None" = None


def classification_metrics(predictions: SplitPredictions, genres: Sequence[str]) -> dict:
    """All scores of a set of predictions.

    Args:
        predictions: at clip or at track level.
        genres: names in label order.

    Returns:
        `count`; `loss`, the mean cross entropy (log-loss) in nats; `top1` and `top3`, the shares
        with the true class among the likeliest; `precision` and `recall`, macro means over classes;
        `f1`, 2PR/(P+R) of those two means; `accuracy_ovr`, the macro mean of (TP+TN)/all;
        `f1_macro`, the mean of per-class F1; `roc_auc`, the macro mean of one-vs-rest areas;
        `ece`, the expected calibration error (see `_calibration`); `per_class`, `{genre:
        {precision, recall, f1, roc_auc, support}}`; `confusion_matrix`, `[true][predicted]`;
        `reliability`, a list of `{low, high, count, confidence, accuracy}`, one a bin.
    """
    scores, per_class, confusion = _scores(predictions, np.ones((1, len(predictions.label))))
    confusion = confusion[0].astype(int)
    return {
        "count": len(predictions.label),
        **{name: _number(values[0]) for name, values in scores.items()},
        "per_class": {
            genre: {name: _number(values[0, i]) for name, values in per_class.items()}
            | {"support": int(confusion[i].sum())}
            for i, genre in enumerate(genres)
        },
        "confusion_matrix": confusion.tolist(),
        "reliability": reliability(predictions),
    }


def bootstrap(
    predictions: SplitPredictions, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, np.ndarray]:
    """Scores of test sets whose tracks are drawn anew, with replacement, each with all its clips.

    Predictions of the same tracks get the same draws, so that differences of two networks' results
    are those of a paired bootstrap. A class that a draw lost is left out of the draw's macro means
    (as 0/0 = 0, it would make small test sets look worse than they are).

    Returns:
        For each score of `classification_metrics`, `[resamples] float64`.
    """
    tracks, owner = np.unique(predictions.track_id, return_inverse=True)
    rng = np.random.default_rng(seed)
    chunks = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        times = rng.multinomial(len(tracks), np.full(len(tracks), 1 / len(tracks)), size=size)
        chunks.append(_scores(predictions, times[:, owner].astype(float))[0])
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def interval(values: np.ndarray) -> list[float | None]:
    """The middle 95% of bootstrapped values `[resamples]`: their 2.5th and 97.5th percentiles."""
    values = values[~np.isnan(values)]
    return [float(x) for x in np.percentile(values, [2.5, 97.5])] if len(values) else [None, None]


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact test of two classifiers on the same rows: the two-sided p-value.

    Args:
        first: `[n] bool`, where one classifier is right.
        second: `[n] bool`, where the other is.

    Examples:
        >>> mcnemar(np.array([True] * 6), np.array([False] * 6))  # 2 * (1/2) ** 6
        0.03125
    """
    only_first = int(np.sum(first & ~second))
    only_second = int(np.sum(~first & second))
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest  # half a second to import, and predicting needs none of it

    return float(binomtest(only_first, only_first + only_second).pvalue)


def reliability(predictions: SplitPredictions) -> list[dict]:
    """How often the network is right, by how sure it is: one row a bin of its top probability.

    Returns:
        `low` (not in the bin, but for 0) and `high` (in it), `count`, the mean `confidence` and the
        `accuracy`, both None in an empty bin.
    """
    once = np.ones((1, len(predictions.label)))
    count, confidence, correct = (sums[0] for sums in _calibration(predictions, once))
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    return [
        {
            "low": float(edges[i]),
            "high": float(edges[i + 1]),
            "count": int(count[i]),
            "confidence": float(confidence[i] / count[i]) if count[i] else None,
            "accuracy": float(correct[i] / count[i]) if count[i] else None,
        }
        for i in range(CALIBRATION_BINS)
    ]


def track_predictions(clips: SplitPredictions) -> SplitPredictions:
    """Joins the clips of each track by `mean_log_probs`, unless they come with their tracks.

    Returns:
        One row a track, in the order of track ids, with clip 0.
    """
    if clips.tracks is not None:
        return clips.tracks
    track_id, mean = mean_log_probs(clips.log_probs, clips.track_id)
    first = np.unique(clips.track_id, return_index=True)[1]
    return SplitPredictions(track_id, np.zeros_like(track_id), clips.label[first], mean)


def describe_tracks(clips: SplitPredictions) -> str:
    """How `track_predictions` joins these clips, for people."""
    if clips.tracks is None:
        return "A track's prediction is the mean of its clips' log-probabilities."
    return (
        "A track's prediction is that for the mean and the deviation of all its patches at once, "
        "not a mean over its clips."
    )


def mean_log_probs(log_probs: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each group's log-probabilities, made to sum to one again.

    Args:
        log_probs: `[n, classes]`.
        groups: `[n]`, the track (file, ...) of each row.

    Returns:
        The groups `[m]`, sorted, and `[m, classes] float64`.

    Examples:
        >>> clips = np.log([[0.9, 0.1], [0.5, 0.5]])
        >>> _, track = mean_log_probs(clips, np.array([7, 7]))
        >>> np.exp(track).round(2).tolist()  # sqrt(0.9 * 0.5) against sqrt(0.1 * 0.5)
        [[0.75, 0.25]]
    """
    names, owner = np.unique(groups, return_inverse=True)
    return names, normalised(
        _sum_by(owner, log_probs.T, len(names)).T / np.bincount(owner)[:, None]
    )


def normalised(log_probs: np.ndarray) -> np.ndarray:
    """Rows `[n, classes]` whose exponentials sum to one."""
    return log_probs - np.logaddexp.reduce(log_probs, axis=1, keepdims=True)


def _scores(predictions: SplitPredictions, weights: np.ndarray) -> tuple[dict, dict, np.ndarray]:
    """Scores `{name: [b]}`, scores per class `{name: [b, k]}` and confusion matrices `[b, k, k]`,
    each row of `weights [b, n]` saying how often every prediction counts.
    """
    label, log_probs = predictions.label, predictions.log_probs
    k = log_probs.shape[1]
    total = weights.sum(axis=1)
    confusion = _sum_by(label * k + log_probs.argmax(axis=1), weights, k * k).reshape(-1, k, k)
    hits = confusion.diagonal(axis1=1, axis2=2)
    support = confusion.sum(axis=2)
    predicted = confusion.sum(axis=1)
    per_class = {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, support),
        "f1": _ratio(2 * hits, support + predicted),
        "roc_auc": _roc_auc(predictions, weights),
    }
    counted = (support > 0) | (np.bincount(label, minlength=k) == 0)
    precision, recall, f1_macro = (
        per_class[name].mean(axis=1, where=counted) for name in ("precision", "recall", "f1")
    )
    area = per_class["roc_auc"]
    exists = ~np.isnan(per_class["roc_auc"])
    own = np.take_along_axis(log_probs, label[:, None], axis=1)
    # Equal ones stand in the order of classes, as argmax takes them.
    before = (log_probs > own) | ((log_probs == own) & (np.arange(k) < label[:, None]))
    _, confidence, correct = _calibration(predictions, weights)
    scores = {
        "loss": _ratio(weights @ -own[:, 0].astype(float), total),
        "top1": _ratio(hits.sum(axis=1), total),
        "top3": _ratio(weights @ (before.sum(axis=1) < 3), total),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "accuracy_ovr": (1 - _ratio(support + predicted - 2 * hits, total[:, None])).mean(axis=1),
        "f1_macro": f1_macro,
        "roc_auc": _ratio(np.nansum(area, axis=1), exists.sum(axis=1), of_zero=np.nan),
        "ece": _ratio(np.abs(confidence - correct).sum(axis=1), total),
    }
    return scores, per_class, confusion


def _roc_auc(predictions: SplitPredictions, weights: np.ndarray) -> np.ndarray:
    """One-vs-rest areas `[b, k]`: how often a clip of the class gets a higher probability of it
    than one of another class, a tie counting half; nan where either is missing.
    """
    areas = []
    for label, scores in enumerate(predictions.log_probs.T):
        values, rank = np.unique(scores, return_inverse=True)
        own = predictions.label == label
        inside, outside = (_sum_by(rank[x], weights[:, x], len(values)) for x in (own, ~own))
        below = outside.cumsum(axis=1) - outside / 2
        pairs = inside.sum(axis=1) * outside.sum(axis=1)
        areas.append(_ratio((inside * below).sum(axis=1), pairs, of_zero=np.nan))
    return np.stack(areas, axis=1)


def _calibration(predictions: SplitPredictions, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """Sums `[b, bins]` over bins of the top probability: of rows, of that probability, of hits.

    The expected calibration error (Guo et al. 2017, eq. 3) is the mean over rows of the distance
    between a bin's mean probability and its share of hits.
    """
    confidence = np.exp(predictions.log_probs.max(axis=1).astype(float))
    correct = predictions.log_probs.argmax(axis=1) == predictions.label
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.digitize(confidence, edges[1:-1], right=True)
    return tuple(
        _sum_by(bins, weights * values, CALIBRATION_BINS) for values in (1, confidence, correct)
    )


def _sum_by(groups: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Sums the columns of `values [b, n]` that `groups [n]` gives the same number: `[b, size]`."""
    return np.stack([np.bincount(groups, row, size) for row in values])


def _ratio(numerator, denominator, of_zero: float = 0.0) -> np.ndarray:
    """Elementwise quotient, with 0/0 = `of_zero`."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    out = np.full(shape, of_zero)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
