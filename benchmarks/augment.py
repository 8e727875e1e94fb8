"""Times what augmentation adds to a train step.

    python benchmarks/augment.py
    python benchmarks/augment.py --networks=baseline_a_1d,fusionnet --repetitions=9

Runs the package's own train step on stored features that already lie on the device, in alternation
without augmentation and with what the network's config asks for (white noise and time stretching).
Each repetition is another step of training, as the clips to be changed are drawn. Prints one JSON
object: `{network: {"batch", "off_s", "on_s", "ratio", "ratio_of_best", "ratio_of_cpu"}}`.

off_s, on_s      seconds a step, medians of the repetitions
ratio            the median of on / off over the pairs of repetitions
ratio_of_best    the fastest on / the fastest off; far from ratio means that the machine was busy
ratio_of_cpu     of the process's CPU seconds, sums of all repetitions; less disturbed by others
"""

import functools
import importlib
import json
import statistics
import sys
import time
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from absl import flags

from mgc_jax import cli, parallel
from mgc_jax.models import MODELS
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.network import Network
from mgc_jax.training.step import create_train_state, train_step

_NETWORKS = flags.DEFINE_list("networks", list(MODELS), "Names of networks.")
_BATCH = flags.DEFINE_integer("batch", 0, "Clips a step; 0: as in each config.", 0)
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Repetitions to take medians of.", 1)


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    print(json.dumps({name: _measure(name) for name in _NETWORKS.value}, indent=2))


def _measure(name: str) -> dict:
    config = importlib.import_module(f"mgc_jax.configs.{name}").get_config()
    network = Network.from_config(config, list("abcdefgh"))
    rng = np.random.default_rng(0)
    size = _BATCH.value or config.batch_size
    batch = {"label": rng.integers(0, 8, size, np.int32)}
    for feature in network.features:
        info = np.iinfo(feature.dtype)
        shape = (size, *feature.shape)
        batch[feature.name] = rng.integers(info.min, info.max, shape, feature.dtype, endpoint=True)
    batch = jax.device_put(batch)

    augmenter = Augmenter(config, network.features)

    def bare(state, batch):
        return train_step(state, batch, network)

    def augmented(state, batch, noise):
        return train_step(state, batch, network, functools.partial(augmenter, noise=noise))

    state = create_train_state(network)
    state = state.replace(step=parallel.replicate(np.int32(0)))
    kept = augmenter.noise()
    steps = [parallel.data_parallel(bare), parallel.data_parallel(augmented, kept=kept)]
    for step in steps:
        _seconds(step, state, batch)
    rounds = []
    for number in range(_REPETITIONS.value):
        state = state.replace(step=parallel.replicate(np.int32(number)))
        rounds.append([_seconds(step, state, batch) for step in steps])
    (off, off_cpu), (on, on_cpu) = (zip(*side, strict=True) for side in zip(*rounds, strict=True))
    return {
        "batch": size,
        "off_s": round(statistics.median(off), 4),
        "on_s": round(statistics.median(on), 4),
        "ratio": round(statistics.median(b / a for a, b in zip(off, on, strict=True)), 3),
        "ratio_of_best": round(min(on) / min(off), 3),
        "ratio_of_cpu": round(sum(on_cpu) / sum(off_cpu), 3),
    }


def _seconds(step, state, batch) -> tuple[float, float]:
    """By the clock, and of the CPUs."""
    start = time.perf_counter()
    cpu = time.process_time()
    jax.block_until_ready(step(state, batch))
    return time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    cli.run_main(main)
