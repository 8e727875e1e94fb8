"""The pictures of a report, as matplotlib figures about as wide as a phone's screen."""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Examples = Sequence[tuple[str, Callable[[Axes], None]]]
MOST_NUMBERED_GENRES = 30  # of a confusion matrix; above, its cells are too many to be read
_WIDTH = 5.2  # inches, at which text of 10 points can be read on a phone
# Okabe-Ito hues: apart for colour-blind readers too.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
# Kind and key in metrics.jsonl, label, hue, line.
_CURVES = (
    ("train", "loss", "train", _BLUE, "o-"),
    ("validation", "loss", "validation", _ORANGE, "o-"),
    ("train", "top1", "train top-1", _BLUE, "o-"),
    ("validation", "top1", "validation top-1", _ORANGE, "o-"),
    ("validation", "f1", "validation F1", _GREEN, "o--"),
)


def confusion_figure(counts: Sequence[Sequence[int]], genres: Sequence[str], title: str) -> Figure:
    """Draws a confusion matrix `[true][predicted]`: the colour is the share of its row.

    Up to `MOST_NUMBERED_GENRES` the cells have their counts, and below them the shares in %.

    Args:
        counts: `[k][k]`.
        genres: `[k]`, in label order.
        title: above it.
    """
    matrix = np.asarray(counts)
    support = matrix.sum(axis=1, keepdims=True)
    shares = matrix / np.maximum(support, 1)  # a row may be empty
    numbered = len(genres) <= MOST_NUMBERED_GENRES
    widest = 0.4 if numbered else 0.16
    cell = max(_WIDTH - 1.3, widest * len(genres)) / len(genres)  # inches
    side = cell * len(genres)
    figure = Figure(figsize=(side + 1.3, side + 1.6), layout="compressed")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # 72 points to the inch; a digit is some 0.65 of its point size wide.
    size = min(9.5, 72 * cell * 0.85 / (0.65 * max(len(str(matrix.max())), 4)))
    for (row, column), count in np.ndenumerate(matrix) if numbered else ():
        colour = "white" if shares[row, column] > 0.6 else "#222" if count else "#aaa"
        words = f"{count}\n{shares[row, column]:.0%}" if count else "0"
        style = {"fontsize": size, "color": colour, "linespacing": 1.05}
        axes.text(column, row, words, ha="center", va="center", **style)
    names = [name if len(name) <= 24 else name[:23] + "…" for name in genres]
    # A "$" is only a "$".
    style = {"labels": names, "fontsize": min(9.5, 72 * cell * 0.9), "parse_math": False}
    axes.set_xticks(range(len(names)), rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(range(len(names)), **style)
    axes.set(title=title, xlabel="predicted genre", ylabel="true genre")
    return figure


def curves_figure(log: Sequence[Mapping], kept_epoch: int | None) -> Figure:
    """Draws `_CURVES` over epochs from the lines of metrics.jsonl, and a line at the epoch kept."""
    figure = Figure(figsize=(_WIDTH, 5.6), layout="constrained")
    panels = figure.subplots(2, sharex=True)
    rows = [row for row in log if isinstance(row, dict) and row.get("epoch") is not None]
    for kind, key, label, colour, line in _CURVES:
        # By epoch: a resumed run may have logged an epoch twice, and the last one counts.
        points = {row["epoch"]: row.get(key) for row in rows if row.get("kind") == kind}
        if any(value is not None for value in points.values()):
            x = sorted(points)
            y = np.array([points[epoch] for epoch in x], dtype=float)  # None becomes nan
            axes = panels[0 if key == "loss" else 1]
            axes.plot(x, y, line, color=colour, label=label, markersize=3)
    last = max([row["epoch"] for row in rows] + [kept_epoch or 1])
    for axes, title in zip(panels, ("Loss", "Top-1 and F1"), strict=True):
        if kept_epoch is not None:
            axes.axvline(kept_epoch, color="#555", linestyle=":", label=f"kept: epoch {kept_epoch}")
        axes.set(title=title, xlim=(0.5, last + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="#e5e5e5")
        if axes.lines:
            axes.legend(fontsize=9)
    panels[1].set(xlabel="epoch", ylim=(0, 1))
    return figure


def reliability_figure(metrics: Mapping) -> Figure:
    """Draws the reliability of metrics.json, per track and per clip: accuracy by top probability,
    bars as dark as their bins are full, beside the diagonal of perfect calibration.
    """
    figure = Figure(figsize=(_WIDTH, 5.6), layout="constrained")
    panels = figure.subplots(2, sharex=True)
    for axes, level in zip(panels, ("track", "clip"), strict=True):
        bins = [row for row in metrics[level]["reliability"] if row["count"]]
        fullest = max((row["count"] for row in bins), default=1)
        for row in bins:
            low, width = row["low"], row["high"] - row["low"]
            shade = 0.25 + 0.75 * row["count"] / fullest
            axes.bar(low, row["accuracy"], width, align="edge", color=_BLUE, alpha=shade)
            style = {
                "fontsize": 7.5,
                "color": "white" if shade > 0.6 and row["accuracy"] else "#222",
            }
            axes.text(low + width / 2, 0.02, row["count"], ha="center", **style)
        axes.plot([0, 1], [0, 1], "--", color="#555", label="perfectly calibrated")
        points = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
        axes.plot(*points, "o", color=_ORANGE, markersize=4, label="mean of a bin")
        error = metrics[level]["ece"]
        axes.set(
            title=f"{level.capitalize()}s: calibration error {error:.3f}", ylabel="share right"
        )
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    panels[1].set_xlabel("probability of the predicted genre (counts at the foot)")
    return figure


def examples_figure(examples: Examples) -> Figure:
    """Lays out examples of a network's input over time; each draws itself."""
    columns = max(1, min(2, len(examples)))
    rows = max(1, math.ceil(len(examples) / 2))
    figure = Figure(figsize=(_WIDTH * 1.15, 1.75 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (title, draw) in zip(grid.flat, examples, strict=False):
        draw(axes)
        lines = textwrap.fill(title, 32, max_lines=2, placeholder="…")
        axes.set_title(lines, fontsize=9.5, loc="left", parse_math=False)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.label.set_visible(axes.get_subplotspec().is_first_col())
    for axes in grid.flat[len(examples) :]:
        axes.set_axis_off()
    images = [image for axes in grid.flat for image in (*axes.images, *axes.collections)]
    if images:
        figure.colorbar(images[0], ax=grid, pad=0.015, fraction=0.03, aspect=60).set_label("dB")
    figure.supxlabel("time (s)" if examples else "no examples were given", fontsize=10)
    return figure


def draw_attention(axes: Axes, seconds: np.ndarray, attention: np.ndarray) -> None:
    """Draws what each head of a network attends to over time.

    Args:
        axes: to draw on.
        seconds: `[positions]`, from the start of the clip.
        attention: `[positions, heads]`, which sums to 1 over positions: drawn as multiples of the
            same for all.
    """
    axes.plot(seconds, attention * len(seconds), linewidth=1)
    axes.set(xmargin=0, ylabel="attention")


def intervals_figure(runs: Sequence[tuple[str, float, Sequence[float], float | None]]) -> Figure:
    """Draws F1 of several runs with their 95% intervals.

    Args:
        runs: name, F1, (low, high) and the published F1 of that network or None, best on top.
    """
    figure = Figure(figsize=(_WIDTH * 1.15, 0.34 * len(runs) + 1.1), layout="constrained")
    axes = figure.subplots()
    for row, (_, value, (low, high), published) in enumerate(runs):
        axes.plot([low, high], [row, row], color=_BLUE)
        axes.plot(value, row, "o", color=_BLUE, label="F1, 95% interval" if not row else None)
        if published is not None:
            axes.plot(published, row, "D", color=_ORANGE, markersize=5, mfc="none")
    if any(published is not None for *_, published in runs):
        axes.plot([], [], "D", color=_ORANGE, mfc="none", label="published for that network")
    names = [textwrap.shorten(name, 30, placeholder="…") for name, *_ in runs]
    axes.set_yticks(range(len(runs)), labels=names, parse_math=False)
    axes.set(xlabel="F1, track level", ylim=(len(runs) - 0.5, -0.5))
    axes.grid(axis="x", color="#e5e5e5")
    figure.legend(loc="outside upper right", ncols=2, fontsize=9)
    return figure
