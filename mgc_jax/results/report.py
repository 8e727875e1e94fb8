"""Turns a finished run's folder into pictures and one self-contained page, report/index.html.

Reads only what training and evaluation left on disk, so a page can be made again without a network
or an accelerator. To add a part, put a place for it in `PAGE` and fill that in `write_report`.
"""

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np

from mgc_jax.errors import InputError
from mgc_jax.files import write_bytes
from mgc_jax.results import page, plots
from mgc_jax.results.evaluate import read_predictions
from mgc_jax.results.metrics import CALIBRATION_BINS, Predictions, track_predictions

# The scores the source project published: FMA small, test split, clip or track level not stated.
SOURCE_KEYS = ("f1", "accuracy_ovr", "precision", "recall")
SOURCE = {
    "baseline_a_1d": (0.448, 0.864, 0.438, 0.457),
    "baseline_a_2d": (0.558, 0.889, 0.556, 0.559),
    "baseline_b": (0.534, 0.883, 0.537, 0.531),
    "densenet": (0.574, 0.892, 0.578, 0.571),
    "fusionnet": (0.553, 0.888, 0.548, 0.557),
}
_SOURCE_BATCH = dict(baseline_a_1d=16, fusionnet=8)  # the others: 32
# Key of config.augment to name on the page.
_AUGMENTATIONS = dict(
    noise_probability="white noise",
    stretch_probability="time stretching",
    gain_db="gain",
    shift_seconds="time shift",
    time_masks="time masks",
    mel_masks="mel masks",
    mixup_alpha="mixup",
)
# Key in metrics.json to name on the page.
CARDS = dict(
    top1="Top-1",
    f1="F1",
    f1_macro="Macro F1",
    precision="Precision",
    recall="Recall",
    roc_auc="ROC-AUC",
)
SCORES = CARDS | dict(
    top3="Top-3",
    accuracy_ovr="One-vs-rest accuracy",
    loss="Log-loss",
    ece="Calibration error",
)
PER_GENRE = dict(
    precision="Precision", recall="Recall", f1="F1", roc_auc="ROC-AUC", support="Support"
)
_FMA_SMALL_TRACKS = 8_000
_MAX_SKIPPED_ROWS = 50
_MISTAKES = 10
_FIX = "train the run, evaluate it, then make the report again"

PAGE = """<h1>{title}</h1><p class="soft">{about}</p>{notice}
<h2>Scores per track</h2><dl class="cards">{cards}</dl>{scores}
<p class="soft">In small print: 95% intervals, bootstrapped over the test tracks; they hold the
chance of the draw of tracks, not that of the training (that of the calibration error leans upwards,
as drawing anew adds noise to its bins). A track's prediction is the mean of its clips'
log-probabilities. Precision, recall and ROC-AUC (one against the rest) are means over genres
(macro); F1 is 2PR/(P+R) of those means, macro F1 the mean of the genres' own F1, as in
scikit-learn. One-vs-rest accuracy is the mean over genres of the accuracy of telling that genre
from the rest: high by construction, as most tracks are not of any one genre. Always answering with
the commonest genre would give a top-1 of {chance} per track.</p>
<h2>Beside the source project</h2>{source}<p>{verdict}</p>{differences}
<h2>By genre</h2>{genres}
<h2>Confusion matrix</h2>{confusion}
<p class="soft">Counts, and below them their share of the true genre's row, which is the colour.</p>
<h2>Training and calibration</h2>{curves}
<p class="soft">Training values are means over an epoch; the dotted line is the epoch kept, that of
the lowest validation loss. Calibration: of the predictions made with some probability, that share
should be right. The error is the mean distance from the diagonal over predictions, in {bins} bins
of equal width.</p>
<h2>Most confident mistakes</h2>{mistakes}
<h2>What the network sees</h2>{spectrograms}
<h2>Data</h2><p>{read}</p>{splits}{skipped}
<h2>How this was made</h2><pre>{command}</pre>{facts}
<details><summary>All settings</summary><pre>{config}</pre></details>"""
NOTICE = '<p class="notice"><b>Synthesised music:</b> the scores say nothing about real music.</p>'


