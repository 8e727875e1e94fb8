"""Times the training loop against the bare compiled step that it repeats.

    python benchmarks/train_loop.py
    python benchmarks/train_loop.py --batch=64 --steps=100

The loop is the package's own, with logs, metrics and the saving after each epoch, over a batch that
is always there. The bare step gets the same batch from the host, one after another without a look
at what comes out. Its turns are in the loop's validations, so that both run in one process under
the same conditions. Run it on an idle machine; choose --batch so that a step takes about 10 ms.

Prints one JSON object:

step_ms          a bare step, the median of the turns
overhead         seconds of an epoch in the loop / seconds of as many bare steps - 1, the median
                 over the epochs
overheads        of each epoch
"""

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from absl import flags

from mgc_jax import cli, console, parallel
from mgc_jax.configs import default
from mgc_jax.data.input_pipeline import ClipDataset
from mgc_jax.training import loop
from mgc_jax.training.network import Network
from mgc_jax.training.step import create_train_state, train_step

_BATCH = flags.DEFINE_integer("batch", 4, "Clips a step.", 1)
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of an epoch and of a bare turn.", 10)
_REPETITIONS = flags.DEFINE_integer("repetitions", 25, "Epochs, each with a bare turn.", 1)
_MODEL = flags.DEFINE_string("model", "baseline_a_2d", "Network, one on log-mels.")


class SameBatch:
    """A split that has the same batch ready at every step, as the loop sees a `Split`."""

    def __init__(self, batch: dict[str, np.ndarray], validating: Callable[[], None]):
        """Takes what to call whenever the loop validates."""
        self._batch, self._validating = batch, validating
        names = ("label", "track_id", "clip")
        self.labels = {name: batch["label"].astype(np.int64) for name in names}

    def __len__(self) -> int:
        return len(self._batch["label"])

    def steps_per_epoch(self, batch_size: int) -> int:
        return _STEPS.value

    def on_devices(self, share: float) -> dict:
        return {}

    def train_batches(self, batch_size: int, seed: int, first_step: int, copy: bool):
        return (dict(self._batch) for _ in itertools.count())

    def eval_batches(self, batch_size: int):
        self._validating()
        yield dict(self._batch)


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    console.log.setLevel("WARNING")
    parallel.keep_memory()
    config = default.get_config()
    # The first epoch compiles.
    config.update(model=_MODEL.value, batch_size=_BATCH.value, num_epochs=_REPETITIONS.value + 1)
    rng = np.random.default_rng(0)
    network = Network.from_config(config, [str(i) for i in range(8)])
    (mel,) = network.features
    batch = {
        mel.name: rng.integers(0, 256, (_BATCH.value, *mel.shape), np.uint8),
        "label": rng.integers(0, 8, _BATCH.value).astype(np.int32),
    }
    state = create_train_state(network)
    step = parallel.data_parallel(lambda s, b: train_step(s, b, network), donate=True)
    state, _ = step(state, batch)
    bare = []

    def bare_turn() -> None:
        nonlocal state
        start = time.perf_counter()
        for _ in range(_STEPS.value):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        bare.append(time.perf_counter() - start)

    split = SameBatch(batch, bare_turn)
    splits = {"train": split, "validation": split}
    dataset = ClipDataset(Path(), list(network.genres), splits, {})
    with tempfile.TemporaryDirectory() as workdir:
        loop.train(network, Path(workdir), dataset)
        lines = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
        looped = [line["seconds"] for line in lines if line["kind"] == "train"]
    overheads = [a / b - 1 for a, b in zip(looped[1:], bare[1:], strict=True)]
    result = {
        "step_ms": 1000 * statistics.median(bare) / _STEPS.value,
        "overhead": statistics.median(overheads),
        "overheads": overheads,
        "steps": _STEPS.value,
        "devices": parallel.describe_devices(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    cli.run_main(main)
