"""Genres written into the tags of a music library, with undo.

    python -m mgc_jax.tag --workdir=runs/densenet my_music/                     # the plan only
    python -m mgc_jax.tag --workdir=runs/densenet my_music/ --write             # into the files
    python -m mgc_jax.tag --undo=tags-undo-2026-01-31-120000.zip                # back again

Without --write, files are only read: a table shows what would be written. MP3 (ID3), FLAC, Ogg and
Opus (Vorbis comments), and M4A (MP4) can be written; the sound stays as it is. Files that have a
genre keep it, unless --overwrite is given. --write leaves an undo file, which makes each file what
it was, to the byte; one that something else changed since is left alone. Bad files are reported on
stderr and the rest go on; the exit code is 1 if any was bad.
"""

import collections
import io
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from absl import flags

from mgc_jax import cli, console
from mgc_jax.errors import InputError

if TYPE_CHECKING:
    from mgc_jax.predictor import Prediction, Predictor
    from mgc_jax.tagging import Proposal

FLAGS = flags.FLAGS
_HEADER = ("file", "genre_now", "genre_proposed", "probability", "note")


def define_flags() -> None:
    """Defines this command's flags."""
    cli.define_path("workdir", None, "Workdir of the run whose best checkpoint predicts.")
    flags.DEFINE_bool("write", False, "Write the genres into the files, after the undo file.")
    flags.DEFINE_float(
        "min_probability",
        0.5,
        "Files whose likeliest genre has less are left as they are.",
        lower_bound=0,
        upper_bound=1,
    )
    cli.define_unknown()
    cli.define_shard()
    flags.DEFINE_bool("overwrite", False, "Replace the genres that files have.")
    cli.define_path(
        "names", None, "CSV table with the columns genre and name: how genres are to be written."
    )
    cli.define_path("output", None, "CSV file that gets the plan.")
    cli.define_path(
        "undo_file",
        None,
        "File that --write makes, for --undo; default tags-undo-DATE.zip in the current folder.",
    )
    cli.define_path("undo", None, "Undo file of an earlier --write: restores the files it names.")
    flags.DEFINE_integer("batch_size", 8, "Clips a step; changes the speed only.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Tags the files and folders named as arguments, or restores those of an undo file."""
    if FLAGS.undo:
        if FLAGS.write:
            raise InputError("--undo and --write do not go together")
        cli.reject_arguments(argv)
        _undo()
        return
    if not FLAGS.workdir:
        raise InputError("--workdir=... is missing: the folder of a trained run")
    # Not at the top: they take a second, and --help none.
    from mgc_jax import tagging
    from mgc_jax.library import find_songs
    from mgc_jax.predictor import load

    files = find_songs(argv[1:], FLAGS.shard)
    # Before hours of work, not after.
    undo_file = FLAGS.undo_file or time.strftime("tags-undo-%Y-%m-%d-%H%M%S.zip")
    tagging.check_undo_file(undo_file)
    _write_plan([])
    predictor = load(FLAGS.workdir, FLAGS.batch_size, FLAGS.unknown)
    if predictor.notice:
        console.log.warning("%s was %s", FLAGS.workdir, predictor.notice)
    if predictor.tagging:
        raise InputError(f"{FLAGS.workdir} gives tags, not genres: name a trained run")
    plan, failed = _make_plan(predictor, files)
    _write_plan(plan)
    chosen = {proposal.path: proposal.genre for proposal in plan if not proposal.note}
    counts = collections.Counter(proposal.note for proposal in plan if proposal.note)
    for note, count in counts.most_common():
        console.log.info("%d files are left as they are: %s", count, note)
    if not FLAGS.write:
        console.log.info("%d files would get a genre; --write writes it", len(chosen))
    elif chosen:
        failed += _write(chosen, undo_file)
    if failed:
        raise InputError(f"{failed} of {len(files)} files could not be used")


def _make_plan(
    predictor: "Predictor", files: Mapping[str, tuple[int, int]]
) -> tuple[list["Proposal"], int]:
    """Hears the files and prints what is proposed, row by row; also how many were bad."""
    from mgc_jax import tagging
    from mgc_jax.library import ISOLATED_FROM, following

    names = {genre: genre for genre in predictor.genres}
    if FLAGS.names:
        names |= tagging.read_names(FLAGS.names, predictor.genres)
    width = max(map(len, [*names.values(), "proposed"]))
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    print(f"{'':7}{'proposed':{width}}  {'now':16}  {'to be written':20}  file")
    plan = []
    failed = 0
    isolated = len(files) >= ISOLATED_FROM
    results = predictor.stream_isolated(files) if isolated else predictor.stream(files)
    for result in following(results, files, "hearing"):
        if result.error is not None:
            failed += 1
            plan.append(tagging.Proposal(result.source, "", "", 0.0, result.error))
            console.report_bad(result.source, result.error)
        else:
            plan.append(_proposal(result, names))
            _print_row(plan[-1], width)
    return plan, failed


def _proposal(result: "Prediction", names: dict[str, str]) -> "Proposal":
    from mgc_jax import tagging

    genre, probability = next(iter(result.ranking.items()))
    return tagging.propose(
        result.source,
        names[genre],
        probability,
        unknown=result.unknown,
        overwrite=FLAGS.overwrite,
        min_probability=FLAGS.min_probability,
    )


def _print_row(proposal: "Proposal", width: int) -> None:
    now = console.shown(proposal.now)
    now = now if len(now) <= 16 else f"{now[:13]}..."
    written = f"no: {proposal.note}" if proposal.note else "yes"
    path = console.shown(proposal.path)
    genre = f"{proposal.genre:{width}}"
    print(f"{proposal.probability:6.1%} {genre}  {now:16}  {written:20}  {path}", flush=True)


def _write_plan(plan: list["Proposal"]) -> None:
    """Writes `--output`, if it was asked for."""
    if not FLAGS.output:
        return
    from etils import epath

    from mgc_jax.data.tables import write_table
    from mgc_jax.files import cell, replacing

    rows = [
        (cell(row.path, "./"), cell(row.now), cell(row.genre), f"{row.probability:.6f}", row.note)
        for row in plan
    ]
    try:
        with replacing(FLAGS.output) as part:
            write_table(epath.Path(part), _HEADER, rows)
    except OSError as error:
        raise InputError(f"cannot write --output={FLAGS.output}: {error.strerror}") from None


def _write(chosen: dict[str, str], undo_file: str) -> int:
    """Writes the undo file, then the genres; how many files could not be changed."""
    from mgc_jax import tagging

    changes, errors = tagging.write_undo_file(undo_file, chosen)
    console.log.info("mgc_jax tag --undo=%s takes back what follows", undo_file)
    outcomes = errors | dict(tagging.write_genres(changes))
    errors = {path: error for path, error in outcomes.items() if error}
    for path, error in errors.items():
        console.report_bad(path, error)
    console.log.info("%d files got a genre", len(outcomes) - len(errors))
    return len(errors)


def _undo() -> None:
    """Restores the files of `--undo`."""
    from mgc_jax import tagging

    outcomes = dict(tagging.undo(FLAGS.undo))
    errors = {path: error for path, error in outcomes.items() if error}
    for path, error in errors.items():
        console.report_bad(path, error)
    console.log.info("%d files are as they were", len(outcomes) - len(errors))
    if errors:
        raise InputError(f"{len(errors)} of {len(outcomes)} files were not restored")


if __name__ == "__main__":
    cli.run("tag")
