"""What a run says as it goes: `metrics.jsonl`, TensorBoard, and lines for people."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from matplotlib.image import imread
from tqdm import tqdm

from mgc_jax import console, parallel
from mgc_jax.files import write_text
from mgc_jax.results.files import LOG, read_log

# Lines of steps are written together, out of the way of fast steps. One of them goes to
# TensorBoard, as its writer takes as long for a scalar as a fast step in all. A run of fewer steps
# than the last number is short, and writes more often.
_STEPS_A_WRITE = 100
_STEPS_A_WRITE_IF_SHORT = 10
_SHORT = 1000


class RunLog:
    """Appends to a workdir's `metrics.jsonl` and TensorBoard events; in process 0 alone.

    Lines have a `kind`: `step` for each step, `train` and `validation` for each epoch.
    """

    def __init__(self, workdir: str | os.PathLike, step: int, epoch: int, steps: int):
        """Opens the log of a run of so many `steps` that goes on after a step, in or after an
        epoch.

        Lines of later steps and epochs are dropped: they will be done again.
        """
        self._steps_a_write = _STEPS_A_WRITE_IF_SHORT if steps < _SHORT else _STEPS_A_WRITE
        self._open = parallel.is_main()
        if not self._open:
            return
        path = Path(workdir, LOG)
        kept = [
            line
            for line in read_log(workdir)
            if (line["step"] <= step if line["kind"] == "step" else line["epoch"] <= epoch)
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = []
        self._file = open(path, "a")
        self._tensorboard = tf.summary.create_file_writer(str(workdir))

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        if self._open:
            self._write_lines()
            self._tensorboard.close()
            self._file.close()

    def write(self, kind: str, epoch: int, step: int, **values: float | None) -> None:
        """Logs values after a step or an epoch; None stands for a number that is not finite."""
        if not self._open:
            return
        self._lines.append({"kind": kind, "epoch": epoch, "step": step, **values})
        if kind == "step" and step % self._steps_a_write:
            return
        with self._tensorboard.as_default(step):
            for name, value in values.items():
                if value is not None:
                    tf.summary.scalar(f"{kind}/{name}", value)
        if kind == "step":
            self._write_lines()
        else:
            self.flush()

    def flush(self) -> None:
        """Puts everything on disk: no checkpoint may be ahead of the log."""
        if self._open:
            self._write_lines()
            os.fsync(self._file.fileno())
            self._tensorboard.flush()

    def _write_lines(self) -> None:
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self._lines.clear()  # first: after an error they must not be written a second time
        self._file.write(text)
        self._file.flush()


def write_images(workdir: str | os.PathLike, step: int, pictures: Mapping[str, Path]) -> None:
    """Shows PNG files, by name, in TensorBoard."""
    writer = tf.summary.create_file_writer(str(workdir))
    with writer.as_default(step):
        for name, path in pictures.items():
            tf.summary.image(name, imread(path)[None, ..., :3])
    writer.close()


class ProgressLine:
    """One line on stderr, by tqdm: epoch, step, time left, speed, loss, top-1, waiting for data.

    On a terminal it is rewritten in place; in a file and under CI it is a line of its own, every
    half minute.
    """

    # What is asked for most comes first: a narrow terminal cuts the end off.
    _FORMAT = "{desc}  step {n_fmt}/{total_fmt}  {remaining} left{postfix}"

    def __init__(self, epochs: int, steps_per_epoch: int, batch_size: int, step: int = 0):
        """Begins after so many steps."""
        self._epochs = epochs
        self._steps = steps_per_epoch
        self._batch = batch_size
        terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        live = terminal and not os.environ.get("CI")
        self._interval = 0.2 if live else 30.0
        self._shown = time.perf_counter()
        self._bar = tqdm(
            total=epochs * steps_per_epoch,
            initial=step,
            file=sys.stderr if live else _LogLines(),
            bar_format=self._FORMAT,
            mininterval=0,
            delay=1e-9,  # nothing is shown before the first step
            miniters=1,
            dynamic_ncols=live,
            leave=False,
            disable=not parallel.is_main(),
        )
        self._begun = False

    def start_epoch(self, step: int) -> None:
        """Clips/s and waiting count from here on, after so many steps."""
        self._epoch_step = step
        self._waited = 0.0
        self._epoch_start = time.perf_counter()

    def waited(self, seconds: float) -> None:
        """Adds to the time that no batch was there."""
        self._waited += seconds

    def update(self, step: int, loss: float, top1: float) -> None:
        """Shows the line if it is time to.

        Args:
            step: steps done.
            loss: mean over the epoch so far.
            top1: likewise.
        """
        now = time.perf_counter()
        if not self._begun:
            self._begun = True
            # The first step compiled: its time tells nothing of those to come.
            self._bar.initial = self._bar.n = self._bar.last_print_n = step
            self._bar.unpause()
        if now - self._shown < self._interval:
            return  # fast steps wait for no line
        self._shown = now
        elapsed = max(now - self._epoch_start, 1e-9)
        rate = (step - self._epoch_step) * self._batch / elapsed
        epoch = -(-step // self._steps)
        self._bar.set_description_str(f"epoch {epoch}/{self._epochs}", refresh=False)
        self._bar.set_postfix_str(
            f"{rate:.0f} clips/s  loss {loss:.3f}  top-1 {top1:.3f}  "
            f"{self._waited / elapsed:.0%} waiting for data",
            refresh=False,
        )
        self._bar.update(step - self._bar.n)

    def clear(self) -> None:
        """Makes room for other lines."""
        self._bar.clear()

    def close(self) -> None:
        """Takes the line away for good."""
        self._bar.close()


class _LogLines:
    """A file for tqdm whose lines go to the log."""

    def write(self, text: str) -> None:
        """Logs what is left of a text without the signs that rewrite a line."""
        if line := text.strip("\r\n \x1b[A"):
            console.log.info("%s", line)

    def flush(self) -> None:
        """Nothing waits."""


def announce_epoch(
    epoch: int, epochs: int, scores: Mapping[str, Any], held_out: Mapping[str, Any], improved: bool
) -> None:
    """One line for people; a star marks the one kept as best so far."""
    console.log.info(
        "epoch %*d/%d  train loss %.3f top-1 %.3f  validation loss %.3f top-1 %.3f %s  %.0f clips/s"
        "  %s left",
        len(str(epochs)),
        epoch,
        epochs,
        scores["loss"],
        scores["top1"],
        held_out["loss"],
        held_out["top1"],
        "*" if improved else " ",
        scores["clips_per_s"],
        duration((scores["seconds"] + held_out["seconds"]) * (epochs - epoch)),
    )


def duration(seconds: float) -> str:
    """Such as `2 min 05 s` or `3 h 10 min`."""
    minutes, seconds = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02d} min"
        if minutes >= 60
        else f"{minutes} min {seconds:02d} s"
    )


def total_seconds(workdir: str | os.PathLike) -> float:
    """Seconds spent training and validating, over all starts of a run."""
    return sum(line.get("seconds") or 0.0 for line in read_log(workdir))
