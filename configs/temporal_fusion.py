"""Fusion over time, on log-mel pictures and waveforms of FMA small: what the source wished for.

    python -m mgc_jax.main --config=configs/temporal_fusion.py --workdir=runs/temporal_fusion

--config.model_overrides.fusion=late pools each branch by itself, as its ablation;
--config.model_overrides.picture=densenet (or baseline_b) and sound=trunk are other branches. The
source has no such network. Ours: not yet measured on FMA small.
"""

from ml_collections import ConfigDict

from mgc_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model = "temporal_fusion"
    # The picture's branch, the waveform's, and where they meet.
    config.model_overrides.picture = "baseline_a_2d"
    config.model_overrides.sound = "residual"
    config.model_overrides.fusion = "time"
    # Half of what the source takes of one input.
    config.batch_size = 16
    # As in the source's configs.
    config.augment.noise_probability = 0.5
    config.augment.stretch_probability = 0.5
    return config
