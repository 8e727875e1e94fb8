"""A vector for every song of a library, from a trained run: an index for `mgc_jax similar`.

    python -m mgc_jax.embed --workdir=runs/densenet my_music/ --output=songs.npz
    python -m mgc_jax.embed --pretrained=msd_musicnn my_music/    # without any training

The vector is what the network has before its classifier, the mean over the file's clips. songs.npz
holds `paths [songs] str`, absolute, and `vectors [songs, channels] float32`; numpy.load reads it.
While the command runs, the folder songs.part grows; after a kill the same command goes on from it,
and files that changed since are done again. Bad files are reported on stderr and the rest go on;
the exit code is 1 if any was bad.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mgc_jax import cli, console
from mgc_jax.errors import InputError

if TYPE_CHECKING:
    from mgc_jax.predictor import Predictor
    from mgc_jax.results.song_index import GrowingIndex

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_network("embeds")
    cli.define_path("output", "songs.npz", "Index to write; should end in .npz.")
    cli.define_shard()
    flags.DEFINE_integer("batch_size", 8, "Clips a step; changes the speed only.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Embeds the files and folders named as arguments."""
    output = Path(FLAGS.output)
    name = cli.named_network()
    if output.suffix != ".npz":
        raise InputError(f"--output={output}: it should end in .npz")
    # Not at the top: they take a second, and --help none.
    from mgc_jax.library import find_songs
    from mgc_jax.predictor import load
    from mgc_jax.results.song_index import GrowingIndex

    files = find_songs(argv[1:], FLAGS.shard, absolute=True)
    predictor = load(name, FLAGS.batch_size)
    if predictor.notice:
        console.log.warning("%s was %s", name, predictor.notice)
    workdir = os.path.abspath(name) if os.path.exists(name) else name
    about = {"network": predictor.fingerprint, "workdir": workdir}
    try:
        with GrowingIndex(output, predictor.fingerprint, predictor.embedding_size) as index:
            _embed(predictor, files, index)
            failed = index.errors(files)
            count = index.finish(files, about)
    except OSError as error:
        raise InputError(f"cannot write to --output={output}: {error.strerror}") from None
    console.log.info("index %s: %d songs", output, count)
    if failed:
        raise InputError(f"{len(failed)} of {len(files)} files could not be used")


def _embed(
    predictor: "Predictor", files: Mapping[str, tuple[int, int]], index: "GrowingIndex"
) -> None:
    """Adds the files that the index lacks; says which cannot be used."""
    from mgc_jax.library import ISOLATED_FROM, following

    stamps = {path: stamp for path, stamp in files.items() if not index.has(path)}
    if len(stamps) < len(files):
        done = len(files) - len(stamps)
        console.log.info("%d of %d files are done already: going on", done, len(files))
        for path, error in index.errors(set(files) - set(stamps)).items():
            console.report_bad(path, error)
    isolated = len(stamps) >= ISOLATED_FROM
    embed = predictor.stream_embeddings_isolated if isolated else predictor.stream_embeddings
    for result in following(embed(stamps), stamps, "embedding"):
        index.add(result.source, stamps[result.source], result.vector, result.error)
        if result.error is not None:
            console.report_bad(result.source, result.error)


if __name__ == "__main__":
    cli.run("embed")
