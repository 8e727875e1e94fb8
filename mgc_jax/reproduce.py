"""The source's results table, made anew: five networks, several seeds, one command.

    python -m mgc_jax.reproduce --dry_run       what to prepare, and how long it will all take
    python -m mgc_jax.reproduce                 on FMA small
    python -m mgc_jax.reproduce --dataset=audio_folder --networks=baseline_a_2d --seeds=2

Trains each network with each seed as its config says, evaluates the best epochs, and after each run
writes table.md, which can be pasted anywhere, and the page table.html. One set of records serves
all: prepare it with --config=fusionnet, which has both features. The same command goes on where it
was stopped or killed.
"""

from pathlib import Path

from absl import flags

from mgc_jax import cli, console

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    flags.DEFINE_list("networks", None, "Names of networks; default: the source's five.")
    flags.DEFINE_integer("seeds", 3, "Runs of each network: seeds 0, 1, ...", lower_bound=1)
    flags.DEFINE_integer("epochs", None, "Epochs of each run; default: 20.", lower_bound=1)
    flags.DEFINE_string("dataset", "fma_small", "As config.dataset; any that is prepared.")
    flags.DEFINE_string("name", "", "As config.name: of your collection.")
    cli.define_path("data_dir", "tfrecords", "Folder of prepared TFRecords.")
    cli.define_path("output", "results", "Folder for table.md, table.html and the runs.")
    flags.DEFINE_bool(
        "dry_run",
        False,
        "Train nothing: say what to prepare, how large it is, and, by a timed step of each "
        "network, how long the runs would take.",
    )


def main(argv: list[str]) -> None:
    """Trains what is not trained yet, and writes the table; or says what it would take."""
    cli.reject_arguments(argv)
    console.log.info("loading   JAX and TensorFlow")
    from mgc_jax import parallel
    from mgc_jax.training import reproduction

    configs = reproduction.make_configs(
        FLAGS.networks or reproduction.NETWORKS,
        seeds=FLAGS.seeds,
        epochs=FLAGS.epochs,
        dataset=FLAGS.dataset,
        name=FLAGS.name,
        data_dir=FLAGS.data_dir,
    )
    parallel.keep_memory()
    if FLAGS.dry_run:
        reproduction.estimate(configs)
        return
    reproduction.reproduce(configs, Path(FLAGS.output).absolute())


if __name__ == "__main__":
    cli.run("reproduce")