def write_report(
    workdir: str | os.PathLike, *, examples: plots.Examples, data: Mapping, run: Mapping
) -> Path:
    """Writes pictures, `run.json` and the page into `workdir`/report; returns index.html's path.

    Args:
        workdir: folder with config.json, genres.json, metrics.jsonl, report/metrics.json and
            report/predictions.csv.
        examples: (title, array) pairs to draw; an array is a log-mel [frames, mels] float32 in dB,
            at most 0, or a waveform [samples] float32.
        data: what was read: dataset, features, splits ({name: {tracks, clips}}), tracks_listed,
            tracks_used, skipped (a list of {track_id, path, reason}) and synthetic (bool).
        run: command, devices, parameters (count), seconds, flops_per_clip (of a training step, or
            None), versions ({package: version}), finished.

    Raises:
        InputError: an input file is missing or broken.
        ValueError: an example is neither one- nor two-dimensional.
    """
    folder = Path(workdir)
    config, genres, metrics, predictions = read_evaluation(folder)
    log = _load(folder / "metrics.jsonl", list)
    drawn = {
        name: page.png(figure)
        for name, figure in {
            "confusion_matrix": _confusion("track", metrics, genres),
            "confusion_matrix_clips": _confusion("clip", metrics, genres),
            "training_curves": plots.curves_figure(log, metrics["epoch"]),
            "reliability": plots.reliability_figure(metrics),
            "spectrograms": plots.examples_figure(examples),
        }.items()
    }
    body = PAGE.format(
        **_score_places(metrics, genres),
        **_source_places(config, metrics, data),
        **_picture_places(drawn),
        mistakes=_mistakes(track_predictions(predictions), genres),
        **_data_places(data),
        **_run_places(config, data, run, log),
    )
    files = {f"{name}.png": content for name, content in drawn.items()}
    facts = {"data": data, "run": run, "cost": cost(run, log)}
    files["run.json"] = json.dumps(facts, indent=2).encode()
    files["index.html"] = page.document(_title(config, data), body)
    # Nothing is written until everything is made: a failure leaves the last report as it was.
    for name, content in files.items():
        write_bytes(folder / "report" / name, content)
    return folder / "report" / "index.html"


def read_evaluation(folder: Path) -> tuple[dict, list[str], dict, Predictions]:
    """The config, genres, metrics.json and predictions of clips of an evaluated run.

    Raises:
        InputError: a file is missing, broken or does not hold what this version writes.
    """
    settings = [("model",), ("dataset",), ("seed",), ("audio", "sample_rate")]
    settings += [("mel", "hop_length"), ("mel", "top_db")]
    config = _load(folder / "config.json", dict, settings)
    genres = _load(folder / "genres.json", list)
    needed = [("split",), ("epoch",)]
    for level in ("clip", "track"):
        needed += [(level, key) for key in ("count", "confusion_matrix", "reliability", *SCORES)]
        needed += [(level, "intervals", key) for key in SCORES]
        needed += [(level, "per_class", name, key) for name in genres for key in PER_GENRE]
    path = folder / "report" / "metrics.json"
    metrics = _load(path, dict, needed)
    for level in ("clip", "track"):
        if [len(row) for row in metrics[level]["confusion_matrix"]] != [len(genres)] * len(genres):
            raise InputError(f"{path}: {level}.confusion_matrix is not genres x genres: {_FIX}")
    return config, genres, metrics, read_predictions(folder, genres)


def read_facts(folder: Path) -> dict:
    """What `write_report` was told, `data` and `run`, and `cost` (see `cost`)."""
    return _load(folder / "report" / "run.json", dict, [("data",), ("run",), ("cost",)])


def other_music(data: Mapping) -> str | None:
    """Why a run's scores cannot be compared with the published ones, or None where they can."""
    if data["synthetic"]:
        return "a demo on synthesised music"
    if data["dataset"] != "fma_small":
        return f"on {data['dataset']}, not on FMA small"
    if data["tracks_listed"] != _FMA_SMALL_TRACKS:
        listed = f"{data['tracks_listed']:,} tracks are listed there, in FMA small 8,000"
        return f"on other music under FMA small's name ({listed})"
    return None


