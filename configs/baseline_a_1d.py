"""Baseline A (1D), a convolutional network on the waveforms of FMA small.

    python -m mgc_jax.main --config=configs/baseline_a_1d.py --workdir=runs/baseline_a_1d

The source reached F1 0.448 and accuracy (one against the rest) 0.864 on the test split. Ours: not
yet measured.
"""

from ml_collections import ConfigDict

from mgc_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model = "baseline_a_1d"
    config.batch_size = 16
    # White noise and time stretching, as in the source, which does not say how much: the shares
    # here and the strengths in configs/default.py are ours.
    config.augment.noise_probability = 0.5
    config.augment.stretch_probability = 0.5
    return config
