"""Honest probabilities: the temperature of a run, against scikit-learn and by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

import mgc_jax
from mgc_jax.errors import InputError
from mgc_jax.results.calibration import apply_temperature, fit_temperature
from mgc_jax.results.files import CALIBRATION, read_predictions, write_evaluation
from mgc_jax.results.metrics import (
    SplitPredictions,
    classification_metrics,
    normalised,
    track_predictions,
)
from mgc_jax.training.evaluate import calibrate, evaluate_best
from mgc_jax.training.network import load_run

GENRES = ["a", "b", "c", "d"]


def too_sure(count, times=3.0, seed=0):
    """Predictions whose logits are `times` those that the labels were drawn by."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, len(GENRES))) * 2
    label = (normalised(logits) + rng.gumbel(size=logits.shape)).argmax(axis=1)
    n = np.arange(count)
    log_probs = normalised(logits * times).astype(np.float32)
    return SplitPredictions(n // 3, n % 3, label, log_probs)


class Known(ClassifierMixin, BaseEstimator):
    """A classifier whose input is its logits."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


@pytest.mark.parametrize("times", [0.4, 3.0])
def test_temperature_is_scikit_learns(times):
    found = too_sure(3000, times)
    temperature = fit_temperature(found)
    assert temperature == pytest.approx(times, rel=0.1)
    reference = CalibratedClassifierCV(
        FrozenEstimator(Known().fit(found.log_probs, found.label)),
        method="temperature",
        ensemble=False,
    )
    reference.fit(found.log_probs, found.label)
    expected = reference.predict_proba(found.log_probs)
    after = np.exp(apply_temperature(found.log_probs, temperature))
    np.testing.assert_allclose(after, expected, atol=3e-3)
    before, after = (
        classification_metrics(found._replace(log_probs=log_probs), GENRES)
        for log_probs in (found.log_probs, np.log(after))
    )
    assert after["loss"] < before["loss"] and after["ece"] < 0.5 * before["ece"]
    assert after["top1"] == before["top1"]


def test_a_few_tracks_do_not_make_certain():
    """All of twelve are right: an unbounded fit would make each probability 1."""
    label = np.arange(12) % 4
    log_probs = normalised(np.eye(4)[label] * 3.0)
    temperature = fit_temperature(SplitPredictions(np.arange(12), label * 0, label, log_probs))
    top = np.exp(apply_temperature(log_probs, temperature)).max(axis=1)
    np.testing.assert_allclose(top, 13 / 16, atol=1e-3)
    wrong = SplitPredictions(np.arange(12), label * 0, (label + 1) % 4, log_probs)
    assert fit_temperature(wrong) > 10  # it knows nothing: all genres alike


def test_a_track_is_the_mean_of_its_clips_before_and_after():
    found = too_sure(60)
    first = track_predictions(found._replace(log_probs=apply_temperature(found.log_probs, 2.5)))
    then = apply_temperature(track_predictions(found).log_probs, 2.5)
    np.testing.assert_allclose(first.log_probs, then, atol=1e-5)
    np.testing.assert_array_equal(apply_temperature(found.log_probs, 1.0), found.log_probs)


@pytest.fixture
def run(workdir, tmp_path):
    """A copy of the trained run, to change."""
    return Path(shutil.copytree(workdir, tmp_path / "run"))


def test_training_fits_it_on_validation_tracks(run, dataset):
    network, *_, epoch, temperature = load_run(run)
    stored = json.loads((run / CALIBRATION).read_text())
    assert stored.pop("checksum")
    assert stored == {"epoch": epoch, "temperature": temperature} and temperature != 1
    (run / CALIBRATION).unlink()
    calibrate(run, network, dataset.splits["validation"])
    assert json.loads((run / CALIBRATION).read_text()).items() > stored.items()
    predictions, _ = evaluate_best(run, network, dataset.splits["validation"])
    tracks = track_predictions(predictions)
    assert temperature == fit_temperature(tracks)


@pytest.mark.parametrize("change", [("checksum", "chdcksum"), ('"epoch": ', '"epoch": 1')])
def test_a_changed_file_is_noticed(run, change):
    """Whatever has changed, the name of its checksum included."""
    path = run / CALIBRATION
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(InputError, match="has changed since it was written"):
        load_run(run)


def test_predict_and_the_report_agree(run, corpus, dataset):
    """Whatever the temperature is, or if the workdir is of a version that had none."""
    network, *_, epoch, _ = load_run(run)
    predictions, _ = evaluate_best(run, network, dataset.splits["test"])
    genres = list(network.genres)
    track = int(predictions.track_id[0])
    song = corpus / "fma_small" / f"{track // 1000:03d}" / f"{track:06d}.mp3"
    tops = []
    for temperature in (None, 4.0, 0.3):
        text = json.dumps({"epoch": epoch, "temperature": temperature})
        (run / CALIBRATION).write_text(text)
        if temperature is None:
            (run / CALIBRATION).unlink()
        scores = write_evaluation(run, predictions, genres, epoch)
        assert scores["temperature"] == (temperature or 1)
        raw = classification_metrics(track_predictions(predictions), genres)
        assert scores["track"]["uncalibrated"] == {"loss": raw["loss"], "ece": raw["ece"]}
        assert (scores["track"]["loss"] == raw["loss"]) == (temperature is None)
        assert (
            scores["clip"]["confusion_matrix"]
            == classification_metrics(predictions, genres)["confusion_matrix"]
        )
        reported = track_predictions(read_predictions(run, genres))
        reported = np.exp(reported.log_probs[reported.track_id == track][0])
        (result,) = mgc_jax.load(run).predict(song)
        for genre, probability in zip(genres, reported, strict=True):
            assert result.ranking[genre] == pytest.approx(probability, abs=2e-3)
        tops.append(reported.max())
    assert tops[1] < tops[0] < tops[2]


def test_a_temperature_is_of_one_epoch(run):
    epoch = load_run(run).epoch
    (run / CALIBRATION).write_text(json.dumps({"epoch": epoch + 1, "temperature": 3.0}))
    assert load_run(run).temperature == 1
    for bad in ("0", '"hot"', "NaN", "Infinity", "null"):
        (run / CALIBRATION).write_text(f'{{"epoch": {epoch}, "temperature": {bad}}}')
        with pytest.raises(InputError, match="calibration.json.* is no number above 0"):
            load_run(run)


def test_the_report_shows_before_and_after(workdir):
    page = (workdir / "report" / "index.html").read_text()
    assert "fitted on the validation tracks" in page and "Calibration error, tracks" in page
