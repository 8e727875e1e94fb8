"""Worker processes that die, each in its own way."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from mgc_jax import workers
from mgc_jax.errors import InputError
from mgc_jax.workers import Streams, run_all, watched


def act(item):
    """What an item makes its worker do."""
    name, _, folder = item.partition(":")
    if name == "double":
        raise ZeroDivisionError("by nought")
    if name == "unusable":
        raise InputError("no music")
    if name == "full":
        raise OSError(28, "No space left on device")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "leaves":
        os._exit(3)
    if name == "hangs":
        workers.PATIENCE = 1
        list(watched(time.sleep(60) for _ in range(2)))
    if name == "slow":  # many blocks take longer than one may
        workers.PATIENCE = 1
        list(watched(time.sleep(0.3) for _ in range(5)))
    if name == "once":  # the first time only, and slowly, so that others are in flight
        time.sleep(0.2)
        try:
            Path(folder, "tried").touch(exist_ok=False)
        except FileExistsError:
            return "done"
        os.kill(os.getpid(), signal.SIGKILL)
    return name.upper()


@pytest.mark.parametrize("count", [1, 2])
def test_each_death_costs_its_own_item_alone(tmp_path, count):
    once = f"once:{tmp_path}"
    items = ["a", "killed", once, "b", "double", "crashes", "unusable", "leaves", *"cdef"]
    found = {item: str(result) for item, result in run_all(act, items, count)}
    assert found == {
        **{item: item.upper() for item in "abcdef"},
        once: "done",
        "double": "ZeroDivisionError: by nought",
        "unusable": "no music",
        "killed": "its process ended twice: SIGKILL (out of memory?)",
        "crashes": "its process ended twice: SIGSEGV (a crash in the decoder?)",
        "leaves": "its process ended twice: exit code 3",
    }
    assert not multiprocessing.active_children()


def test_a_decoder_that_hangs_costs_its_own_item_alone():
    """One that gives block after block may take as long as it likes."""
    found = {item: str(result) for item, result in run_all(act, ["hangs", "a", "slow"], 1)}
    says = "its process ended twice: SIGALRM (the decoder gave nothing for 60 s)"
    assert found == {"hangs": says, "a": "A", "slow": "SLOW"}
    # Outside of workers, nothing is watched: there it would end the user's process.
    assert list(watched(iter([1, 2]))) == [1, 2] and signal.alarm(0) == 0


def test_a_full_disk_ends_the_run():
    with pytest.raises(OSError, match="No space left"):
        list(run_all(act, ["a", "full", *"bcdefgh"], 2))
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]


def test_closing_ends_the_processes():
    results = run_all(act, list("abcdef"), 2)
    next(results)
    results.close()
    for child in multiprocessing.active_children():
        child.join()


def test_no_items():
    assert list(run_all(act, [], 2)) == []


class CannotBeLoaded:
    def __reduce__(self):
        return os._exit, (7,)


def test_workers_that_cannot_start():
    with pytest.raises(InputError, match="no worker can start: exit code 7"):
        list(run_all(CannotBeLoaded(), ["a"], 1))


def letters(item):
    """The item's letters, each after what it makes its worker do; and their number."""
    word, _, folder = item.partition(":")
    for letter in word:
        if letter in "!?":
            act({"!": "crashes", "?": f"once:{folder}"}[letter])
        if letter == "%":
            act("hangs")
        if letter == "/":
            raise InputError("no letter")
        if letter == "0":
            raise ZeroDivisionError("by nought")
        yield letter
    return len(word)


def told(stream):
    """What a stream gives, and what it returns or raises."""
    found = ""
    while True:
        try:
            found += next(stream)
        except StopIteration as end:
            return found, end.value
        except InputError as error:
            return found, str(error)


def test_streams_give_what_generators_give(tmp_path):
    crashed = "its process ended twice: SIGSEGV (a crash in the decoder?)"
    expected = {
        "abc": ("abc", 3),
        "": ("", 0),
        "ab!c": ("ab", crashed),
        f"ab?c:{tmp_path}": ("ab?c", 4),  # crashes once: what was given is not given again
        "ab/c": ("ab", "no letter"),
        "a0": ("a", "ZeroDivisionError: by nought"),
        "x%": ("x", "its process ended twice: SIGALRM (the decoder gave nothing for 60 s)"),
        "de": ("de", 2),
    }
    with Streams(letters) as streams:
        assert {item: told(streams.run(item)) for item in expected} == expected
        # Several at once, one of which nobody reads to its end.
        some = [streams.run(item) for item in ("fgh", "i" * 1000, "jkl")]
        assert [next(stream) for stream in some] == ["f", "i", "j"]
        some[1].close()
        assert [told(stream) for stream in (some[0], some[2])] == [("gh", 3), ("kl", 3)]
        assert told(streams.run("mn")) == ("mn", 2)
        processes = multiprocessing.active_children()
        assert len(processes) == 2  # the one that nobody read was ended, the others are used again
        left = streams.run("op")
        next(left)
    assert not set(multiprocessing.active_children()) & set(processes)
    with pytest.raises(InputError, match="no more is to be done"):
        next(streams.run("q"))
