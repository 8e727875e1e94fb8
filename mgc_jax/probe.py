"""Fit a head on published networks that stay as they are: good genres from few tracks, in minutes.

    python -m mgc_jax.prepare --config=configs/probe.py --audio_dir=fma_small --metadata_dir=...
    python -m mgc_jax.probe --config=configs/probe.py --workdir=runs/probe
    python -m mgc_jax.probe --config=configs/probe.py --workdir=runs/both \\
        --pretrained=msd_musicnn,mtt_musicnn

The records are passed through the networks once. The head, a logistic regression or a machine of
radial basis functions, sees the mean and the deviation over a track's patches of 3 s; its kind and
its penalty are chosen, and its probabilities calibrated, by the validation tracks; then it is
fitted once more, to these too. It ends as any run: the test split is evaluated, and predict,
compare, export and app take the workdir.

A killed probe goes on with the same command; exit code 75 says that it was told to stop.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from mgc_jax import cli, console

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_config()
    flags.DEFINE_string(
        "pretrained",
        None,
        "Public weights (`mgc_jax weights` lists them), several with commas between them; files "
        "and runs of musicnn do too. Default: config.init_from.",
    )
    cli.define_path(
        "workdir", "runs/probe", "Folder of the head, its network, log and report; is made."
    )


def main(argv: list[str]) -> None:
    """Fits, evaluates and reports."""
    cli.reject_arguments(argv)
    console.log.info("loading   JAX and TensorFlow")
    # Not at the top: they take seconds, and --help none.
    from mgc_jax.training.probing import probe_and_evaluate

    config = FLAGS.config
    with config.unlocked():
        config.init_from = FLAGS.pretrained or config.init_from
    command = shlex.join(["python", "-m", "mgc_jax.probe", *sys.argv[1:]])
    probe_and_evaluate(config, Path(FLAGS.workdir).absolute(), command)


if __name__ == "__main__":
    cli.run("probe")
