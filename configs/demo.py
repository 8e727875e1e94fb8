"""Any network on the embedded demo data: synthesised music, so the scores say nothing about real
music.

python -m mgc_jax.main --config=configs/demo.py            (Baseline A (2D))
python -m mgc_jax.main --config=configs/demo.py:densenet   (or another network)
"""

from ml_collections import ConfigDict

from mgc_jax.configs import default


def get_config(model: str = "baseline_a_2d") -> ConfigDict:
    config = default.get_config()
    config.dataset = "demo"
    config.model = model
    return config
