"""A probe's head, fitted by scikit-learn to what frozen networks say of tracks.

Logistic regressions, and machines of radial basis functions with one machine a genre against the
rest, are fitted to the training tracks. That with the lowest log-loss of the validation tracks, at
the temperature that is the best for it, is kept; then it is fitted once more, to both.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mgc_jax import console
from mgc_jax.errors import InputError
from mgc_jax.results.calibration import apply_temperature, fit_temperature
from mgc_jax.results.metrics import SplitPredictions, normalised
from mgc_jax.training.step import class_weights

# Of scikit-learn's logistic regression, which stops by itself long before.
_MAX_ITERATIONS = 10_000


class TrackStatistics(NamedTuple):
    """Tracks as a head sees them: `track_id` and `label` `[n] int64`, `statistics` `[n, width]`."""

    track_id: np.ndarray
    label: np.ndarray
    statistics: np.ndarray


class Head(NamedTuple):
    """A fitted head.

    Attributes:
        settings: its penalty and, of a radial machine, gamma times the width.
        params: `standardise` and `classifier` of `models.probe.Probe`, in float64.
        temperature: what the logits are to be divided by.
        validation: what it said of the validation tracks, at that temperature, before it was fitted
            to them too.
    """

    settings: dict
    params: dict
    temperature: float
    validation: SplitPredictions

    @property
    def support(self) -> int:
        """Vectors of a radial machine; 0 of a logistic regression."""
        classifier = self.params["classifier"]
        return classifier["kernel"].shape[1] if "gamma" in classifier else 0

    @property
    def loss(self) -> float:
        """Log-loss of the validation tracks."""
        found = self.validation
        return -float(found.log_probs[np.arange(len(found.label)), found.label].mean())

    def __str__(self) -> str:
        kind = "radial machine" if self.support else "logistic regression"
        return ", ".join([kind, *(f"{name} {value:g}" for name, value in self.settings.items())])


def fit_head(
    train: TrackStatistics, held_out: TrackStatistics, genres: Sequence[str], config: ConfigDict
) -> Head:
    """Fits all heads that `config.probe` lists to training tracks, and keeps the best.

    That is fitted once more to all these tracks, where `config.probe.refit` says so.

    Args:
        train: to fit to.
        held_out: the validation tracks, to choose and to calibrate by.
        genres: in label order.
        config: keys `probe` and `balance_classes`.

    Raises:
        InputError: a genre has no training track, or no head is listed.
    """
    tried = list(_settings(len(train.label), config))
    _check(train, genres, tried)
    best = None
    with console.progress_bar(total=len(tried), description="heads", unit="head") as bar:
        for settings, params in zip(tried, _fit(train, tried, config), strict=True):
            head = _calibrated(settings, params, held_out)
            if best is None or head.loss < best.loss:
                best = head
            bar.update()
    if config.probe.refit:
        together = (np.concatenate(pair) for pair in zip(train, held_out, strict=True))
        (params,) = _fit(TrackStatistics(*together), [best.settings], config)
        best = best._replace(params=params)
    return best


def decide(params: dict, statistics: np.ndarray) -> np.ndarray:
    """What `Probe.decide` computes, in NumPy: `[n, width]` to `[n, classes] float64`."""
    x = _standardised(params["standardise"], statistics)
    classifier = params["classifier"]
    if "gamma" in classifier:
        x = np.exp(-classifier["gamma"] * _square_distances(x, classifier["kernel"].T))
        classifier = classifier["coefficients"]
    return x @ classifier["kernel"] + classifier["bias"]


def _settings(tracks: int, config: ConfigDict) -> Iterator[dict]:
    """What is tried on so many tracks."""
    for penalty in config.probe.logistic_penalties:
        yield {"penalty": penalty}
    if tracks <= config.probe.radial_tracks:
        for gamma in config.probe.radial_gammas:
            for penalty in config.probe.radial_penalties:
                yield {"penalty": penalty, "gamma": gamma}


def _check(train: TrackStatistics, genres: Sequence[str], tried: Sequence[dict]) -> None:
    """Raises InputError where there is nothing to fit."""
    if not tried:
        raise InputError(
            "config.probe lists no head: give logistic_penalties, or radial_penalties and "
            "radial_gammas (and a higher radial_tracks)"
        )
    if bad := [settings for settings in tried if min(settings.values()) <= 0]:
        raise InputError(f"config.probe: {bad[0]}: need numbers above 0")
    missing = set(range(len(genres))) - set(train.label.tolist())
    if missing or len(genres) < 2:
        names = ", ".join(genres[label] for label in sorted(missing)) or "all but one"
        raise InputError(f"no training track of {names}: a probe needs some of each of its genres")


def _fit(tracks: TrackStatistics, tried: Sequence[dict], config: ConfigDict) -> Iterator[dict]:
    """A head's parameters for each of the settings that are tried."""
    standardise = _moments(tracks.statistics)
    x = _standardised(standardise, tracks.statistics)
    weights = np.ones(len(x))
    if config.balance_classes:
        weights = class_weights(tracks.label, tracks.label.max() + 1)[tracks.label]
    # Few tracks span few of the directions: a logistic regression is the same along these alone, as
    # its penalty is the same in all directions, and takes a fraction of the time.
    basis = np.linalg.qr(x.T)[0] if len(x) < x.shape[1] else np.eye(x.shape[1])
    along = x @ basis
    radial = any("gamma" in settings for settings in tried)
    distances = _square_distances(along, along) if radial else np.empty((0, 0))
    for settings in tried:
        if "gamma" in settings:
            classifier = _fit_radial(x, tracks.label, weights, distances, **settings)
        else:
            classifier = _fit_logistic(along, tracks.label, weights, **settings)
            classifier["kernel"] = basis @ classifier["kernel"]
        yield {"standardise": standardise, "classifier": classifier}


