"""A picture of one prediction: the spectrogram, and below it the genres over time."""

from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mgc_jax.errors import InputError

if TYPE_CHECKING:
    from mgc_jax.predictor import Prediction


_TAGS = 10  # that are drawn of many
_TITLE = 4  # that are named above


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
    # Each clip's values hold until the next one starts.
    starts = np.append(result.starts, seconds)
    rows = np.concatenate([result.timeline, result.timeline[-1:]])
    names = list(result.ranking)[: _TAGS if result.tagging else None]
    order = [result.genres.index(name) for name in names]
    colours = matplotlib.colormaps["tab20" if len(order) > 10 else "tab10"].colors
    if result.tagging:
        title = "  ".join(f"{name} {result.ranking[name]:.2f}" for name in names[:_TITLE])
        drawn = [
            shares.step(starts, rows[:, column], where="post", color=colour)[0]
            for column, colour in zip(order, colours, strict=False)
        ]
        label = "Activation"
    else:
        title = "unknown" if result.unknown else f"{names[0]} {result.ranking[names[0]]:.0%}"
        picked = [colours[i % len(colours)] for i in order]
        areas = shares.stackplot(starts, rows[:, order].T, step="post", colors=picked)
        # Likeliest genres at the bottom, and so in the legend.
        drawn = areas[::-1]
        names = names[::-1]
        label = "Probability"
    picture.set_title(title, parse_math=False)
    shares.set(xlim=(0, seconds), ylim=(0, 1), xlabel="Time (s)", ylabel=label)
    style = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    legend = shares.legend(drawn, ["genre"] * len(drawn), **style)
    # Names come from data: a "$" in them is no formula, a "_" at their start hides nothing.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    return figure
