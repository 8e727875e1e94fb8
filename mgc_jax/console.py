"""What is said as things go: log lines on stderr, and progress bars."""

import logging
import math
import sys

from tqdm import tqdm

from mgc_jax import signals

log = logging.getLogger("mgc_jax")


def shown(text: str) -> str:
    """A text from outside for a terminal: what does not print, such as line ends and the codes that
    colour or erase, is written as an escape.

    Examples:
        >>> shown("two\\nlines")
        'two\\\\nlines'
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def report_bad(path: str, error: str) -> None:
    """A line on stderr for a file that cannot be used."""
    print(f"error: {shown(path)}: {error}", file=sys.stderr)


class _Bar(tqdm):
    """Where something is counted, a request to stop is obeyed."""

    def update(self, n: float | None = 1) -> bool | None:
        signals.check()
        return super().update(n)


def progress_bar(
    *,
    total: int,
    description: str,
    unit: str,
    leave: bool = True,
    smoothing: float = 0.3,
    in_logs: bool = True,
) -> tqdm:
    """A bar with rate and ETA: live on a terminal, a line every half minute in a log file.

    Its `update` raises Interrupted after a request to stop. The rate is that of the last updates by
    `smoothing`, that of all by 0. Without `in_logs` there is nothing to see but on a terminal.
    """
    live = sys.stderr.isatty()
    interval = 0.2 if live else 30
    return _Bar(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=unit == "B",
        leave=leave or not live,
        delay=0 if live else interval if in_logs else math.inf,
        mininterval=interval,
        maxinterval=interval,
        dynamic_ncols=True,
        smoothing=smoothing,
    )
