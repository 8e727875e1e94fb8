"""musicnn, fine-tuned from published weights: Pons and Serra, ISMIR late-breaking 2019.

    python -m mgc_jax.main --config=configs/musicnn.py --workdir=runs/musicnn

--config.init_from=mtt_musicnn starts from the other weights (`mgc_jax weights` lists them); without
any, --config.init_from= --config.optimizer.freeze= and
--config.model_overrides.freeze_statistics=False.
--config.optimizer.freeze='trunk/(input|timbral|temporal)' keeps all filters that read the picture:
a step takes a quarter of the time then. The source has no such network. Ours: not yet measured on
FMA small.
"""

from ml_collections import ConfigDict

from mgc_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.model = "musicnn"
    config.init_from = "msd_musicnn"
    config.model_overrides.freeze_statistics = True
    # The norm of the input stays as well: two numbers, for which every gradient would go back
    # through all filters, half as long again.
    config.optimizer.freeze = "trunk/input_norm"
    # As it was published.
    config.model_overrides.dropout = 0.5
    return config
