"""Any network with what is meant to recognise better than the source's recipe.

python -m mgc_jax.prepare --config=configs/recipe.py --download
python -m mgc_jax.main --config=configs/recipe.py --workdir=runs/recipe      (Baseline A (2D))
python -m mgc_jax.main --config=configs/recipe.py:baseline_b --workdir=...   (or another network)

Measured with benchmarks/recognition.py; figures in benchmarks/RESULTS.md, where its lead is within
the noise so far. On FMA small: not yet measured.
"""

from ml_collections import ConfigDict

from mgc_jax.configs import default


def get_config(model: str = "baseline_a_2d") -> ConfigDict:
    config = default.get_config()
    config.model = model
    return with_recipe(config)


def with_recipe(config: ConfigDict) -> ConfigDict:
    """Sets the recipe's keys of a config; returns it."""
    # Each figure is Baseline A (2D)'s top-1 on styles8 above the source's recipe as it keeps its
    # epoch, with this alone: 6 to 10 trainings, and some 0.05 to either side. Together: 0.016.
    # The last epoch is the one kept: 0.030, most of all that follows.
    config.keep = "last"
    # Random stretches of whole tracks: 0.025. An epoch is a third as many clips, so there are
    # thrice as many of them.
    config.audio.clip_seconds = 30.0
    config.mel.frames = 384
    config.mel96.frames = 1875
    config.crop_seconds = 10.0
    config.num_epochs = 60
    # Absolute levels, standardised bands: 0.041.
    config.mel.reference = "fixed"
    config.mel.top_db = 100.0
    # A rate that falls to 0: 0.030.
    config.optimizer.schedule = "cosine"
    # A running average of the weights: 0.025.
    config.average_decay = 0.999
    # No noise and no stretching, as in configs/default.py: 0.033. Mixup, masks and smoothing beside
    # all of this need thrice the steps, and are no better then.
    return config
