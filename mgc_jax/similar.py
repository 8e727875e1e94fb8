"""The songs of a library that are most like one, by an index that `mgc_jax embed` made.

    python -m mgc_jax.similar --index=songs.npz my_music/song.mp3 --m3u=like_song.m3u

Ranks all songs of the index by the cosine of the angle between their vectors and the song's. A song
that is not in the index is embedded first, by the run that made the index.
"""

import os
from typing import TYPE_CHECKING

from absl import flags

from mgc_jax import cli, console
from mgc_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from mgc_jax.results.song_index import SongIndex

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_path("index", None, "Index to search: a file that `mgc_jax embed` made.")
    cli.define_path(
        "workdir", None, "Workdir of the run that made the index, where it has moved since."
    )
    flags.DEFINE_integer("top", 10, "Songs that are listed.", lower_bound=1)
    cli.define_path("m3u", None, "Playlist to write: the song, then those that are listed.")


def main(argv: list[str]) -> None:
    """Lists the songs that are most like the one named as argument."""
    if not FLAGS.index:
        raise InputError("--index=... is missing: a file that `mgc_jax embed` made")
    if len(argv) != 2:
        raise InputError("give one song: mgc_jax similar --index=songs.npz song.mp3")
    if not os.path.isfile(argv[1]):
        raise InputError(f"no such file: {argv[1]}")
    # Not at the top: NumPy takes a while, and --help none.
    from mgc_jax.results.song_index import SongIndex, write_playlist

    song = os.path.abspath(argv[1])
    index = SongIndex.open(FLAGS.index)
    if song in index.paths:
        vector = index.vector(index.paths.index(song))
    else:
        vector = _embedded(song, index)
    found = index.nearest(vector, FLAGS.top, without=[song])
    for path, cosine in found:
        print(f"{cosine:7.4f}  {console.shown(path)}")
    if FLAGS.m3u:
        try:
            write_playlist(FLAGS.m3u, [song, *(path for path, _ in found)])
        except OSError as error:
            raise InputError(f"cannot write to --m3u={FLAGS.m3u}: {error.strerror}") from None


def _embedded(song: str, index: "SongIndex") -> "np.ndarray":
    """The vector of a song that is not in the index.

    Raises:
        InputError: the song cannot be used, or the index is another network's.
    """
    from mgc_jax.predictor import load

    workdir = FLAGS.workdir or index.about.get("workdir")
    if not workdir:
        raise InputError(f"{song} is not in {index.file}: --workdir=... tells which run embeds it")
    predictor = load(workdir)
    if predictor.fingerprint != index.about["network"]:
        raise InputError(
            f"{index.file} was made with other weights than those of {workdir}: name the run that "
            "made it by --workdir, or make the index anew"
        )
    (result,) = predictor.embed(song)
    if result.vector is None:
        raise InputError(f"{song}: {result.error}")
    return result.vector


if __name__ == "__main__":
    cli.run("similar")
