"""Genres of anyone's audio files, from a trained run's workdir alone.

    python -m mgc_jax.predict --pretrained=msd_musicnn song.mp3    # tags, without any training
    python -m mgc_jax.predict --workdir=runs/densenet song.mp3 my_music/
    python -m mgc_jax.predict --workdir=runs/densenet mix.flac --timeline --plot=pictures
    python -m mgc_jax.predict --workdir=runs/densenet my_music/ --output=genres.csv

A file's genres are the mean of its clips' log-probabilities; --timeline shows the clips. Files may
have any length, folders are searched for audio. Bad files are reported on stderr and the rest go
on; the exit code is 1 if any was bad. Files go through the features that the run was trained with.
Tags are true or not by themselves: a tag's activation, in [0, 1], is the mean over the clips.

--output grows row by row; after a kill the same command goes on from it, and files whose size or
time changed since are done again.
"""

import csv
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mgc_jax import cli, console
from mgc_jax.errors import InputError

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
    cli.define_path(
        "output",
        None,
        "Instead: a .csv or .jsonl file to append to, with each file's absolute path, size and "
        "time.",
    )
    cli.define_unknown()
    cli.define_shard()
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
    ending = _check_flags()
    if FLAGS.timeline and ending == ".csv":
        raise InputError("--timeline does not fit into CSV: use json")
    # Not at the top: they take a second, and --help none.
    from mgc_jax.library import find_songs
    from mgc_jax.predictor import load

    files = find_songs(argv[1:], FLAGS.shard, absolute=bool(FLAGS.output))
    if FLAGS.plot:
        _make_folder(FLAGS.plot)
    predictor = load(name, FLAGS.batch_size, FLAGS.unknown)
    if predictor.notice:
        console.log.warning("%s was %s", name, predictor.notice)
    failed = _append(predictor, files) if FLAGS.output else _print(predictor, files)
    if failed:
        raise InputError(f"{failed} of {len(files)} files could not be used")


def _check_flags() -> str:
    """The kind of what is written, as a file's ending; empty for the table on the terminal."""
    if not FLAGS.output:
        return {"table": "", "json": ".jsonl", "csv": ".csv"}[FLAGS.format]
    ending = os.path.splitext(FLAGS.output)[1]
    if ending not in (".csv", ".jsonl"):
        raise InputError(f"--output={FLAGS.output}: it should end in .csv or .jsonl")
    if FLAGS["format"].present:
        raise InputError("--format is of what is printed, and --output's ending says it of a file")
    return ending


def _print(predictor: "Predictor", files: Mapping[str, tuple[int, int]]) -> int:
    """Prints what is said of the files; how many could not be used."""
    from mgc_jax.answers import csv_columns

    # File names need not be UTF-8: what JSON writes for such bytes will do everywhere.
    sys.stdout.reconfigure(errors="backslashreplace")
    if FLAGS.format == "csv":
        csv.writer(sys.stdout).writerow(csv_columns(predictor))
    failed = 0
    for result in _answers(predictor, files, set()):
        failed += result.error is not None
        _WRITERS[FLAGS.format](result, predictor)
        sys.stdout.flush()
    return failed


def _append(predictor: "Predictor", files: Mapping[str, tuple[int, int]]) -> int:
    """Adds to `--output` what is said of the files that it lacks; how many could not be used."""
    from mgc_jax.answers import GrowingTable

    try:
        with GrowingTable(FLAGS.output, predictor, FLAGS.timeline) as table:
            todo = {path: stamp for path, stamp in files.items() if not table.has(path)}
            done = len(files) - len(todo)
            if done:
                console.log.info("%d of %d files are done already: going on", done, len(files))
            errors = [(path, table.error(path)) for path in files if table.has(path)]
            failed = 0
            for path, error in errors:
                if error is not None:
                    failed += 1
                    console.report_bad(path, error)
            plotted = set()
            for path in table.answered:
                if table.error(path) is None:
                    _picture_of(path, plotted)
            for result in _answers(predictor, todo, plotted):
                failed += result.error is not None
                table.add(result, todo[result.source])
    except OSError as error:
        raise InputError(f"cannot write to --output={FLAGS.output}: {error.strerror}") from None
    return failed


def _answers(
    predictor: "Predictor", files: Mapping[str, tuple[int, int]], plotted: set[str]
) -> Iterator["Prediction"]:
    """Answers files, says which cannot be used, and draws the others if that is asked for.

    Args:
        predictor: that answers.
        files: their paths, with their stamps.
        plotted: names of pictures that are taken.
    """
    from mgc_jax.library import ISOLATED_FROM, following

    if FLAGS.plot or len(files) < ISOLATED_FROM:
        results = predictor.stream(files, spectrograms=bool(FLAGS.plot))
    else:
        results = predictor.stream_isolated(files)
    for result in following(results, files, "predicting"):
        if result.error is not None:
            console.report_bad(result.source, result.error)
        elif FLAGS.plot:
            _save_plot(result, plotted)
        yield result


def _write_table(result: "Prediction", predictor: "Predictor") -> None:
    """The likeliest genres, of the file and, if asked for, of each clip."""
    if result.error is not None:
        return
    print(console.shown(result.source))
    if result.unknown:
        limit = f"{result.distance:.3g} from the nearest, limit {predictor.limit:.3g}"
        print(f"  unknown: like none of these genres ({limit})")
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
    from mgc_jax.answers import json_object

    print(json.dumps(json_object(result, FLAGS.timeline), ensure_ascii=False))


def _write_csv(result: "Prediction", predictor: "Predictor") -> None:
    from mgc_jax.answers import csv_cells

    csv.writer(sys.stdout).writerow(csv_cells(result, predictor))


_WRITERS = {"table": _write_table, "json": _write_json, "csv": _write_csv}


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to --plot={path}: {error.strerror}") from None


def _save_plot(result: "Prediction", written: set[str]) -> None:
    from mgc_jax.results.page import no_glyph_warnings
    from mgc_jax.timeline import plot_timeline

    path = os.path.join(FLAGS.plot, _picture_of(result.source, written))
    with no_glyph_warnings():
        plot_timeline(result).savefig(path)


def _picture_of(path: str, written: set[str]) -> str:
    """`song.mp3.png`, or `song.mp3-2.png` where files of several folders share a name."""
    base = name = os.path.basename(path)
    for number in itertools.count(2):
        if name not in written:
            break
        name = f"{base}-{number}"
    written.add(name)
    return f"{name}.png"


if __name__ == "__main__":
    cli.run("predict")
