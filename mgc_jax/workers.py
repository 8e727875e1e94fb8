"""Functions and generators over many items in worker processes, which may be killed or crash."""

import collections
import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from mgc_jax import signals
from mgc_jax.errors import InputError

PATIENCE = 60  # s that a decoder has for its next block
# Not fork: the parent holds TensorFlow's threads.
_CONTEXT = multiprocessing.get_context("spawn")
_STARTING = object()


class _LostError(InputError):
    """The process ended while it worked on an item."""


def run_all(
    function: Callable[[Any], Any], items: Iterable, workers: int
) -> Iterator[tuple[Any, Any]]:
    """Runs a function over items in worker processes.

    Each process has its own pipe and one item at a time, so that the death of a process costs one
    item, and it is known which. Such an item is tried once more at the end, alone, as the others'
    need of memory may have killed it.

    Args:
        function: of one item; a picklable one of a light module, which every process imports.
        items: picklable.
        workers: processes.

    Yields:
        Each item, in the order of completion, with what the function returned, or with an
        InputError: the one that it raised, one that names another exception, or one that tells how
        the process ended.

    Raises:
        OSError: the function raised it: a full disk is not an item's fault.
        InputError: the processes cannot start.
    """
    lost = []
    for item, result in _run(function, items, workers):
        if isinstance(result, _LostError):
            lost.append(item)
        else:
            yield item, result
    for item in lost:
        yield from _run(function, [item], 1)


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Within a worker, the block has a minute: then SIGALRM ends the process."""
    if multiprocessing.parent_process() is None:
        yield
        return
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)


def watched(blocks: Iterator[Any]) -> Iterator[Any]:
    """Passes on a decoder's blocks; within a worker, each must come within a minute."""
    while True:
        with patience():
            block = next(blocks, None)
        if block is None:
            return
        yield block


class _Pool:
    """Worker processes, each with a pipe of its own and one item at a time."""

    def __init__(self, function: Callable[[Any], Any], items: Iterable, workers: int):
        """Starts as many processes as there is work for."""
        self._function = function
        self._todo = collections.deque(items)
        self._workers = workers
        self._failed_starts = 0
        self._processes = []
        self.busy = {}  # connection to process and item
        for _ in range(min(workers, len(self._todo))):
            self.start()

    def start(self) -> None:
        """Starts a process, which first says that it is there."""
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=_serve, args=(theirs, self._function), daemon=True)
        with signals.kept_from_children():
            process.start()
        self._processes.append(process)
        theirs.close()  # the process has the only one, so that its death is seen as the end
        self.busy[ours] = (process, _STARTING)

    def receive(self, connection: Connection) -> tuple[Any, Any] | None:
        """What a process answers, with its item, or None for a start; gives it the next item.

        Raises:
            OSError: the function raised it.
            InputError: the processes cannot start.
        """
        process, item = self.busy.pop(connection)
        try:
            result = connection.recv()
        except (EOFError, OSError):
            return self._lose(process, item)
        if isinstance(result, OSError):
            raise result
        if self._todo:
            next_item = self._todo.popleft()
            self.busy[connection] = (process, next_item)
            with contextlib.suppress(OSError):  # it has died: the next recv tells
                connection.send(next_item)
        else:
            connection.close()
        return None if item is _STARTING else (item, result)

    def _lose(self, process: multiprocessing.Process, item: Any) -> tuple[Any, Any] | None:
        """Replaces a process that has ended, where there is more to do."""
        process.join()
        lost = None
        if item is _STARTING:
            self._failed_starts += 1
            if self._failed_starts > 2 * self._workers:
                raise InputError(f"no worker can start: {_how(process)}")
        else:
            lost = (item, _LostError(f"its process ended twice: {_how(process)}"))
        if self._todo:
            self.start()
        return lost

    def close(self) -> None:
        """Ends all processes, which are idle unless the caller wants no more."""
        for process in self._processes:
            process.kill()
            process.join()


def _run(function: Callable, items: Iterable, workers: int) -> Iterator[tuple[Any, Any]]:
    """As `run_all`, without a second try: the item of a process that ended has a _LostError."""
    pool = _Pool(function, items, workers)
    try:
        while pool.busy:
            signals.check()
            for connection in wait(list(pool.busy), timeout=0.5):
                if answer := pool.receive(connection):
                    yield answer
    finally:
        pool.close()


