"""Turns a finished run's folder into pictures and one self-contained page, report/index.html.

Reads only what training and evaluation left on disk, so a page can be made again without a network
or an accelerator. To add a part, put a place for it in `PAGE` and fill that in `write_report`.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np

from mgc_jax import signals
from mgc_jax.files import write_text
from mgc_jax.results import files, page, plots, published
from mgc_jax.results.card import model_card
from mgc_jax.results.metrics import (
    CALIBRATION_BINS,
    SplitPredictions,
    describe_tracks,
    track_predictions,
)
from mgc_jax.results.published import PUBLISHED

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
# Value of config.keep to what it is on the page.
_KEPT = dict(
    loss="that of the lowest validation loss",
    top1="that of the highest validation top-1",
    last="the last one",
)
_MAX_SKIPPED_ROWS = 50
_MISTAKES = 10

PAGE = """<h1>{title}</h1><p class="soft">{about}</p>{notice}
<h2>Scores per track</h2><dl class="cards">{cards}</dl>{scores}
<p class="soft">In small print: 95% intervals, bootstrapped over the test tracks; they hold the
chance of the draw of tracks, not that of the training (that of the calibration error leans upwards,
as drawing anew adds noise to its bins). {tracks} Precision, recall and
ROC-AUC (one against the rest) are means over genres (macro); F1 is 2PR/(P+R) of those means, macro
F1 the mean of the genres' own F1, as in scikit-learn. One-vs-rest accuracy is the mean over genres
of the accuracy of telling that genre from the rest: high by construction, as most tracks are not of
any one genre. Always answering with the commonest genre would give a
top-1 of {chance} per track.</p>
<h2>Beside the source project</h2>{source}<p>{verdict}</p>{differences}
<h2>By genre</h2>{genres}
<h2>Confusion matrix</h2>{confusion}
<p class="soft">The colour is the share of the true genre's row; counts and shares are written in
the cells of up to 30 genres.</p>
<h2>Training and calibration</h2>{curves}
<p class="soft">Training values are means over an epoch; the dotted line is the epoch kept,
{kept}. Calibration: of the predictions made with some probability, that share should be right. The
error is the mean distance from the diagonal over predictions, in {bins} bins of equal width.</p>
{calibration}
<h2>Most confident mistakes</h2>{mistakes}
<h2>What the network sees</h2>{spectrograms}
{attention}
<h2>Data</h2><p>{read}</p>{splits}{skipped}
<h2>How this was made</h2><pre>{command}</pre>{facts}
<details><summary>All settings</summary><pre>{config}</pre></details>"""
NOTICE = '<p class="notice"><b>Synthesised music:</b> the scores say nothing about real music.</p>'


def write_report(
    workdir: str | os.PathLike,
    *,
    examples: plots.Examples,
    data: Mapping,
    run: Mapping,
    names: Mapping[int, str] | None = None,
    attention: plots.Examples = (),
) -> Path:
    """Writes pictures, `run.json` and the page into `workdir`/report, and the model card
    `workdir`/README.md; returns index.html's path.

    Args:
        workdir: folder of a run that was evaluated.
        examples: (title, draw) pairs; `draw(axes)` draws an example of the network's input.
        data: what was read: dataset, features, inputs (a description of each), splits ({name:
            {tracks, clips}}), tracks_listed, tracks_used, skipped (a list of {track_id, path,
            reason}) and synthetic (bool).
        run: command, devices, parameters (count), seconds, flops_per_clip (of a training step, or
            None), versions ({package: version}), finished.
        names: what to call a track id; default: the id.
        attention: as examples, what a network with attention attends to in them.

    Raises:
        InputError: an input file is missing or broken.
    """
    config, genres, metrics, predictions = files.read_evaluation(workdir)
    log = files.read_log(workdir)
    figures = {
        "confusion_matrix": _confusion("track", metrics, genres),
        "confusion_matrix_clips": _confusion("clip", metrics, genres),
        "training_curves": plots.curves_figure(log, metrics["epoch"]),
        "reliability": plots.reliability_figure(metrics),
        "spectrograms": plots.examples_figure(examples),
    }
    if attention:
        figures["attention"] = plots.examples_figure(attention)
    drawn = {}
    for name, figure in figures.items():
        signals.check()
        drawn[name] = page.png(figure)
    body = PAGE.format(
        **_score_places(metrics, genres),
        **_source_places(config, metrics, data),
        **_picture_places(drawn),
        kept=_KEPT[config.get("keep", "loss")],
        calibration=_calibration(metrics),
        tracks=page.text(describe_tracks(predictions)),
        mistakes=_mistakes(track_predictions(predictions), genres, names or {}),
        **_data_places(data),
        **_run_places(config, data, run, log),
    )
    facts = {"data": data, "run": run, "cost": cost(run, log)}
    # Nothing is written until everything is made: a failure leaves the last report as it was.
    document = page.document(_title(config, data), body)
    write_text(
        Path(workdir, files.CARD),
        model_card(config, genres, metrics, data, run, describe_tracks(predictions)),
    )
    return files.write_report_files(workdir, document, drawn, facts)


def other_music(data: Mapping) -> str | None:
    """Why a run's scores cannot be compared with the published ones, or None where they can."""
    if data["synthetic"]:
        return "a demo on synthesised music"
    if data["dataset"] != "fma_small":
        return f"on {data['dataset']}, not on FMA small"
    if data["tracks_listed"] != published.TRACKS:
        listed = f"{data['tracks_listed']:,} tracks are listed there, in FMA small 8,000"
        return f"on other music under FMA small's name ({listed})"
    return None


