"""Audio files to TFRecords of clips, for one config's data set and network.

    python -m mgc_jax.prepare --config=configs/densenet.py --audio_dir=data/fma_small
    python -m mgc_jax.prepare --config=configs/densenet.py --download
    python -m mgc_jax.prepare --config=configs/densenet.py --config.dataset=audio_folder \\
        --audio_dir=music  (one folder a genre)

Fills tfrecords/<data set>/<features>/; skipped.csv there lists the tracks that could not be used.
The same command goes on where an interrupted one stopped.
"""

import os

from absl import flags

from mgc_jax import cli, console

# Imports at the top stay light: worker processes import this module again.

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_config()
    cli.define_path(
        "audio_dir",
        None,
        "Folder of audio files; FMA: the one that holds 000/, 001/, ...; audio_folder and "
        "gtzan: the one that holds a folder for each genre.",
    )
    cli.define_path("metadata_dir", None, "Folder of tracks.csv; default: fma_metadata beside it.")
    flags.DEFINE_bool(
        "download",
        False,
        "Without --audio_dir: fetch FMA's archives into downloads/ in the data_dir, and unpack "
        "them.",
    )
    cli.define_path(
        "splits_csv",
        None,
        "For audio_folder: a CSV with the columns path (below audio_dir) and split (train, "
        "validation, test); default: the first folders if they are named so, else 80/10/10 by a "
        "hash of the path.",
    )
    cli.define_path(
        "labels_csv",
        None,
        "For audio_folder: a CSV with the columns path (below audio_dir), genre, and, if it "
        "decides on that too, split; default: folders are genres.",
    )
    flags.DEFINE_enum(
        "labels",
        None,
        ["folders", "tags"],
        "For audio_folder: where genres come from, the files' folders (default) or their own tags.",
    )
    flags.DEFINE_enum(
        "group_by",
        None,
        ["file", "parent", "artist"],
        "For audio_folder: what stays in one split, a file, all files of its folder (an album), or "
        "all files of an artist by their tags; default: parent where genres hold folders.",
    )
    flags.DEFINE_float(
        "max_skipped",
        0.05,
        "The largest share of tracks that may be unusable.",
        lower_bound=0,
        upper_bound=1,
    )
    cli.define_path("data_dir", None, "Where TFRecords go; default: config.data_dir.")
    flags.DEFINE_integer(
        "workers",
        None,
        "Processes that decode audio; default: one for each core.",
        lower_bound=1,
    )
    flags.DEFINE_string(
        "beam_runner",
        None,
        "Decode and write on Apache Beam (extra beam): DirectRunner, DataflowRunner, ...",
    )
    flags.DEFINE_string(
        "beam_options",
        "",
        "The runner's options, as in direct_num_workers=4,direct_running_mode=multi_processing.",
    )


def main(argv: list[str]) -> None:
    """Writes the records that the flags ask for."""
    cli.reject_arguments(argv)
    config = FLAGS.config
    if FLAGS.data_dir:
        config.data_dir = FLAGS.data_dir
    console.log.info("loading   JAX and TensorFlow")
    from mgc_jax.data import preparation
    from mgc_jax.models import inputs_of

    preparation.prepare(
        config,
        inputs_of(config.model),
        audio_dir=FLAGS.audio_dir,
        metadata_dir=FLAGS.metadata_dir,
        download=FLAGS.download,
        splits_csv=FLAGS.splits_csv,
        labels_csv=FLAGS.labels_csv,
        labels=FLAGS.labels,
        group_by=FLAGS.group_by,
        max_skipped=FLAGS.max_skipped,
        workers=FLAGS.workers or os.cpu_count() or 1,
        beam_runner=FLAGS.beam_runner,
        beam_options=FLAGS.beam_options,
    )


if __name__ == "__main__":
    cli.run("prepare")
