"""A run's folder: the names of its files, and what is written to and read from each.

    config.json genres.json data.json         what was trained on what; made before the training
    metrics.jsonl                             the log of it
    calibration.json                          the temperature, fitted after the training
    known.npz                                 what "unknown" is told by, made after the training
    report/metrics.json predictions.csv       scores, and what they were computed from
    report/track_predictions.csv              of a network that reads whole tracks alone
    report/run.json index.html *.png          the page, and the facts on it
    README.md                                 the model card

Checkpoints and TensorBoard's files are their writers' own.
"""

import csv
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mgc_jax import console
from mgc_jax.errors import InputError
from mgc_jax.files import (
    cell,
    check_seal,
    misfit,
    read_json,
    replacing,
    sealed,
    write_bytes,
    write_text,
)
from mgc_jax.results.calibration import apply_temperature
from mgc_jax.results.known import Known
from mgc_jax.results.metrics import (
    SCORES,
    SplitPredictions,
    bootstrap,
    classification_metrics,
    interval,
    track_predictions,
)

CONFIG, GENRES, DATA, LOG = "config.json", "genres.json", "data.json", "metrics.jsonl"
CALIBRATION, LEVELS = "calibration.json", "levels.json"
KNOWN = "known.npz"
REPORT, METRICS, PREDICTIONS = "report", "metrics.json", "predictions.csv"
TRACKS = "track_predictions.csv"
FACTS, PAGE = "run.json", "index.html"
CARD = "README.md"
_COLUMNS = ["track_id", "clip", "label", "prediction"]
_BIN = ("low", "high", "confidence", "accuracy")
_FIX = "train the run, evaluate it, then make the report again"
_FIX_RUN = "copy it back from where the run was made, or train the run again"
_NUMBER = int | float
_MAYBE = _NUMBER | None  # a score that does not exist, or a number that is not finite
# Of a config, what reports and comparisons need.
_CONFIG_FORM = {"model": str, "dataset": str, "seed": int}
_ROW_FORM = {"kind": str, "epoch": int, "step": int}  # of the log
_FACTS_FORM = {
    "data": {"dataset": str, "synthetic": bool, "tracks_listed": int},
    "run": {"parameters": int},
    "cost": dict,
}


def write_config(workdir: str | os.PathLike, config: Mapping) -> None:
    """Writes the config, a plain dictionary."""
    write_text(Path(workdir, CONFIG), json.dumps(config, indent=2, sort_keys=True))


def read_config(workdir: str | os.PathLike) -> dict:
    """The config as it was stored; raises InputError for a missing or broken file."""
    return read_json(Path(workdir, CONFIG), _CONFIG_FORM, fix=_FIX_RUN)


def write_genres(workdir: str | os.PathLike, genres: Sequence[str]) -> None:
    """Writes the genres, in label order."""
    write_text(Path(workdir, GENRES), json.dumps(list(genres), ensure_ascii=False))


def read_genres(workdir: str | os.PathLike) -> list[str]:
    """The genres, in label order; raises InputError for a missing or broken file."""
    return read_json(Path(workdir, GENRES), [str], fix=_FIX_RUN)


def write_data(workdir: str | os.PathLike, fingerprint: Mapping[str, str]) -> None:
    """Writes which data a run is tied to: `hash` and `summary`."""
    write_text(Path(workdir, DATA), json.dumps(fingerprint, indent=2, ensure_ascii=False))


def read_data(workdir: str | os.PathLike) -> dict[str, str] | None:
    """What `write_data` wrote; None in workdirs of versions before 0.2."""
    path = Path(workdir, DATA)
    if not path.exists():
        return None
    return read_json(path, {"hash": str, "summary": str}, fix=_FIX_RUN)


def write_levels(workdir: str | os.PathLike, levels: Mapping) -> None:
    """Writes what the bands of a run's log-mels are standardised by, where they are."""
    if levels:
        write_text(Path(workdir, LEVELS), json.dumps(sealed(levels)))


