"""PyTorch's DataLoader over stored clips, for benchmarks/input_pipeline.py.

It imports nothing of JAX and TensorFlow, and its functions run in a process of their own, so that
the loader's workers can be forked as usual.
"""

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def write(folder: Path, clips: dict[str, np.ndarray]) -> None:
    """Stores clips (`[clips, ...]` of each feature) as one array, and as float32 one by one."""
    for name, array in clips.items():
        np.save(folder / f"{name}.npy", array)
        (folder / name).mkdir(exist_ok=True)
        for i, clip in enumerate(array):
            np.save(folder / name / f"{i}.npy", clip.astype(np.float32))


def rate(
    folder: Path, kind: str, names: tuple[str, ...], batch_size: int, workers: int, seconds: float
) -> float:
    """Clips/s of a turn; loaders stay open between turns.

    Args:
        folder: as `write` left it.
        kind: `npy` or `memmap`.
        names: of the features.
        batch_size: clips a batch.
        workers: processes of the loader.
        seconds: length of the turn.
    """
    batches = _batches(folder, kind, names, batch_size, workers)
    count_batches(batches, seconds / 2)  # some waited since the last turn
    count, passed = count_batches(batches, seconds)
    return count * batch_size / passed


def count_batches(batches: Iterator, seconds: float) -> tuple[int, float]:
    """Reads for so long; returns how many came, and in how many seconds."""
    start = time.perf_counter()
    for count, _ in enumerate(batches, 1):
        passed = time.perf_counter() - start
        if passed >= seconds:
            return count, passed


def close() -> None:
    """Ends the loaders' workers."""
    _batches.cache_clear()


class _Clips:
    def __init__(self, folder: Path, kind: str, names: tuple[str, ...]):
        self._folder, self._kind = folder, kind
        self._arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in names}

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values())))

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if self._kind == "memmap":
            # Without the map's subclass, which takes longer to slice than the clip to copy.
            return {name: np.asarray(array)[i] for name, array in self._arrays.items()} | {
                "label": i % 8
            }
        return {name: np.load(self._folder / name / f"{i}.npy") for name in self._arrays} | {
            "label": i % 8
        }


@functools.cache
def _batches(
    folder: Path, kind: str, names: tuple[str, ...], batch_size: int, workers: int
) -> Iterator:
    import torch

    torch.set_num_threads(1)  # it only copies
    clips = _Clips(folder, kind, names)
    # Many epochs in one, as starting an epoch takes the loader longer than a batch.
    sampler = torch.utils.data.RandomSampler(clips, num_samples=10**4 * len(clips))
    loader = torch.utils.data.DataLoader(
        clips, batch_size=batch_size, sampler=sampler, num_workers=workers
    )
    return iter(loader)
