"""Scores, against scikit-learn and by hand."""

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

from mgc_jax.results.metrics import (
    SplitPredictions,
    bootstrap,
    classification_metrics,
    interval,
    mcnemar,
    mean_log_probs,
    track_predictions,
)

GENRES = ["a", "b", "c", "d", "e"]


def random_predictions(labels, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), len(GENRES))) + 1.5 * np.eye(len(GENRES))[labels]
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    n = np.arange(len(labels))
    return SplitPredictions(n // 3, n % 3, np.asarray(labels), log_probs.astype(np.float32))


@pytest.mark.parametrize("absent", [[], [3], [0, 1]])
def test_equals_scikit_learn(absent):
    rng = np.random.default_rng(1)
    labels = rng.choice([k for k in range(5) if k not in absent], size=200)
    predictions = random_predictions(labels)
    if absent:  # a class that neither occurs nor is predicted
        predictions.log_probs[:, absent] = -50
        total = np.exp(predictions.log_probs).sum(axis=1, keepdims=True)
        predictions.log_probs[:] -= np.log(total)
    predicted = predictions.log_probs.argmax(axis=1)
    found = classification_metrics(predictions, GENRES)
    expected = {"labels": range(5), "average": "macro", "zero_division": 0}
    assert found["top1"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert found["precision"] == pytest.approx(sk.precision_score(labels, predicted, **expected))
    assert found["recall"] == pytest.approx(sk.recall_score(labels, predicted, **expected))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, **expected))
    probabilities = np.exp(predictions.log_probs.astype(np.float64))
    probabilities[np.arange(200), labels] += 1 - probabilities.sum(axis=1)  # exact rows for sklearn
    expected_loss = sk.log_loss(labels, probabilities, labels=range(5))
    assert found["loss"] == pytest.approx(expected_loss, rel=1e-5)
    confusion = sk.confusion_matrix(labels, predicted, labels=range(5))
    assert found["confusion_matrix"] == confusion.tolist()
    top3 = sk.top_k_accuracy_score(labels, probabilities, k=3, labels=range(5))
    assert found["top3"] == pytest.approx(top3)
    areas = {k: sk.roc_auc_score(labels == k, probabilities[:, k]) for k in set(labels.tolist())}
    assert found["roc_auc"] == pytest.approx(np.mean(list(areas.values())))
    by_class = sk.precision_recall_fscore_support(
        labels, predicted, labels=range(5), zero_division=0
    )
    for k, (genre, row) in enumerate(found["per_class"].items()):
        assert genre == GENRES[k]
        assert [row[x] for x in ("precision", "recall", "f1", "support")] == pytest.approx(
            [float(values[k]) for values in by_class]
        )
        assert row["roc_auc"] == (pytest.approx(areas[k]) if k in areas else None)
    one_vs_rest = np.mean([sk.accuracy_score(labels == k, predicted == k) for k in range(5)])
    assert found["accuracy_ovr"] == pytest.approx(one_vs_rest)


def test_by_hand():
    # true a a b c; predicted a b b b
    log_probs = np.log(np.eye(3)[[0, 1, 1, 1]] * 0.7 + 0.1)
    predictions = SplitPredictions(
        np.arange(4), np.zeros(4, int), np.array([0, 0, 1, 2]), log_probs
    )
    found = classification_metrics(predictions, ["a", "b", "c"])
    precision, recall = (1 + 1 / 3 + 0) / 3, (1 / 2 + 1 + 0) / 3
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["top1"] == 0.5
    assert found["accuracy_ovr"] == pytest.approx(1 - 2 * (1 - 0.5) / 3)  # DESIGN's identity
    # b: the true clip has 0.8, the others 0.1, 0.8, 0.8: one win and two ties of three
    assert found["per_class"]["b"] == {
        "precision": pytest.approx(1 / 3),
        "recall": 1.0,
        "f1": pytest.approx(0.5),
        "roc_auc": pytest.approx(2 / 3),
        "support": 1,
    }


def test_classes_that_never_occur_or_are_never_predicted():
    # true a a b; predicted a c a: b is never predicted, c never occurs, d neither
    log_probs = np.log(np.eye(4)[[0, 2, 0]] * 0.6 + 0.1)
    predictions = SplitPredictions(np.arange(3), np.zeros(3, int), np.array([0, 0, 1]), log_probs)
    found = classification_metrics(predictions, ["a", "b", "c", "d"])
    rows = found["per_class"]
    assert [rows[x]["precision"] for x in "abcd"] == [0.5, 0, 0, 0]
    assert [rows[x]["recall"] for x in "abcd"] == [0.5, 0, 0, 0]
    assert [rows[x]["f1"] for x in "abcd"] == [0.5, 0, 0, 0]
    assert [rows[x]["support"] for x in "abcd"] == [2, 1, 0, 0]
    # a: 0.7 and 0.1 against 0.7, a tie and a loss; b: 0.1 against 0.1 and 0.1, two ties
    assert [rows[x]["roc_auc"] for x in "abcd"] == [0.25, 0.5, None, None]
    assert found["roc_auc"] == pytest.approx(0.375)
    assert found["f1"] == found["precision"] == found["recall"] == 0.125
    one_class = SplitPredictions(*(array[:2] for array in predictions[:4]))
    assert classification_metrics(one_class, ["a", "b", "c", "d"])["roc_auc"] is None