def read_levels(workdir: str | os.PathLike) -> dict:
    """What `write_levels` wrote; empty where there is no such file."""
    path = Path(workdir, LEVELS)
    if not path.exists():
        return {}
    levels = read_json(path, dict, fix=_FIX_RUN)
    check_seal(path, levels, _FIX_RUN)
    return levels


def write_calibration(workdir: str | os.PathLike, epoch: int, temperature: float) -> None:
    """Writes the temperature that was fitted for the weights of an epoch."""
    found = {"epoch": epoch, "temperature": temperature}
    write_text(Path(workdir, CALIBRATION), json.dumps(sealed(found)))


def read_temperature(workdir: str | os.PathLike, epoch: int) -> float:
    """The temperature for the weights of an epoch; 1 where none was fitted for them.

    Workdirs of versions before 0.2 have none, and those of runs that are trained longer that of
    another epoch.
    """
    path = Path(workdir, CALIBRATION)
    if not path.exists():
        return 1.0
    found = read_json(path, {"epoch": int, "temperature": object}, fix=_FIX_RUN)
    temperature = found["temperature"]
    if not isinstance(temperature, _NUMBER) or not 0 < temperature < float("inf"):
        raise InputError(f"{path}: temperature={temperature!r} is no number above 0: {_FIX_RUN}")
    check_seal(path, found, _FIX_RUN)
    return float(temperature) if found["epoch"] == epoch else 1.0


def write_known(workdir: str | os.PathLike, epoch: int, known: Known) -> None:
    """Writes what is known by the weights of an epoch: an .npz of arrays that `Known` names."""
    with replacing(Path(workdir, KNOWN)) as part, open(part, "wb") as file:
        np.savez(file, epoch=epoch, **known._asdict())


def read_known(workdir: str | os.PathLike, epoch: int) -> Known:
    """What is known by the weights of an epoch.

    Raises:
        InputError: there is none for them, as in workdirs of versions before 0.2 and of runs that
            are trained longer, or the file is damaged.
    """
    path = Path(workdir, KNOWN)
    fix = "the command that trained the run, with --mode=eval, makes it"
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in ("epoch", *Known._fields)}
    except FileNotFoundError:
        raise InputError(f"{path} is missing, by which unknown music is told: {fix}") from None
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it; {fix}") from None
    if found.pop("epoch").tolist() != epoch:
        raise InputError(f"{path} is of another epoch than the best one: {fix}")
    known = Known(**found)
    channels = known.means.shape[-1:]
    fits = known.means.ndim == 2 and known.distances.ndim == 1 and len(known.distances) > 0
    fits = fits and known.whitening.shape == (*channels, *channels)
    if not fits or not all(x.dtype == np.float32 and np.isfinite(x).all() for x in known):
        raise InputError(f"{path} does not hold what it should: delete it; {fix}")
    return known


def read_log(workdir: str | os.PathLike) -> list[dict]:
    """The lines of `metrics.jsonl`, none where there is no such file.

    The last line of a killed run may be torn, which is no error; other lines that cannot be read
    are left out, and counted in a warning.
    """
    path = Path(workdir, LOG)
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    rows = []
    damaged = 0
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        others = dict.fromkeys(row, _MAYBE) if isinstance(row, dict) else {}
        if not misfit(row, others | _ROW_FORM):
            rows.append(row)
        elif number < len(lines):
            damaged += 1
    if damaged:
        console.log.warning("%s: %d damaged lines are left out", path, damaged)
    return rows


