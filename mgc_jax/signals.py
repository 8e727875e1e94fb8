"""Requests to stop, by SIGTERM or Ctrl-C: one flag, which every phase of a command looks at.

A handler that raises would lose requests, as libraries swallow what comes up in their callbacks,
and Python's handlers wait for as long as a call into C takes. So a thread of its own notes them.
Work that can stop calls `check`, and so does every progress bar; work that does not look for
`PATIENCE` seconds is ended, and so is any work by a second request.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mgc_jax.errors import Interrupted

PATIENCE = 5.0  # s
_TOGETHER = 0.5  # s; launchers may send one request to a process twice, by way of its group
_REQUESTS = (signal.SIGTERM, signal.SIGINT)

_requested = threading.Event()
_held = threading.Event()


def listen(exit_code: int) -> None:
    """From now on, requests are noted instead of ending the process; in its main thread.

    Args:
        exit_code: of a process that has to be ended.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    take_back()
    threading.Thread(target=_watch, args=(reading, exit_code), daemon=True).start()


def take_back() -> None:
    """Requests come here again; after a library has taken them, as JAX does for several hosts."""
    for number in _REQUESTS:
        signal.signal(number, lambda *_: None)  # what matters is written to the wakeup descriptor


def stop_requested(seconds: float = 0.0) -> bool:
    """Whether to stop; waits so long for a request."""
    return _requested.wait(seconds)


def check() -> None:
    """Raises Interrupted once a request has come: for work that loses nothing by it."""
    if _requested.is_set():
        raise Interrupted("stopped")


def hold() -> None:
    """From now on the first request never ends the process: the work looks, and saves first."""
    _held.set()


def release() -> None:
    """Takes `hold` back."""
    _held.clear()


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Processes started within do not see Ctrl-C, which a terminal sends to all of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _watch(reading: int, exit_code: int) -> None:
    """Notes requests; ends the process where it does not stop by itself."""
    first = deadline = None
    while True:
        wait = None if first is None else 0.1
        ready = select.select([reading], [], [], wait)[0]
        came = ready and any(number in _REQUESTS for number in os.read(reading, 64))
        now = time.monotonic()
        if first is None:
            if not came:
                continue
            first = now
            _requested.set()
        if came and now - first > _TOGETHER:
            _end("stopped at once", exit_code)
        if deadline is None or _held.is_set():
            deadline = now + PATIENCE
        elif now > deadline:
            _end(f"stopped: what it was at did not end within {PATIENCE:g} s", exit_code)


def _end(message: str, exit_code: int) -> None:
    with suppress(OSError):  # nobody may be left who reads it
        os.write(2, f"\n{message}\n".encode())
    os._exit(exit_code)