def _title(config: Mapping, data: Mapping) -> str:
    return f"{config['model']} on {data['dataset']}"


def _confusion(level: str, metrics: Mapping, genres: Sequence[str]):
    title = f"{level.capitalize()}s (n = {metrics[level]['count']:,})"
    return plots.confusion_figure(metrics[level]["confusion_matrix"], genres, title)


def _score_places(metrics: Mapping, genres: Sequence[str]) -> dict[str, str]:
    """The scores, with their intervals, of tracks and clips, and by genre."""
    track = metrics["track"]
    clip = metrics["clip"]
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
    if len(genres) > plots.MOST_NUMBERED_GENRES:  # too many to be looked up by their place
        per_genre.sort(key=lambda row: -row[1 + list(PER_GENRE).index("f1")])
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
    if model not in PUBLISHED:
        verdict = page.text(f"The source published no scores for {model}.")
        return {"source": "", "verdict": verdict, "differences": ""}
    rows = [("Published, FMA small (test)", *PUBLISHED[model].scores)]
    for level in ("track", "clip"):
        scores = (metrics[level][key] for key in published.SCORE_NAMES)
        rows.append((f"This run, {level}s ({metrics['split']})", *scores))
    verdict = "The source does not state whether it scored clips or tracks, so both are shown."
    if reason := other_music(data):
        verdict += f" This run is {reason}: the rows cannot be compared."
    head = ("Scores", *(SCORES[key] for key in published.SCORE_NAMES))
    return {
        "source": page.table(model, head, rows),
        "verdict": page.text(verdict),
        "differences": page.table(
            "What differs", ("What", "Source", "This run"), _settings(config, data), style="words"
        ),
    }


def _settings(config: Mapping, data: Mapping) -> list[tuple[str, str, str]]:
    """What the source did beside what this run did; only for networks that the source has."""
    source = PUBLISHED[config["model"]]
    splits = {name: split["tracks"] for name, split in data["splits"].items()}
    shares = "/".join(f"{100 * n / max(sum(splits.values()), 1):.0f}" for n in splits.values())
    seconds = config["audio"]["clip_seconds"]
    crop = config.get("crop_seconds")
    part = f"{crop:g} s of " if crop else ""
    recipe = "learning rate {}, weight decay {}, batch {}, {} epochs".format
    own = (config[key] for key in ("learning_rate", "weight_decay", "batch_size", "num_epochs"))
    theirs = (published.LEARNING_RATE, published.WEIGHT_DECAY, source.batch_size)
    augment = config.get("augment", {})
    augmentation = ", ".join(name for key, name in _AUGMENTATIONS.items() if augment.get(key))
    schedule = config.get("optimizer", {}).get("schedule") or "constant"
    music = f"{data['dataset']}, {data['tracks_listed']:,} tracks"
    skipped = f"{len(data['skipped']):,} left out"
    return [
        ("Music", f"FMA small, {published.TRACKS:,} tracks", music),
        ("Split", "80/10/10, corrupt files left out", f"{shares} by tracks, {skipped}"),
        (
            "Input",
            " and ".join(source.inputs),
            f"{' and '.join(data['inputs'])}, {part}clips of {seconds:g} s",
        ),
        ("Augmentation", "white noise, time stretching", augmentation or "none"),
        ("Optimiser", "Adam", f"AdamW, {schedule} learning rate"),
        ("Recipe", recipe(*theirs, published.NUM_EPOCHS), recipe(*own)),
        ("Epoch kept", _KEPT["loss"], _KEPT[config.get("keep", "loss")]),
        ("First weights", "not stated", config.get("init_from") or "random"),
    ]