def _moments(statistics: np.ndarray) -> dict:
    """Mean and scale of each column; of one that never changes, the scale is 1."""
    scale = statistics.std(axis=0)
    mean = statistics.mean(axis=0)
    return {"mean": mean, "scale": np.where(scale > 1e-6 * (1 + np.abs(mean)), scale, 1.0)}


def _standardised(moments: dict, statistics: np.ndarray) -> np.ndarray:
    return (statistics - moments["mean"]) / moments["scale"]


def _fit_logistic(x: np.ndarray, label: np.ndarray, weights: np.ndarray, penalty: float) -> dict:
    """A multinomial logistic regression; of two genres, scikit-learn gives the second one's row."""
    from sklearn.linear_model import LogisticRegression  # takes a second

    found = LogisticRegression(C=penalty, max_iter=_MAX_ITERATIONS).fit(x, label, weights)
    kernel, bias = found.coef_.T, found.intercept_
    if len(bias) == 1:
        kernel = np.concatenate([0 * kernel, kernel], axis=1)
        bias = np.concatenate([0 * bias, bias])
    return {"kernel": kernel, "bias": bias}


def _fit_radial(
    x: np.ndarray,
    label: np.ndarray,
    weights: np.ndarray,
    distances: np.ndarray,
    penalty: float,
    gamma: float,
) -> dict:
    """A support vector machine of each genre against the rest; support vectors are shared."""
    from sklearn.svm import SVC  # takes a second

    gamma = gamma / x.shape[1]
    bells = np.exp(-gamma * distances)
    classes = label.max() + 1
    kernel = np.zeros((len(x), classes))
    bias = np.zeros(classes)
    for genre in range(classes):
        machine = SVC(C=penalty, kernel="precomputed").fit(bells, label == genre, weights)
        kernel[machine.support_, genre] = machine.dual_coef_[0]
        bias[genre] = machine.intercept_[0]
    used = kernel.any(axis=1)
    return {
        "kernel": x[used].T,
        "gamma": np.float64(gamma),
        "coefficients": {"kernel": kernel[used], "bias": bias},
    }


def _square_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of all rows `[n, width]` and `[m, width]`: `[n, m]`."""
    squares = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    return np.maximum(squares - 2 * x @ y.T, 0)


def _calibrated(settings: dict, params: dict, held_out: TrackStatistics) -> Head:
    """A head with the temperature that gives the held-out tracks the lowest log-loss."""
    log_probs = normalised(decide(params, held_out.statistics))
    clip = np.zeros_like(held_out.track_id)
    found = SplitPredictions(held_out.track_id, clip, held_out.label, log_probs)
    temperature = fit_temperature(found)
    found = found._replace(log_probs=apply_temperature(log_probs, temperature))
    return Head(settings, params, temperature, found)
