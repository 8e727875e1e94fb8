"""Audio files to TFRecords of clips, for one config's data set and network.

    python -m mgc_jax.prepare --config=configs/densenet.py --audio_dir=fma_small
    --metadata_dir=fma_metadata

Imports at the top stay light: worker processes import this module again.
"""

import contextlib
import os

from absl import flags

from mgc_jax import cli

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


def prepare(config, *, audio_dir=None, metadata_dir=None, workers: int = 1) -> None:
    """Writes a config's data set, unless it is there already.

    Args:
        config: a `ConfigDict` as in `configs/default.py`.
        audio_dir, metadata_dir: where the audio is; the demo makes its own.
        workers: processes that decode.

    Raises:
        InputError: nothing usable in those folders.
    """
    import tensorflow_datasets as tfds

    from mgc_jax.datasets import builders
    from mgc_jax.models import features_of

    tfds.disable_progress_bar()  # ours counts tracks
    builder = builders.make_builder(
        config,
        features_of(config.model),
        audio_dir=audio_dir,
        metadata_dir=metadata_dir,
        workers=workers,
    )
    if builder.is_prepared():
        cli.log.info("%s is there already; delete it to make it again", builder.data_dir)
        return
    with contextlib.redirect_stdout(None):  # TFDS talks of downloading
        builder.download_and_prepare()
    metadata = builder.info.metadata
    used = sum(split["tracks"] for split in metadata["splits"].values())
    clips = sum(split["clips"] for split in metadata["splits"].values())
    skipped = metadata["tracks_listed"] - used
    cli.log.info(
        "%s: %d of %d tracks, %d clips%s",
        builder.data_dir,
        used,
        metadata["tracks_listed"],
        clips,
        f"; {skipped} skipped, see {builders.SKIPPED_FILE} there" if skipped else "",
    )


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    config = _CONFIG.value
    if _DATA_DIR.value:
        config.data_dir = _DATA_DIR.value
    prepare(
        config, audio_dir=_AUDIO_DIR.value, metadata_dir=_METADATA_DIR.value, workers=_WORKERS.value
    )


if __name__ == "__main__":
    cli.run(main, __doc__)
