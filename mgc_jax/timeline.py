"""A picture of one prediction: the spectrogram, and below it the genres over time."""

import os
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from mgc_jax.console import shown
from mgc_jax.errors import InputError

if TYPE_CHECKING:
    from mgc_jax.predictor import Prediction


_TAGS = 10  # that are drawn of many
_TITLE = 4  # that are named above
_NAMED = 40  # letters of a file's name
_PAGE_SIZE = (5.2, 5.6)  # inches, at which text of 10 points can be read on a phone
_GREY = "#888888"  # can be read on white and on black


def plot_timeline(result: "Prediction", page: bool = False) -> Figure:
    """Draws a prediction that has a spectrogram and no error.

    Args:
        result: the prediction.
        page: as wide as a phone, to be shown on light and dark pages alike.

    Raises:
        InputError: it has none: predict with `spectrograms=True`.
    """
    if result.mel is None or result.spectrogram is None:
        reason = result.error or "predict with spectrograms=True"
        raise InputError(f"{result.source}: no spectrogram to draw ({reason})")
    end = seconds = float(result.starts[-1] + result.clip_seconds)
    spectrogram = result.spectrogram
    if 0 < result.seconds < result.clip_seconds:  # it was repeated to fill a clip
        seconds = result.seconds
        spectrogram = spectrogram[: max(1, round(len(spectrogram) * seconds / end))]
    figure = Figure(figsize=_PAGE_SIZE if page else (10, 5), layout="constrained", dpi=100)
    picture, shares = figure.subplots(2, 1, sharex=True)
    result.mel.plot(picture, spectrogram, seconds)
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
    name = shown(os.path.basename(result.source))
    name = name if len(name) <= _NAMED else f"{name[: _NAMED - 1]}…"
    picture.set_title(f"{name}\n{title}", parse_math=False)
    shares.set(xlim=(0, seconds), ylim=(0, 1), xlabel="Time (s)", ylabel=label)
    style = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "frameon": False}
    if page:
        style |= {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25), "ncols": 3, "fontsize": 9}
    legend = shares.legend(drawn, ["genre"] * len(drawn), **style)
    # Names come from data: a "$" in them is no formula, a "_" at their start hides nothing.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    if page:
        _suit_any_background(figure)
    return figure


def _suit_any_background(figure: Figure) -> None:
    """Grey text and lines on no background, for light and dark pages."""
    figure.patch.set_alpha(0)
    for text in figure.findobj(Text):
        text.set_color(_GREY)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
        axes.tick_params(colors=_GREY, which="both")
        axes.spines[:].set_color(_GREY)
