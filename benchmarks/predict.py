"""Times prediction of whole songs with Baseline A (2D), beside decoding alone.

    taskset -c 0 python benchmarks/predict.py
    python benchmarks/predict.py --files=16 --repetitions=9

Makes its own MP3s: three minutes of the demo synthesiser's music, 44.1 kHz, stereo, 256 kbit/s;
four songs, and copies of them. The network has its initial weights, which take the same time as any
others. Both ways run on the same files in alternation, after a first batch that compiles. Run it on
an idle machine; `taskset` gives it one core.

Prints one JSON object: `{"ours": files/s, "decode": files/s, "ratio": ours / decode, ...}`, the
medians of the repetitions and the median of the ratios within a repetition.

ours      `Predictor.predict`: decode, resample, log-mel, network, ranking
decode    soundfile alone, into one buffer block by block, which is faster than whole files
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import soundfile
from absl import flags

from mgc_jax import cli
from mgc_jax.configs import baseline_a_2d
from mgc_jax.demo.synth import GENRES, SAMPLE_RATE, synthesize_track
from mgc_jax.predictor import Predictor
from mgc_jax.training.network import Network, TrainedRun

_FILES = flags.DEFINE_integer("files", 64, "MP3s a repetition.", 1)
_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "Repetitions to take medians of.", 1)
_FOLDER = flags.DEFINE_string("folder", None, "Keep the MP3s here; default: a temporary folder.")


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_songs(Path(_FOLDER.value or temporary), _FILES.value)
        predictor = Predictor(untrained_run())
        predictor.predict(paths[0])
        rates = {"ours": [], "decode": []}
        for _ in range(_REPETITIONS.value):
            rates["ours"].append(len(paths) / seconds(lambda: predictor.predict(paths)))
            rates["decode"].append(len(paths) / seconds(lambda: [decode(path) for path in paths]))
    ratios = [ours / alone for ours, alone in zip(*rates.values(), strict=True)]
    result = {name: round(statistics.median(values), 3) for name, values in rates.items()}
    result |= {"ratio": round(statistics.median(ratios), 3), "cores": len(os.sched_getaffinity(0))}
    print(json.dumps(result))


def write_songs(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(folder / f"{i:03d}.mp3") for i in range(count)]
    for i, path in enumerate(paths):
        if os.path.exists(path):
            continue
        if i < 4:
            music = synthesize_track(GENRES[i], seed=i, seconds=180.0)
            coding = {"bitrate_mode": "CONSTANT", "compression_level": 0.2}
            soundfile.write(path, music, SAMPLE_RATE, format="MP3", **coding)
        else:
            shutil.copy(paths[i % 4], path)
    return paths


def untrained_run() -> TrainedRun:
    config = baseline_a_2d.get_config()
    network = Network.from_config(config, GENRES)
    return TrainedRun(network, network.init(), epoch=0)


def decode(path: str) -> None:
    with soundfile.SoundFile(path) as file:
        block = np.empty((1 << 16, file.channels), np.float32)
        while len(file.read(out=block)):
            pass


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    cli.run_main(main)
