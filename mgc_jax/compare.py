"""Several finished runs on one page, with the source's results table, and as Markdown.

    python -m mgc_jax.compare runs/densenet runs/baseline_a_2d runs/baseline_b

All runs must have been tested on the same tracks. The best of them (F1, track level) is compared
with each other by a paired bootstrap and by McNemar's test; runs whose configs differ in the seed
only are also shown as their mean and spread. Writes comparison.html and
comparison.md beside the runs; folders that are no finished run are passed over.
"""

import os
from pathlib import Path

from absl import flags

from mgc_jax import cli, console
from mgc_jax.errors import InputError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_path(
        "output",
        None,
        "Page to write; the Markdown goes beside it, as .md. Default: comparison.html in the "
        "folder that the runs lie in.",
    )


def main(argv: list[str]) -> None:
    """Reads the runs named as arguments, and writes the page."""
    if len(argv) < 3:
        raise InputError("name at least two workdirs of finished runs (see --help)")
    # Not at the top: they take a second, and --help none.
    from mgc_jax.results.comparison import read_runs, write_comparison

    path = Path(FLAGS.output or _beside(argv[1:]))
    if path.suffix != ".html":
        raise InputError(f"--output={path}: it should end in .html")
    runs = read_runs(argv[1:])
    try:
        write_comparison(runs, path)
    except OSError as error:
        raise InputError(f"cannot write to --output={path}: {error.strerror}") from None
    console.log.info("best       %s, F1 %.3f", runs[0].name, runs[0].metrics["track"]["f1"])
    console.log.info("comparison %s, %s", path, path.with_suffix(".md"))


def _beside(workdirs: list[str]) -> str:
    """The page's place in the folder that all runs lie in."""
    folders = [os.path.dirname(os.path.abspath(workdir)) for workdir in workdirs]
    return os.path.join(os.path.commonpath(folders), "comparison.html")


if __name__ == "__main__":
    cli.run("compare")