def test_calibration_by_hand():
    # sure at 0.70, 0.65 (one bin of 15, from 0.6 to 0.667), 0.66 and 0.95; the second is wrong
    sure = np.array([0.70, 0.65, 0.66, 0.95])
    log_probs = np.log(np.stack([sure, 1 - sure], axis=1))
    predictions = SplitPredictions(
        np.arange(4), np.zeros(4, int), np.array([0, 1, 0, 0]), log_probs
    )
    found = classification_metrics(predictions, ["a", "b"])
    assert found["ece"] == pytest.approx((abs(1.31 - 1) + 0.3 + 0.05) / 4)
    full = {round(row["high"] * 15): row for row in found["reliability"] if row["count"]}
    assert {number: row["count"] for number, row in full.items()} == {10: 2, 11: 1, 15: 1}
    assert full[10]["confidence"] == pytest.approx(0.655) and full[10]["accuracy"] == 0.5
    empty = found["reliability"][0]
    assert empty["count"] == 0 and empty["accuracy"] is None and empty["low"] == 0


def test_bootstrap_draws_tracks_with_all_their_clips():
    """Against scores of test sets put together by hand, clip by clip, from the same draws."""
    predictions = random_predictions(np.repeat(np.arange(30) % 5, 3), seed=3)
    found = bootstrap(predictions, resamples=20, seed=7)
    times = np.random.default_rng(7).multinomial(30, np.full(30, 1 / 30), size=20)
    for i, drawn in enumerate(times):
        rows = np.concatenate(
            [np.repeat(np.arange(3 * t, 3 * t + 3), n) for t, n in enumerate(drawn)]
        )
        expected = classification_metrics(
            SplitPredictions(*(x[rows] for x in predictions[:4])), GENRES
        )
        assert all(drawn.reshape(6, 5).sum(axis=0) > 0), "a class was lost: take another seed"
        for name, values in found.items():
            assert values[i] == pytest.approx(expected[name]), name


def test_interval_is_as_wide_as_theory_says():
    """Top-1 of n independent tracks: a normal interval of +-1.96 sqrt(p (1 - p) / n)."""
    labels = np.random.default_rng(5).integers(5, size=1000)
    predictions = random_predictions(labels)._replace(track_id=np.arange(1000))
    top1 = classification_metrics(predictions, GENRES)["top1"]
    low, high = interval(bootstrap(predictions)["top1"])
    width = 1.96 * np.sqrt(top1 * (1 - top1) / 1000)
    assert low == pytest.approx(top1 - width, abs=0.15 * width)
    assert high == pytest.approx(top1 + width, abs=0.15 * width)


def test_a_class_that_a_draw_lost_leaves_its_means():
    """Perfect predictions stay perfect, however few tracks a class has."""
    log_probs = np.log(np.eye(3)[[0, 1, 2]] * 0.7 + 0.1)
    perfect = SplitPredictions(np.arange(3), np.zeros(3, int), np.arange(3), log_probs)
    found = bootstrap(perfect, resamples=50)
    for name in ("top1", "precision", "recall", "f1", "f1_macro"):
        np.testing.assert_allclose(found[name], 1)
    assert np.isnan(found["roc_auc"]).any() and interval(found["roc_auc"]) == [1, 1]


def test_mcnemar_is_the_binomial_test_of_the_differing_rows():
    first = np.array([1] * 9 + [0] * 2 + [1] * 20 + [0] * 5, bool)
    second = np.array([0] * 9 + [1] * 2 + [1] * 20 + [0] * 5, bool)
    assert mcnemar(first, second) == pytest.approx(binomtest(2, 11).pvalue)
    assert mcnemar(first, first) == 1
    assert mcnemar(np.ones(5000, bool), np.zeros(5000, bool)) < 1e-300


def test_track_is_the_mean_of_its_clips_log_probabilities():
    clips = SplitPredictions(
        np.array([7, 3, 7]),
        np.array([0, 0, 1]),
        np.array([1, 0, 1]),
        np.log([[0.6, 0.4], [0.9, 0.1], [0.1, 0.9]]),
    )
    tracks = track_predictions(clips)
    assert tracks.track_id.tolist() == [3, 7]
    assert tracks.label.tolist() == [0, 1]
    geometric = np.sqrt([0.6 * 0.1, 0.4 * 0.9])
    np.testing.assert_allclose(np.exp(tracks.log_probs[1]), geometric / geometric.sum())
    np.testing.assert_allclose(np.exp(tracks.log_probs[0]), [0.9, 0.1])


def test_mean_of_far_apart_log_probabilities_is_finite():
    names, mean = mean_log_probs(np.array([[0, -2000.0], [-2000, 0], [-1, -1]]), ["x", "x", "a"])
    assert names.tolist() == ["a", "x"]
    np.testing.assert_allclose(mean, np.log(0.5))
