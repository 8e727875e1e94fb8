"""Audio files to TFRecords of clips, for one config's data set and network.

    python -m mgc_jax.prepare --config=configs/densenet.py --audio_dir=data/fma_small

Fills tfrecords/<data set>/<features>/; skipped.csv there lists the tracks that could not be used.
"""

import os

from absl import flags

from mgc_jax import cli

# Imports at the top stay light: worker processes import this module again.
_CONFIG = cli.define_config()
_AUDIO_DIR = flags.DEFINE_string(
    "audio_dir", None, "Folder of audio files; FMA: the one that holds 000/, 001/, ..."
)
_METADATA_DIR = flags.DEFINE_string(
    "metadata_dir", None, "Folder of tracks.csv; default: fma_metadata beside it."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFRecords go; default: config.data_dir.")
_WORKERS = flags.DEFINE_integer(
    "workers", os.cpu_count(), "Processes that decode audio.", lower_bound=1
)


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    config = _CONFIG.value
    if _DATA_DIR.value:
        config.data_dir = _DATA_DIR.value
    from mgc_jax.datasets import builders
    from mgc_jax.models import features_of

    builders.prepare(
        config,
        features_of(config.model),
        audio_dir=_AUDIO_DIR.value,
        metadata_dir=_METADATA_DIR.value,
        workers=_WORKERS.value,
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