def write_evaluation(
    workdir: str | os.PathLike,
    predictions: SplitPredictions,
    genres: Sequence[str],
    epoch: int,
    paths: Mapping[int, str] | None = None,
) -> dict:
    """Scores test predictions and writes `report/metrics.json` and `report/predictions.csv`.

    Tracks that are not the mean of their clips are written to `report/track_predictions.csv`. All
    scores and probabilities are those at the run's temperature.

    Args:
        workdir: of the run.
        predictions: clip by clip, at temperature 1.
        genres: in label order.
        epoch: whose weights predicted.
        paths: audio file of each track id; those that are missing stay empty.

    Returns:
        What `metrics.json` holds: `split`, `epoch`, `temperature`, `predictions` (the CRC-32 of
        that file), and of `clip` and `track` the
        scores, with `intervals`, `{score: [low, high]}`: 95% intervals, bootstrapped over tracks,
        and `uncalibrated`, those scores that the temperature changes as they would be without it.
    """
    report = Path(workdir, REPORT)
    temperature = read_temperature(workdir, epoch)
    scores = {"split": "test", "epoch": epoch, "temperature": temperature}
    raw = predictions
    predictions = _at_temperature(raw, temperature)
    for level, join in (("clip", lambda clips: clips), ("track", track_predictions)):
        rows = join(predictions)
        intervals = {name: interval(values) for name, values in bootstrap(rows).items()}
        before = classification_metrics(join(raw), genres)
        scores[level] = classification_metrics(rows, genres) | {"intervals": intervals}
        scores[level]["uncalibrated"] = {name: before[name] for name in ("loss", "ece")}
    _write_predictions(report / PREDICTIONS, predictions, genres, paths or {})
    if predictions.tracks is not None:
        _write_predictions(report / TRACKS, predictions.tracks, genres, paths or {})
    scores["predictions"] = zlib.crc32((report / PREDICTIONS).read_bytes())
    write_text(report / METRICS, json.dumps(sealed(scores), indent=2))
    return scores


def _at_temperature(predictions: SplitPredictions, temperature: float) -> SplitPredictions:
    tracks = predictions.tracks
    return predictions._replace(
        log_probs=apply_temperature(predictions.log_probs, temperature),
        tracks=None if tracks is None else _at_temperature(tracks, temperature),
    )


