"""A picture of one prediction: the spectrogram, and below it the genres over time."""

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mgc_jax.errors import InputError

if TYPE_CHECKING:
    from mgc_jax.predictor import Prediction


def plot_timeline(result: "Prediction") -> Figure:
    """Draws a prediction that has a spectrogram and no error.

    Raises:
        InputError: it has none: predict with `spectrograms=True`.
    """
    if result.mel is None or result.spectrogram is None:
        reason = result.error or "predict with spectrograms=True"
        raise InputError(f"{result.source}: no spectrogram to draw ({reason})")
    seconds = float(result.starts[-1] + result.clip_seconds)
    figure = Figure(figsize=(10, 5), layout="constrained", dpi=100)
    picture, shares = figure.subplots(2, 1, sharex=True)
    result.mel.plot(picture, result.spectrogram, seconds)
    title = f"{result.genre} {result.ranking[result.genre]:.0%}"
    picture.set_title(title, parse_math=False)
    # Each clip's probabilities hold until the next one starts; likeliest genres at the bottom.
    starts = np.append(result.starts, seconds)
    rows = np.concatenate([result.timeline, result.timeline[-1:]])
    order = [result.genres.index(genre) for genre in result.ranking]
    colours = matplotlib.colormaps["tab20" if len(order) > 10 else "tab10"].colors
    areas = shares.stackplot(
        starts,
        rows[:, order].T,
        step="post",
        colors=[colours[i % len(colours)] for i in order],
    )
    shares.set(xlim=(0, seconds), ylim=(0, 1), xlabel="Time (s)", ylabel="Probability")
    style = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    legend = shares.legend(areas[::-1], ["genre"] * len(areas), **style)
    # Names come from data: a "$" in them is no formula, a "_" at their start hides nothing.
    for text, genre in zip(legend.get_texts(), reversed(result.ranking), strict=True):
        text.set_parse_math(False)
        text.set_text(genre)
    return figure
