"""Train a genre classifier, evaluate its best epoch on the test split, and write a report.

    python -m mgc_jax.main --config=configs/densenet.py --workdir=runs/densenet
    python -m mgc_jax.main --config=configs/densenet.py --workdir=runs/densenet --mode=eval

The same command goes on where an interrupted run stopped; exit code 75 says that it was told to
stop (SIGTERM, Ctrl-C) and saved what it had. Any config key can be given: --config.batch_size=64.
With no flags it trains on the embedded demo data.
"""

import os
import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mgc_jax import cli, console, signals

# Imports at the top stay light: the demo's worker processes import this module again.
FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_config()
    cli.define_path(
        "workdir",
        None,
        "Folder of checkpoints, logs and report; default: runs/<name of the config>.",
    )
    flags.DEFINE_enum(
        "mode",
        "train",
        ["train", "eval"],
        "train (or go on), evaluate, report; or evaluate and report only.",
    )
    flags.DEFINE_bool(
        "multihost",
        False,
        "Train together with the other processes that run this command, as a TPU slice, SLURM, or "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say. Process 0 alone "
        "writes.",
    )


def main(argv: list[str]) -> None:
    """Trains, or evaluates, as the flags say."""
    cli.reject_arguments(argv)
    console.log.info("loading   JAX and TensorFlow")
    from mgc_jax import parallel

    parallel.keep_memory()
    if FLAGS.multihost:
        parallel.join_hosts()
        signals.take_back()
        if not parallel.is_main():
            console.log.setLevel("WARNING")
    from mgc_jax.training.train import train_and_evaluate

    config = FLAGS.config
    workdir = Path(FLAGS.workdir or os.path.join("runs", _run_name())).absolute()
    command = shlex.join(["python", "-m", "mgc_jax.main", *sys.argv[1:]])
    train_and_evaluate(config, workdir, training=FLAGS.mode == "train", command=command)


def _run_name() -> str:
    """`configs/demo.py:densenet` gives `demo-densenet`."""
    path, _, argument = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    return "-".join([Path(path).stem, *filter(None, [argument])])


if __name__ == "__main__":
    cli.run("train")
