"""Times what augmentation adds to a train step.

    python benchmarks/augment.py
    python benchmarks/augment.py --networks=baseline_a_1d,fusionnet --repetitions=9

Runs the package's own train step on stored features that already lie on the device, in alternation
without augmentation and with what the network's config asks for (white noise and time stretching).
Prints one JSON object: `{network: {"batch", "off_s", "on_s", "ratio", "ratio_of_best"}}`.

off_s, on_s      seconds a step, medians of the repetitions
ratio            the median of on / off over the pairs of repetitions
ratio_of_best    the fastest on / the fastest off; far from ratio means that the machine was busy
"""

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
from mgc_jax.training.augment import Augmenter
from mgc_jax.training.network import Network
from mgc_jax.training.step import create_train_state, train_step

_NETWORKS = flags.DEFINE_list("networks", ["densenet"], "Names of networks.")
_BATCH = flags.DEFINE_integer("batch", 8, "Clips a step.", 1)
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Repetitions to take medians of.", 1)


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    print(json.dumps({name: _measure(name) for name in _NETWORKS.value}, indent=2))


def _measure(name: str) -> dict:
    config = importlib.import_module(f"mgc_jax.configs.{name}").get_config()
    network = Network.from_config(config, list("abcdefgh"))
    rng = np.random.default_rng(0)
    batch = {"label": rng.integers(0, 8, _BATCH.value, np.int32)}
    for feature in network.features:
        info = np.iinfo(feature.dtype)
        shape = (_BATCH.value, *feature.shape)
        batch[feature.name] = rng.integers(info.min, info.max, shape, feature.dtype, endpoint=True)
    batch = jax.device_put(batch)

    def compiled(augment: Augmenter | None):
        return parallel.data_parallel(
            lambda state, batch: train_step(state, batch, network, augment)
        )

    state = create_train_state(network)
    steps = [compiled(None), compiled(Augmenter(config, network.features))]
    for step in steps:
        _seconds(step, state, batch)
    rounds = [[_seconds(step, state, batch) for step in steps] for _ in range(_REPETITIONS.value)]
    off, on = zip(*rounds, strict=True)
    return {
        "batch": _BATCH.value,
        "off_s": round(statistics.median(off), 4),
        "on_s": round(statistics.median(on), 4),
        "ratio": round(statistics.median(b / a for a, b in rounds), 3),
        "ratio_of_best": round(min(on) / min(off), 3),
    }


def _seconds(step, state, batch) -> float:
    start = time.perf_counter()
    jax.block_until_ready(step(state, batch))
    return time.perf_counter() - start


if __name__ == "__main__":
    cli.run_main(main)