def _write_predictions(
    path: Path, predictions: SplitPredictions, genres: Sequence[str], paths: Mapping[int, str]
) -> None:
    """One row a clip, sorted by track and clip."""
    order = np.lexsort((predictions.clip, predictions.track_id))
    with (
        replacing(path) as part,
        open(part, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow([*_COLUMNS, *(f"prob_{genre}" for genre in genres), "path"])
        for i in order:
            track_id = int(predictions.track_id[i])
            log_probs = predictions.log_probs[i].astype(float)  # whose exp is hardly ever 0
            label = cell(genres[predictions.label[i]])
            predicted = cell(genres[log_probs.argmax()])
            # Nine digits give float32 back exactly.
            probabilities = (f"{p:.9g}" for p in np.exp(log_probs))
            first = [track_id, predictions.clip[i], label, predicted]
            writer.writerow([*first, *probabilities, cell(paths.get(track_id, ""), "./")])


def read_predictions(workdir: str | os.PathLike, genres: Sequence[str]) -> SplitPredictions:
    """Reads `report/predictions.csv` of a finished run, clip by clip; the tracks besides, where
    they are not the mean of their clips.

    Args:
        workdir: of the run.
        genres: the run's, in label order.

    Raises:
        InputError: the file is missing, damaged or of other genres.
    """
    clips = _read_predictions(Path(workdir, REPORT, PREDICTIONS), genres)
    tracks = Path(workdir, REPORT, TRACKS)
    return clips._replace(tracks=_read_predictions(tracks, genres)) if tracks.exists() else clips


def _read_predictions(path: Path, genres: Sequence[str]) -> SplitPredictions:
    """The rows of one file, as `read_predictions` says."""
    end = len(_COLUMNS) + len(genres)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
        if header[:end] != [*_COLUMNS, *(f"prob_{genre}" for genre in genres)] or not rows:
            raise ValueError("it has no rows, or other columns than the run's genres")
        tracks = np.array([int(row[0]) for row in rows], np.int64)
        clips = np.array([int(row[1]) for row in rows], np.int64)
        names = {name: label for label, genre in enumerate(genres) for name in (genre, cell(genre))}
        labels = np.array([names[row[2]] for row in rows])
        # The path is the last column, which versions before 0.2 did not write.
        probabilities = np.array([row[len(_COLUMNS) : end] for row in rows], dtype=float)
        if not (abs(probabilities.sum(axis=1) - 1) < 1e-3).all() or (probabilities < 0).any():
            raise ValueError("the probabilities of a row do not make 1")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: evaluate the run with --mode=eval") from None
    except (OSError, ValueError, LookupError, OverflowError, csv.Error) as error:
        reason = console.shown(str(error)[:150])
        raise InputError(f"{path} cannot be read ({reason}): evaluate with --mode=eval") from None
    return SplitPredictions(tracks, clips, labels, np.log(np.maximum(probabilities, 1e-300)))


def read_evaluation(
    workdir: str | os.PathLike,
) -> tuple[dict, list[str], dict, SplitPredictions]:
    """The config, genres, metrics.json and predictions of clips of an evaluated run.

    Raises:
        InputError: a file is missing, broken or does not hold what this version writes.
    """
    config = read_config(workdir)
    genres = read_genres(workdir)
    metrics = read_metrics(workdir, genres)
    predictions = read_predictions(workdir, genres)
    path = Path(workdir, REPORT, PREDICTIONS)
    if metrics.get("predictions") not in (None, zlib.crc32(path.read_bytes())):
        raise InputError(f"{path} is not what {METRICS} was computed from: {_FIX}")
    return config, genres, metrics, predictions


def read_metrics(workdir: str | os.PathLike, genres: Sequence[str]) -> dict:
    """What `write_evaluation` returned; raises InputError for a missing or broken file."""
    per_class = {"precision": _NUMBER, "recall": _NUMBER, "f1": _NUMBER, "roc_auc": _MAYBE}
    level = {
        "count": int,
        **dict.fromkeys(SCORES, _NUMBER),
        "roc_auc": _MAYBE,
        "intervals": dict.fromkeys(SCORES, [_MAYBE]),
        "per_class": {name: {**per_class, "support": int} for name in genres},
        "confusion_matrix": [[int]],
        "reliability": [dict.fromkeys(_BIN, _MAYBE) | {"count": int}],
    }
    form = {"split": str, "epoch": int, "clip": level, "track": level}
    path = Path(workdir, REPORT, METRICS)
    metrics = read_json(path, form, fix=_FIX)
    for name in ("clip", "track"):
        matrix = metrics[name]["confusion_matrix"]
        if [len(row) for row in matrix] != [len(genres)] * len(genres):
            raise InputError(f"{path}: {name}.confusion_matrix is not genres x genres: {_FIX}")
        if {len(bounds) for bounds in metrics[name]["intervals"].values()} != {2}:
            raise InputError(f"{path}: {name}.intervals are not of two numbers each: {_FIX}")
    check_seal(path, metrics, _FIX)
    return metrics


def write_report_files(
    workdir: str | os.PathLike, page: bytes, pictures: Mapping[str, bytes], facts: Mapping
) -> Path:
    """Writes the page last, after its pictures `{name: PNG}` and `run.json`; returns its path."""
    report = Path(workdir, REPORT)
    for name, content in pictures.items():
        write_bytes(report / f"{name}.png", content)
    write_text(report / FACTS, json.dumps(sealed(facts), indent=2))
    write_bytes(report / PAGE, page)
    return report / PAGE


def read_facts(workdir: str | os.PathLike) -> dict[str, Any]:
    """What the report was told, `data` and `run`, and `cost` (see `report.cost`)."""
    path = Path(workdir, REPORT, FACTS)
    facts = read_json(path, _FACTS_FORM, fix=_FIX)
    check_seal(path, facts, _FIX)
    return facts


def has_report(workdir: str | os.PathLike) -> bool:
    """Whether a run was evaluated and reported."""
    return Path(workdir, REPORT, PAGE).exists()
