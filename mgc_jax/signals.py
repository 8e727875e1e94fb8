"""Requests to stop, by SIGTERM or Ctrl-C, for work that saves first."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT are only noted, for the block to obey; a second one acts at once.

    Yields:
        A function that says whether one came.
    """
    came = []

    def note(number, _):
        came.append(number)
        signal.signal(number, before[number])

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