def _load(path: Path, kind: type, needed: Iterable[tuple] = ()) -> dict | list:
    """The JSON in `path` (of lines: a list), once it is of this kind and has the keys needed."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":  # line breaks stay, so that an error tells the line
            text = "[" + ",\n".join(text.strip().splitlines()) + "]"
        value = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing: {_FIX}") from None
    except ValueError as error:  # not UTF-8, or not JSON: either error is a ValueError
        raise InputError(f"{path} cannot be read ({error}): {_FIX}") from error
    if not isinstance(value, kind) or not (value or path.suffix == ".jsonl"):
        raise InputError(f"{path} should hold a JSON {kind.__name__} that is not empty: {_FIX}")
    for keys in needed:
        part = value
        for key in keys:
            if not isinstance(part, dict) or key not in part:
                raise InputError(f"{path} does not hold {'.'.join(map(str, keys))}: {_FIX}")
            part = part[key]
    return value


def _title(config: Mapping, data: Mapping) -> str:
    return f"{config['model']} on {data['dataset']}"


def _confusion(level: str, metrics: Mapping, genres: Sequence[str]):
    title = f"{level.capitalize()}s (n = {metrics[level]['count']:,})"
    return plots.confusion_figure(metrics[level]["confusion_matrix"], genres, title)


def _score_places(metrics: Mapping, genres: Sequence[str]) -> dict[str, str]:
    track, clip = metrics["track"], metrics["clip"]
    cards = (
        f"<div><dt>{name}</dt><dd>{page.text(track[key])}<small>"
        f"{page.interval(track['intervals'][key])}</small></dd></div>"
        for key, name in CARDS.items()
    )
    rows = [
        (name, *((x[key], page.interval(x["intervals"][key])) for x in (track, clip)))
        for key, name in SCORES.items()
    ]
    support = np.sum(track["confusion_matrix"], axis=1)
    about = f"Scores on the {metrics['split']} split: {track['count']:,} tracks, "
    about += f"{clip['count']:,} clips; weights of epoch {metrics['epoch']}."
    per_genre = [(name, *(track["per_class"][name][key] for key in PER_GENRE)) for name in genres]
    return {
        "about": page.text(about),
        "cards": "".join(cards),
        "scores": page.table("Track and clip level", ("Score", "Tracks", "Clips"), rows),
        "chance": page.text(support.max() / support.sum() if support.sum() else None),
        "genres": page.table("Track level", ("Genre", *PER_GENRE.values()), per_genre),
    }


def _source_places(config: Mapping, metrics: Mapping, data: Mapping) -> dict[str, str]:
    """This run's scores beside the published ones, and what keeps them from being compared."""
    model = config["model"]
    if model not in SOURCE:
        verdict = page.text(f"The source published no scores for {model}.")
        return {"source": "", "verdict": verdict, "differences": ""}
    names = {level: f"This run, {level}s ({metrics['split']})" for level in ("track", "clip")}
    rows = [(n, *(metrics[level][key] for key in SOURCE_KEYS)) for level, n in names.items()]
    rows.insert(0, ("Published, FMA small (test)", *SOURCE[model]))
    verdict = "The source does not state whether it scored clips or tracks, so both are shown."
    if reason := other_music(data):
        verdict += f" This run is {reason}: the rows cannot be compared."
    head = ("Scores", *(SCORES[key] for key in SOURCE_KEYS))
    return {
        "source": page.table(model, head, rows),
        "verdict": page.text(verdict),
        "differences": page.table(
            "What differs", ("What", "Source", "This run"), _settings(config, data), style="words"
        ),
    }


def _settings(config: Mapping, data: Mapping) -> list[tuple[str, str, str]]:
    """What the source did beside what this run did."""
    splits = {name: split["tracks"] for name, split in data["splits"].items()}
    shares = "/".join(f"{100 * n / max(sum(splits.values()), 1):.0f}" for n in splits.values())
    mel, rate = config["mel"], config["audio"]["sample_rate"]
    inputs = {
        "mel": f"log-mel of {mel['frames']} frames x {mel['n_mels']} bands",
        "waveform": f"waveform at {rate:,} Hz",
    }
    seen = " and ".join(inputs.get(name, name) for name in data["features"].split(" and "))
    stated = {"mel": "log-mel of 128 x 513 (axes not named)", "waveform": "waveform at 16,000 Hz"}
    published = " and ".join(stated.get(name, name) for name in data["features"].split(" and "))
    recipe = "learning rate {}, weight decay {}, batch {}, {} epochs".format
    own = (config[key] for key in ("learning_rate", "weight_decay", "batch_size", "num_epochs"))
    batch = _SOURCE_BATCH.get(config["model"], 32)
    augment, schedule = config.get("augment", {}), config.get("optimizer", {}).get("schedule")
    augmentation = ", ".join(name for key, name in _AUGMENTATIONS.items() if augment.get(key))
    music = f"{data['dataset']}, {data['tracks_listed']:,} tracks"
    skipped = f"{len(data['skipped']):,} left out"
    return [
        ("Music", "FMA small, 8,000 tracks", music),
        ("Split", "80/10/10, corrupt files left out", f"{shares} by tracks, {skipped}"),
        ("Input", published, f"{seen}, clips of {config['audio']['clip_seconds']:g} s"),
        ("Augmentation", "white noise, time stretching", augmentation or "none"),
        ("Optimiser", "Adam", f"AdamW, {schedule or 'constant'} learning rate"),
        ("Recipe", recipe(0.0001, 0.0001, batch, 20), recipe(*own)),
        ("First weights", "not stated", config.get("init_from") or "random"),
    ]


