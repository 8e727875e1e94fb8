"""A head on published weights that stay as they are: musicnn, ISMIR late-breaking 2019.

    python -m mgc_jax.probe --config=configs/probe.py --workdir=runs/probe

--pretrained=msd_musicnn,mtt_musicnn is on both. The source has no such network. Ours: not measured
on FMA small; benchmarks/RESULTS.md has what it reaches on other music.
"""

from ml_collections import ConfigDict

from mgc_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model = "probe"
    config.init_from = "msd_musicnn"
    return config
