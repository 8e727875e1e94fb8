"""How strong each band of the training split's log-mels is, by which a network sees them
standardised: measured once, and kept in the workdir."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mgc_jax import console, models, parallel
from mgc_jax.data.features import Feature, Levels, Mel, make_features
from mgc_jax.results import files

if TYPE_CHECKING:
    from mgc_jax.data.input_pipeline import ClipDataset, Split

_AT_ONCE = 64  # clips


def find_levels(config: Mapping, workdir: Path, dataset: "ClipDataset") -> dict[str, Levels]:
    """The levels of a run's features by name: those in its workdir, if it has been trained, or else
    measured.

    Empty unless `config.mel.reference` is fixed.
    """
    features = [f for f in make_features(models.inputs_of(config["model"]), config) if is_fixed(f)]
    if not features:
        return {}
    found = {}
    if parallel.is_main():
        trained = any((workdir / "checkpoints").glob("*/*"))
        found = files.read_levels(workdir) if trained else {}
        found = found or as_json({f.name: measure(dataset.splits["train"], f) for f in features})
    return from_json(json.loads(parallel.share_text(json.dumps(found))))


def is_fixed(feature: Feature) -> bool:
    """Whether a network is to see a feature's bands standardised."""
    return isinstance(feature, Mel) and feature.reference == "fixed"


def measure(split: "Split", feature: Feature) -> Levels:
    """Mean and deviation of each band over all frames of a split.

    Counted in whole numbers, so that any order of clips gives the same. A band without variation
    has the deviation of one step of its bytes.
    """
    sums = np.zeros(feature.shape[-1], np.int64)
    squares = np.zeros(feature.shape[-1], np.int64)
    with console.progress_bar(total=len(split), description="levels", unit="clip") as bar:
        for first in range(0, len(split), _AT_ONCE):
            rows = np.arange(first, min(first + _AT_ONCE, len(split)))
            stored = split.gather(rows)[feature.name].reshape(-1, len(sums))
            sums += stored.sum(axis=0, dtype=np.int64)
            squares += np.square(stored, dtype=np.uint16).sum(axis=0, dtype=np.int64)
            bar.update(len(rows))
    count = len(split) * feature.shape[0]
    mean = sums / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 1))
    mean = mean / 255 * 2 - 1
    deviation = deviation / 255 * 2
    return Levels(mean.astype(np.float32), deviation.astype(np.float32))


def as_json(levels: dict[str, Levels]) -> dict:
    """Levels as lists of numbers, which give them back to the bit."""
    return {
        name: {key: values.tolist() for key, values in found._asdict().items()}
        for name, found in levels.items()
    }


def from_json(stored: dict) -> dict[str, Levels]:
    """Undoes `as_json`; raises TypeError or ValueError for what it did not give."""
    return {
        name: Levels(**{key: np.array(values, np.float32) for key, values in found.items()})
        for name, found in stored.items()
    }
