"""Genres of anyone's audio files, from a trained run's workdir alone.

    python -m mgc_jax.predict --pretrained=msd_musicnn song.mp3    # tags, without any training
    python -m mgc_jax.predict --workdir=runs/densenet song.mp3 my_music/
    python -m mgc_jax.predict --workdir=runs/densenet mix.flac --timeline --plot=pictures

A file's genres are the mean of its clips' log-probabilities; --timeline shows the clips. Files may
have any length, folders are searched for audio. Bad files are reported on stderr and the rest go
on; the exit code is 1 if any was bad. Files go through the features that the run was trained with.
Tags are true or not by themselves: a tag's activation, in [0, 1], is the mean over the clips.
"""

import csv
import itertools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from tqdm import tqdm

from mgc_jax import cli, console
from mgc_jax.errors import InputError
from mgc_jax.files import cell

if TYPE_CHECKING:
    from mgc_jax.predictor import Prediction, Predictor

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_network("predicts")
    flags.DEFINE_enum(
        "format",
        "table",
        ["table", "json", "csv"],
        "A table for people, one JSON object a line, or CSV with one row a file. Files that cannot "
        "be used have the reason in `error` in the latter two.",
    )
    flags.DEFINE_integer(
        "top", 3, "Genres (or tags) that the table lists of a file.", lower_bound=1
    )
    flags.DEFINE_bool("timeline", False, "Genres over time too, clip by clip.")
    cli.define_path(
        "plot", None, "Folder for a picture of each file: spectrogram and genres over time."
    )
    flags.DEFINE_integer("batch_size", 8, "Clips a step; changes the speed only.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Predicts the files and folders named as arguments."""
    name = cli.named_network()
    if FLAGS.timeline and FLAGS.format == "csv":
        raise InputError("--timeline does not fit into --format=csv: use json")
    if missing := [path for path in argv[1:] if not os.path.exists(path)]:
        raise InputError(f"no such file or folder: {missing[0]}")
    # Not at the top: they take a second, and --help none.
    from mgc_jax.predictor import find_files, load

    files = list(find_files(argv[1:]))
    if not files:
        raise InputError("no audio files: name files, or folders that hold some")
    if FLAGS.plot:
        _make_folder(FLAGS.plot)
    predictor = load(name, FLAGS.batch_size)
    if predictor.notice:
        console.log.warning("%s was %s", name, predictor.notice)
    # File names need not be UTF-8: what JSON writes for such bytes will do everywhere.
    sys.stdout.reconfigure(errors="backslashreplace")
    if FLAGS.format == "csv":
        columns = ["genre", *(f"prob_{genre}" for genre in predictor.genres)]
        if predictor.tagging:
            columns = [f"tag_{tag}" for tag in predictor.genres]
        csv.writer(sys.stdout).writerow(["path", *columns, "silent_clips", "error"])
    failed = 0
    plotted = set()
    with tqdm(total=len(files), unit="file", leave=False, disable=None) as bar:
        for result in predictor.stream(files, spectrograms=bool(FLAGS.plot)):
            with bar.external_write_mode():
                if result.error is not None:
                    failed += 1
                    source = console.shown(result.source)
                    print(f"error: {source}: {result.error}", file=sys.stderr)
                _WRITERS[FLAGS.format](result, predictor)
                sys.stdout.flush()
            if FLAGS.plot and result.error is None:
                _save_plot(result, plotted)
            bar.update()
    if failed:
        raise InputError(f"{failed} of {len(files)} files could not be used")


def _write_table(result: "Prediction", _: "Predictor") -> None:
    """The likeliest genres, of the file and, if asked for, of each clip."""
    if result.error is not None:
        return
    print(console.shown(result.source))
    for genre, probability in list(result.ranking.items())[: FLAGS.top]:
        print(f"  {_share(probability, result)}  {genre}")
    if result.silent_clips:
        print(f"  clips without signal, left out: {result.silent_clips}")
    if FLAGS.timeline:
        for start, row in zip(result.starts, result.timeline, strict=True):
            minutes, seconds = divmod(int(start), 60)
            genre = result.genres[row.argmax()]
            print(f"  {minutes:3d}:{seconds:02d}  {_share(row.max(), result)}  {genre}")


def _share(value: float, result: "Prediction") -> str:
    """Probabilities of all genres make 100%; activations of tags do not."""
    return f"{value:6.3f}" if result.tagging else f"{value:6.1%}"


def _write_json(result: "Prediction", _: "Predictor") -> None:
    """One object a line; of a file that cannot be used, with the reason.

    Of tags, `tags` takes the place of `genre` and `probabilities`.
    """
    found = {"path": result.source}
    if result.error is not None:
        found["error"] = result.error
    else:
        values = "tags" if result.tagging else "probabilities"
        found |= {} if result.tagging else {"genre": result.genre}
        found |= {values: result.ranking, "silent_clips": result.silent_clips}
        if FLAGS.timeline:
            found["timeline"] = [
                {
                    "start": round(float(start), 3),
                    values: dict(zip(result.genres, row.tolist(), strict=True)),
                }
                for start, row in zip(result.starts, result.timeline, strict=True)
            ]
    print(json.dumps(found, ensure_ascii=False))


def _write_csv(result: "Prediction", predictor: "Predictor") -> None:
    columns = [result.ranking.get(genre) for genre in predictor.genres]
    if not predictor.tagging:
        columns = [cell(result.genre or ""), *columns]
    silent = None if result.error else result.silent_clips
    path = cell(result.source, "./")
    csv.writer(sys.stdout).writerow([path, *columns, silent, result.error])


_WRITERS = {"table": _write_table, "json": _write_json, "csv": _write_csv}


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to --plot={path}: {error.strerror}") from None


def _save_plot(result: "Prediction", written: set[str]) -> None:
    """Writes `song.mp3.png`, or `song.mp3-2.png` where files of several folders share a name."""
    from mgc_jax.results.page import no_glyph_warnings
    from mgc_jax.timeline import plot_timeline

    base = name = os.path.basename(result.source)
    for number in itertools.count(2):
        if name not in written:
            break
        name = f"{base}-{number}"
    written.add(name)
    path = os.path.join(FLAGS.plot, f"{name}.png")
    with no_glyph_warnings():
        plot_timeline(result).savefig(path)


if __name__ == "__main__":
    cli.run("predict")
