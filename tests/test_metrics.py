"""Scores, against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn import metrics as sk

from mgc_jax.metrics import Predictions, classification_metrics, track_predictions

GENRES = ["a", "b", "c", "d", "e"]


def random_predictions(labels, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), len(GENRES))) + 1.5 * np.eye(len(GENRES))[labels]
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    n = np.arange(len(labels))
    return Predictions(n // 3, n % 3, np.asarray(labels), log_probs.astype(np.float32))


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
    one_vs_rest = np.mean([sk.accuracy_score(labels == k, predicted == k) for k in range(5)])
    assert found["accuracy_ovr"] == pytest.approx(one_vs_rest)


def test_by_hand():
    # true a a b c; predicted a b b b
    log_probs = np.log(np.eye(3)[[0, 1, 1, 1]] * 0.7 + 0.1)
    predictions = Predictions(np.arange(4), np.zeros(4, int), np.array([0, 0, 1, 2]), log_probs)
    found = classification_metrics(predictions, ["a", "b", "c"])
    precision, recall = (1 + 1 / 3 + 0) / 3, (1 / 2 + 1 + 0) / 3
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert found["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert found["top1"] == 0.5
    assert found["accuracy_ovr"] == pytest.approx(1 - 2 * (1 - 0.5) / 3)  # DESIGN's identity
    assert found["per_class"]["b"] == {
        "precision": pytest.approx(1 / 3),
        "recall": 1.0,
        "f1": pytest.approx(0.5),
        "support": 1,
    }


def test_track_is_the_mean_of_its_clips_log_probabilities():
    clips = Predictions(
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
