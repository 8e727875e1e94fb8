"""How far a network's answers can be trusted, fitted after the training on held-out tracks.

The temperature makes probabilities honest; it does not change which genre is the likeliest.
"""

import numpy as np

from mgc_jax.results.metrics import SplitPredictions, normalised

_TEMPERATURES = (0.05, 20.0)


def fit_temperature(tracks: SplitPredictions) -> float:
    """The temperature that gives held-out tracks the lowest log-loss.

    This is the temperature scaling of Guo et al. 2017 (On Calibration of Modern Neural Networks).
    A network that is right about all of a few tracks would get probabilities of 0 and 1 by it. So
    the true genre's target is (n + 1) / (n + genres) of n tracks, not 1, as in Platt 1999
    (Probabilistic Outputs for Support Vector Machines); of many tracks this changes little.

    Args:
        tracks: what the network says of them, at temperature 1.
    """
    from scipy.optimize import minimize_scalar  # takes a moment, and predicting needs none of it

    count, genres = tracks.log_probs.shape
    targets = np.full((count, genres), 1 / (count + genres))
    targets[np.arange(count), tracks.label] *= count + 1

    def loss(log_temperature: float) -> float:
        return -np.sum(targets * apply_temperature(tracks.log_probs, np.exp(log_temperature)))

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(log_probs: np.ndarray, temperature: float) -> np.ndarray:
    """The log-probabilities that logits divided by a temperature have.

    It makes no difference whether this is done with a track's clips or with their
    `mean_log_probs`.

    Args:
        log_probs: `[n, classes]`, at temperature 1.
        temperature: above 1 for probabilities that are less sure, 1 to change nothing.

    Examples:
        >>> softer = apply_temperature(np.log([[0.8, 0.2]]), 2.0)
        >>> np.exp(softer).round(3).tolist()  # sqrt(0.8) against sqrt(0.2)
        [[0.667, 0.333]]
    """
    if temperature == 1:
        return log_probs
    return normalised(log_probs / temperature).astype(log_probs.dtype)