class Streams:
    """Generators that run in worker processes, any of which may be killed or crash.

    A process has one item at a time, and runs ahead of who reads by what its pipe holds. Several
    threads may read, each of another item.
    """

    def __init__(self, function: Callable[[Any], Generator[Any, None, Any]]):
        """Starts nothing yet.

        Args:
            function: of one item; a picklable one of a light module, which every process imports.
        """
        self._function = function
        self._idle = []  # processes and connections
        self._processes = []
        self._closed = False

    def __enter__(self) -> "Streams":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends all processes."""
        self._closed = True
        for process in self._processes:
            process.kill()
            process.join()

    def run(self, item: Any) -> Generator[Any, None, Any]:
        """What the function yields of an item, and returns, or the exception that it raises.

        An item whose process ends is tried once more, in another process.

        Raises:
            InputError: that process ended, too.
        """
        given = 0
        kind = value = process = None
        for _ in range(2):
            process, connection = self._idle.pop() if self._idle else self._start()
            kind = None
            try:
                for kind, value in _ask(connection, (item, given)):
                    if kind == "piece":
                        given += 1
                        yield value
            finally:
                if kind in ("end", "error"):
                    self._idle.append((process, connection))
                else:  # it has ended, or nobody wants to hear the rest
                    process.join(1 if kind == "lost" else 0)
                    process.kill()
                    process.join()
                    with contextlib.suppress(OSError):  # where garbage is collected, it may be
                        connection.close()
            if kind == "end":
                return value
            if kind == "error":
                raise value
        raise InputError(f"its process ended twice: {_how(process)}")

    def _start(self) -> tuple[Any, Connection]:
        if self._closed:
            raise InputError("no more is to be done")
        ours, theirs = _CONTEXT.Pipe()
        arguments = (theirs, self._function)
        process = _CONTEXT.Process(target=_serve_streams, args=arguments, daemon=True)
        with signals.kept_from_children():
            process.start()
        self._processes.append(process)
        theirs.close()  # the process has the only one, so that its death is seen as the end
        return process, ours


def _ask(connection: Connection, request: tuple[Any, int]) -> Iterator[tuple[str, Any]]:
    """What a process answers: each `piece`, then `end` or `error` with a value; or `lost`."""
    try:
        connection.send(request)
        kind = "piece"
        while kind == "piece":
            kind, value = connection.recv()
            yield kind, value
    except (EOFError, OSError):
        yield "lost", None


def _serve_streams(
    connection: Connection, function: Callable[[Any], Generator[Any, None, Any]]
) -> None:
    """A worker of `Streams`, until the parent closes the pipe or is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders talk there
    with contextlib.suppress(EOFError, OSError):
        while True:
            item, skipped = connection.recv()
            for number, answer in enumerate(_told(function, item)):
                if answer[0] != "piece" or number >= skipped:
                    connection.send(answer)


def _told(
    function: Callable[[Any], Generator[Any, None, Any]], item: Any
) -> Iterator[tuple[str, Any]]:
    """What `_ask` gives of an item."""
    try:
        pieces = function(item)
        while True:
            yield "piece", next(pieces)
    except StopIteration as end:
        yield "end", end.value
    except (InputError, OSError) as error:
        yield "error", error
    except Exception as error:
        yield "error", InputError(f"{type(error).__name__}: {error}")


def _how(process: multiprocessing.Process) -> str:
    if process.exitcode >= 0:
        return f"exit code {process.exitcode}"
    name = signal.Signals(-process.exitcode).name
    causes = {"SIGKILL": "out of memory?", "SIGALRM": f"the decoder gave nothing for {PATIENCE} s"}
    return f"{name} ({causes.get(name, 'a crash in the decoder?')})"


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker: answers each item until the parent closes the pipe or is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders talk there
    connection.send(None)
    with contextlib.suppress(EOFError):
        while True:
            item = connection.recv()
            try:
                result = function(item)
            except (InputError, OSError) as error:
                result = error
            except Exception as error:
                result = InputError(f"{type(error).__name__}: {error}")
            connection.send(result)
