"""A trained network with its features as files that need nothing of this package.

    python -m mgc_jax.export --workdir=runs/densenet exported/

exported/network.jax_export   for jax.export.deserialize, on CPUs and NVIDIA GPUs
exported/saved_model/         for tf.saved_model.load, on CPUs; where tensorflow is installed
exported/network.onnx         for onnxruntime; with --onnx
exported/model.json           genres, sample rate and samples of a clip

All are one function: clips `[batch, samples] float32`, mono in [-1, 1], to probabilities
`[batch, genres] float32`, for any batch. Inside, features are rounded as they are for training.
docs/export.md shows how to call them. A file's prediction is the mean of its clips'
log-probabilities; but for a probe's, which reads all patches of a file at once, and of which what
is exported is for clips.
"""

from pathlib import Path

from absl import flags

from mgc_jax import cli
from mgc_jax.errors import InputError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_path("workdir", None, "Workdir of the run whose best checkpoint is exported.")
    flags.DEFINE_bool("onnx", False, "Write network.onnx too (extra onnx, and jax2onnx).")


def main(argv: list[str]) -> None:
    """Writes the files into the folder named as argument."""
    if not FLAGS.workdir:
        raise InputError("--workdir=... is missing: the folder of a trained run")
    if len(argv) != 2:
        raise InputError("give one folder to write to: python -m mgc_jax.export --workdir=W OUT")
    # Not at the top: it takes a second, and --help none.
    from mgc_jax.exporter import export_run

    out = Path(argv[1])
    try:
        out.mkdir(parents=True, exist_ok=True)
        export_run(FLAGS.workdir, out, FLAGS.onnx)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}") from None


if __name__ == "__main__":
    cli.run("export")
