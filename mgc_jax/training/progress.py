"""Where a run is: its counts, which epoch it keeps as the best, and whether it is finished."""

import dataclasses
from collections.abc import Mapping

KEEP = ("loss", "top1", "last")


@dataclasses.dataclass
class Progress:
    """What is saved beside the state, as JSON, so that a run's logs go on exactly.

    Attributes:
        step: steps done.
        epoch: epochs done, with their validation.
        best_epoch, best_loss: of the lowest validation loss.
        best_top1: the highest of validation; below 0 before any.
        skipped: steps passed over because they were not finite.
        loss, top1, counted, seconds: sums over the epoch under way, and the steps in them.
        data: hash of the data trained on (see `ClipDataset.fingerprint`); empty in older runs.
    """

    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = float("inf")
    best_top1: float = -1.0
    skipped: int = 0
    loss: float = 0.0
    top1: float = 0.0
    counted: int = 0
    seconds: float = 0.0
    data: str = ""

    def validated(self, epoch: int, scores: Mapping[str, float], keep: str) -> bool:
        """Takes in the validation of an epoch; returns whether the epoch is to be kept as best.

        Args:
            epoch: counted from 1.
            scores: `loss` and `top1`, the mean over the clips of the validation split.
            keep: one of `KEEP`. Of equal epochs the first is kept.
        """
        lower = scores["loss"] < self.best_loss
        higher = scores["top1"] > self.best_top1
        if lower:
            self.best_epoch, self.best_loss = epoch, scores["loss"]
        self.best_top1 = max(self.best_top1, scores["top1"])
        return {"loss": lower, "top1": higher, "last": True}[keep]


def is_finished(config: Mapping, progress: Progress) -> bool:
    """Whether a run has all its epochs, or its validation loss stopped improving, whatever it
    keeps."""
    epochs: int = config["num_epochs"]
    waited = progress.epoch - progress.best_epoch
    patience: int = config["early_stopping_epochs"]
    return progress.epoch >= epochs or 0 < patience <= waited
