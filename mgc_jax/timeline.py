"""A picture of one prediction: the spectrogram, and below it the genres over time."""

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from mgc_jax.predictor import Prediction


def plot_timeline(result: "Prediction") -> Figure:
    """Draws a prediction that has a spectrogram and no error."""
    seconds = len(result.timeline) * result.clip_seconds
    figure = Figure(figsize=(10, 5), layout="constrained", dpi=100)
    picture, shares = figure.subplots(2, 1, sharex=True)
    result.mel.plot(picture, result.spectrogram, seconds)
    title = f"{result.genre} {result.ranking[result.genre]:.0%}"
    picture.set_title(title, parse_math=False)
    # Each clip's probabilities hold until the next one starts; likeliest genres at the bottom.
    starts = np.arange(len(result.timeline) + 1) * result.clip_seconds
    rows = np.concatenate([result.timeline, result.timeline[-1:]])
    order = [result.genres.index(genre) for genre in result.ranking]
    colours = matplotlib.colormaps["tab20" if len(order) > 10 else "tab10"].colors
    shares.stackplot(
        starts,
        rows[:, order].T,
        step="post",
        labels=list(result.ranking),
        colors=[colours[i % len(colours)] for i in order],
    )
    shares.set(xlim=(0, seconds), ylim=(0, 1), xlabel="Time (s)", ylabel="Probability")
    shares.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True, frameon=False)
    return figure