def _picture_places(drawn: Mapping[str, bytes]) -> dict[str, str]:
    rows = "with true genres in rows"
    return {
        "confusion": page.pictures(
            {
                f"Confusion matrix per track, {rows}": drawn["confusion_matrix"],
                f"Confusion matrix per clip, {rows}": drawn["confusion_matrix_clips"],
            }
        ),
        "curves": page.pictures(
            {
                "Loss, top-1 and F1 of training and validation by epoch": drawn["training_curves"],
                "Share of right predictions by their probability": drawn["reliability"],
            }
        ),
        "spectrograms": page.pictures(
            {"Examples of the network's input over time": drawn["spectrograms"]}
        ),
        "bins": str(CALIBRATION_BINS),
    }


def _mistakes(tracks: Predictions, genres: Sequence[str]) -> str:
    """The wrong predictions of tracks that the network was surest of, as a table."""
    probabilities = np.exp(tracks.log_probs)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != tracks.label)
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:_MISTAKES]
    rows = [
        (
            str(
                tracks.track_id[i]
            ),  # a name, not an amount: as text it gets no thousands separator
            genres[tracks.label[i]],
            genres[predicted[i]],
            probabilities[i, predicted[i]],
            probabilities[i, tracks.label[i]],
        )
        for i in worst
    ]
    if not rows:
        return "<p>No track was mistaken.</p>"
    head = ("Track", "True genre", "Predicted", "Probability", "Of the true genre")
    caption = f"{len(rows)} of {len(wrong):,} tracks mistaken"
    return page.table(caption, head, rows, style="left")


def _data_places(data: Mapping) -> dict[str, str]:
    skipped, table = data["skipped"], ""
    splits = [(name, split["tracks"], split["clips"]) for name, split in data["splits"].items()]
    splits.append(("all", *(sum(row[i] for row in splits) for i in (1, 2))))
    read = f"{data['dataset']}, read as {data['features']}: {data['tracks_listed']:,} tracks "
    read += f"listed, {data['tracks_used']:,} used, {len(skipped):,} skipped."
    if skipped:
        rows = [(str(t["track_id"]), t["path"], t["reason"]) for t in skipped[:_MAX_SKIPPED_ROWS]]
        table = page.table("Skipped tracks", ("Track", "File", "Reason"), rows, style="words")
    if len(skipped) > _MAX_SKIPPED_ROWS:
        table += f"<p>and {len(skipped) - _MAX_SKIPPED_ROWS:,} more, see skipped.csv</p>"
    splits_table = page.table("Used, by split", ("Split", "Tracks", "Clips"), splits)
    return {"read": page.text(read), "splits": splits_table, "skipped": table}


def _run_places(
    config: Mapping, data: Mapping, run: Mapping, log: Sequence[Mapping]
) -> dict[str, str]:
    facts = {
        "Parameters": run["parameters"],
        "Training and validation (h:min:s)": timedelta(seconds=round(run["seconds"])),
        **cost(run, log),
        "Versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "Finished": run["finished"],
    }
    return {
        "title": page.text(_title(config, data)),
        "notice": NOTICE if data["synthetic"] else "",
        "command": page.text(run["command"]),
        "facts": page.table("The run", ("What", "Value"), facts.items(), style="words"),
        "config": page.text(json.dumps(config, indent=2, ensure_ascii=False)),
    }


def cost(run: Mapping, log: Sequence[Mapping]) -> dict[str, str]:
    """What the training took: devices and hours, speed, and arithmetic, as measured."""
    epochs = [row for row in log if row.get("kind") == "train" and row.get("clips_per_s")]
    facts = {"Cost": f"{run['seconds'] / 3600:.3g} h of {run['devices']}"}
    if epochs:
        rate = statistics.median(row["clips_per_s"] for row in epochs)
        facts["Training speed, median epoch"] = f"{rate:,.0f} clips/s"
    if epochs and run["flops_per_clip"]:
        clips = sum(row["clips_per_s"] * row["seconds"] for row in epochs)
        each = f"{clips:,.0f} clips of {run['flops_per_clip'] / 1e9:.3g} GFLOP"
        total = f"{clips * run['flops_per_clip']:.3g} FLOP"
        facts["Training compute, as XLA counts"] = f"{total} ({each})"
    return facts