def _picture_places(drawn: Mapping[str, bytes]) -> dict[str, str]:
    """The pictures as HTML, each with what it shows."""
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
        "attention": _attention(drawn),
        "bins": str(CALIBRATION_BINS),
    }


def _attention(drawn: Mapping[str, bytes]) -> str:
    """The picture of a network that has attention, and what it shows."""
    if "attention" not in drawn:
        return ""
    about = "A line for each head: its weights over time, 1 where all positions weigh the same."
    shown = page.pictures({"Attention over time in the same clips": drawn["attention"]})
    return f'<h2>What it attends to</h2>{shown}<p class="soft">{about}</p>'


def _calibration(metrics: Mapping) -> str:
    """What the temperature did; nothing for scores of versions before 0.2."""
    if "temperature" not in metrics:
        return ""
    rows = [
        (f"{SCORES[key]}, {level}s", metrics[level]["uncalibrated"][key], metrics[level][key])
        for key in ("loss", "ece")
        for level in ("track", "clip")
    ]
    caption = f"Temperature {metrics['temperature']:.3g}, fitted on the validation tracks"
    return page.table(caption, ("Score", "Before", "After"), rows)


def _mistakes(tracks: SplitPredictions, genres: Sequence[str], names: Mapping[int, str]) -> str:
    """The wrong predictions of tracks that the network was surest of, as a table."""
    probabilities = np.exp(tracks.log_probs)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != tracks.label)
    worst = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:_MISTAKES]
    rows = []
    for i in worst:
        track_id = int(tracks.track_id[i])
        rows.append(
            (
                # As text: an id is a name, not an amount, and gets no thousands separator.
                names.get(track_id, str(track_id)),
                genres[tracks.label[i]],
                genres[predicted[i]],
                probabilities[i, predicted[i]],
                probabilities[i, tracks.label[i]],
            )
        )
    if not rows:
        return "<p>No track was mistaken.</p>"
    head = ("Track", "True genre", "Predicted", "Probability", "Of the true genre")
    caption = f"{len(rows)} of {len(wrong):,} tracks mistaken"
    return page.table(caption, head, rows, style="left")


def _data_places(data: Mapping) -> dict[str, str]:
    """What was read of which splits, and what was left out."""
    skipped = data["skipped"]
    table = ""
    splits = [(name, split["tracks"], split["clips"]) for name, split in data["splits"].items()]
    splits.append(("all", *(sum(row[i] for row in splits) for i in (1, 2))))
    read = f"{data['dataset']}, read as {data['features']}: {data['tracks_listed']:,} tracks "
    read += f"listed, {data['tracks_used']:,} used, {len(skipped):,} skipped."
    if data.get("silent_clips"):
        read += f" {data['silent_clips']:,} clips without signal were left out."
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
    """How the run was made, and what it cost."""
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
    epochs = [row for row in log if row["kind"] == "train" and row.get("clips_per_s")]
    facts = {"Cost": f"{run['seconds'] / 3600:.3g} h of {run['devices']}"}
    if epochs:
        rate = statistics.median(row["clips_per_s"] for row in epochs)
        facts["Training speed, median epoch"] = f"{rate:,.0f} clips/s"
    if epochs and run["flops_per_clip"]:
        clips = sum(row["clips_per_s"] * (row.get("seconds") or 0) for row in epochs)
        each = f"{clips:,.0f} clips of {run['flops_per_clip'] / 1e9:.3g} GFLOP"
        total = f"{clips * run['flops_per_clip']:.3g} FLOP"
        facts["Training compute, as XLA counts"] = f"{total} ({each})"
    return facts
