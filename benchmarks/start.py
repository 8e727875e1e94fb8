"""Times the first answer: from the command to the genres of one song, beside importing libraries.

    python benchmarks/start.py --workdir=runs/demo song.mp3

Both are processes of their own, by turns, after one of each that fills the caches. Run it on an
idle machine, and not with PYTHONDONTWRITEBYTECODE, which has our modules compiled at every start.

Prints one JSON object: `{"ours": s, "libraries": s, "ratio": ours / libraries}`, the medians of the
repetitions and the median of the ratios within a repetition.

ours        `mgc_jax predict --workdir=... song.mp3`, start and end of the process included
libraries   Python that imports JAX, Flax and orbax, and ends at once
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import flags

from mgc_jax import cli
from mgc_jax.errors import InputError

_WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.", required=True)
_REPETITIONS = flags.DEFINE_integer("repetitions", 9, "Repetitions to take medians of.", 1)

_IMPORTS = "import os, jax, flax.linen, orbax.checkpoint; os._exit(0)"


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise InputError("one song is needed: python benchmarks/start.py --workdir=RUN song.mp3")
    ours = ["-m", "mgc_jax", "predict", f"--workdir={_WORKDIR.value}", argv[1]]
    commands = {"ours": ours, "libraries": ["-c", _IMPORTS]}
    for command in commands.values():
        seconds(command)
    times = [{name: seconds(c) for name, c in commands.items()} for _ in range(_REPETITIONS.value)]
    result = {name: round(statistics.median(t[name] for t in times), 3) for name in commands}
    ratio = statistics.median(t["ours"] / t["libraries"] for t in times)
    print(json.dumps(result | {"ratio": round(ratio, 3)}))


def seconds(command: Sequence[str]) -> float:
    """What a Python process with these arguments takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    cli.run_main(main)
