"""What a run says as it goes: `metrics.jsonl`, TensorBoard scalars, and lines for people."""

import json
import os
from pathlib import Path

from flax.metrics.tensorboard import SummaryWriter


class RunLog:
    """Appends to a workdir's `metrics.jsonl` and TensorBoard events."""

    def __init__(self, workdir: str | os.PathLike, epochs_done: int):
        """Opens the log, dropping lines of epochs that will be done again after an interruption."""
        path = Path(workdir) / "metrics.jsonl"
        kept = [line for line in _read_lines(path) if line["epoch"] <= epochs_done]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = open(path, "a", buffering=1)
        self._tensorboard = SummaryWriter(str(workdir), auto_flush=False)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
        self._tensorboard.close()

    def write(self, kind: str, epoch: int, step: int, **values: float) -> None:
        """Logs values under `kind` (`train` or `validation`) once an epoch."""
        line = {"kind": kind, "epoch": epoch, "step": step, **values}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._tensorboard.scalar(f"{kind}/{name}", value, step)
        self._tensorboard.flush()


def total_seconds(workdir: str | os.PathLike) -> float:
    """Seconds spent training and validating, over all starts of a run."""
    return sum(line.get("seconds", 0.0) for line in _read_lines(Path(workdir) / "metrics.jsonl"))


def _read_lines(path: Path) -> list[dict]:
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # the last line of a killed run
            break
    return lines
