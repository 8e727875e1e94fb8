"""What a library costs `mgc_jax predict --output`: memory by its number of files, and a true ETA.

    python benchmarks/library.py --workdir=runs/demo
    python benchmarks/library.py --workdir=runs/demo --counts=1000,20000 --folder=/tmp/library

Makes WAV files of 1 to 3 s, 8 kHz, of decaying noise, in folders of a hundred; runs the command on
each count of them, and once more, when all of them are answered already.

Prints one JSON object: of each count the peak resident memory of the command in MB, of its rerun
too, the files a second; and `eta`: elapsed time and time left as the bar said them, added up and
divided by the whole time, the lowest and the highest after the first tenth (1 is true).
"""

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import soundfile
from absl import flags

from mgc_jax import cli

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.", required=True)
_COUNTS = flags.DEFINE_list("counts", ["1000", "20000"], "Numbers of files.")
_FOLDER = flags.DEFINE_string("folder", None, "Keep the files here; default: a temporary folder.")
_RATE = 8000


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(_FOLDER.value or temporary)
        print(json.dumps({count: measure(root, int(count)) for count in _COUNTS.value}, indent=1))


def measure(root: Path, count: int) -> dict[str, float | list[float]]:
    folder = root / str(count)
    write_files(folder, count)
    table = root / f"{count}.csv"
    table.unlink(missing_ok=True)
    seconds, megabytes, said = run(folder, table)
    rows = table.read_bytes().count(b"\n") - 1
    assert rows == count, f"{rows} rows"
    _, again, _ = run(folder, table)
    totals = [elapsed + left for elapsed, left in bars(said) if elapsed > 0.1 * seconds]
    eta = [round(total / seconds, 2) for total in (min(totals), max(totals))] if totals else []
    return {
        "peak MB": megabytes,
        "peak MB of the rerun": again,
        "files/s": round(count / seconds, 1),
        "eta": eta,
    }


def write_files(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"{i // 100:04d}" / f"{i:06d}.wav"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(_RATE * (1 + i % 3)) / _RATE
        sound = rng.normal(size=len(time)) * np.exp(-rng.uniform(1, 8) * (time % 0.5)) * 0.1
        soundfile.write(path, sound, _RATE, subtype="PCM_U8")


def run(folder: Path, table: Path) -> tuple[float, float, str]:
    """Runs the command on a terminal: its seconds, peak memory in MB, and what it said."""
    command = [sys.executable, "-m", "mgc_jax.predict", f"--workdir={_WORKDIR.value}"]
    command += [f"--output={table}", str(folder)]
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=terminal)
    os.close(terminal)
    said = b""
    with contextlib.suppress(OSError):  # which the end of a terminal is
        while part := os.read(ours, 65536):
            said += part
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    os.close(ours)
    text = said.decode()
    assert os.waitstatus_to_exitcode(status) == 0, text
    return seconds, round(used.ru_maxrss / 1e3), text


def bars(said: str) -> list[tuple[float, float]]:
    """Elapsed time and time left, in s, of each bar that was drawn."""
    clock = r"((?:\d+:)*\d+)"
    return [
        (in_seconds(elapsed), in_seconds(left))
        for elapsed, left in re.findall(rf"\[{clock}<{clock},", said)
    ]


def in_seconds(clock: str) -> float:
    """`1:02:03` to 3723."""
    total = 0
    for part in clock.split(":"):
        total = total * 60 + int(part)
    return total


if __name__ == "__main__":
    cli.run_main(main)
