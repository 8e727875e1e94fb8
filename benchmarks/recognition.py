"""What makes a network tell genres better: each lever of a training on its own, and all together.

    python benchmarks/recognition.py --audio_dir=fma_small --metadata_dir=fma_metadata
    python benchmarks/recognition.py --audio_dir=music --labels_csv=music.csv   # path,genre,artist

The tracks are cut into five folds of whole artists (`folds`). Records of all tracks are made once
for each kind that the ways read, and cut into folds as they are opened. What every training
answers for its test tracks, by the epoch that the way keeps and by the last one, is a line of
--answers: the same command goes on from there, several may share it, and one with
--answers=benchmarks/recognition_styles8.jsonl goes on from ours. It makes results.json and
index.html of what there is, and prints the table: top-1 and macro F1 of tracks over all folds, each
way's difference from the source's recipe, and the difference's 95% interval, by a paired bootstrap
over artists.

Nothing is chosen by the test folds: ways are listed in `WAYS` beforehand, all are reported.
"""

import contextlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from absl import flags
from folds import FOLDS, Row, folds, read_fma, read_table, train, write_table
from ml_collections import ConfigDict

from mgc_jax import cli, console, parallel
from mgc_jax.data import preparation
from mgc_jax.data.input_pipeline import ClipDataset, Split, open_dataset
from mgc_jax.data.shards import Index
from mgc_jax.data.tracks import read_paths
from mgc_jax.errors import InputError
from mgc_jax.files import write_bytes, write_text
from mgc_jax.models import inputs_of
from mgc_jax.results import page
from mgc_jax.results.metrics import interval, track_predictions
from mgc_jax.training.checkpoints import Checkpoints
from mgc_jax.training.claim import check_config
from mgc_jax.training.evaluate import evaluate_best, predict_split
from mgc_jax.training.step import create_train_state

_AUDIO = flags.DEFINE_string("audio_dir", None, "Folder of audio files.", required=True)
_METADATA = flags.DEFINE_string("metadata_dir", None, "Folder of FMA's tracks.csv.")
_LABELS = flags.DEFINE_string("labels_csv", None, "Table with the columns path, genre and artist.")
_OUT = flags.DEFINE_string("out", "runs/recognition", "Folder of records, runs and results.")
_ANSWERS = flags.DEFINE_string("answers", None, "Lines of JSON; default: answers.jsonl in --out.")
_NETWORKS = flags.DEFINE_list(
    "networks",
    ["baseline_a_2d", "baseline_b", "temporal_fusion", "temporal_fusion:fusion=late"],
    "What to train: names of configs, with model_overrides.",
)
_WAYS = flags.DEFINE_list("ways", None, "Some of the ways; default: all.")
_FOLDS = flags.DEFINE_integer("folds", FOLDS, "The first of so many.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 2, "Trainings of a fold.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Of clips of 10 s; of whole tracks thrice as many.")

_RESAMPLES = 2000


def source(config: ConfigDict) -> None:
    """The source's: white noise, time stretching, a constant rate, the lowest validation loss."""
    config.augment.update(noise_probability=0.5, stretch_probability=0.5)


def crops(config: ConfigDict) -> None:
    """Random stretches of 10 s of whole tracks; as many steps as the source's."""
    config.audio.clip_seconds = 30.0
    config.mel.frames = 384
    config.update(crop_seconds=10.0, windows=5, num_epochs=3 * config.num_epochs)


def levels(config: ConfigDict) -> None:
    """Absolute levels, bands standardised."""
    config.mel.update(reference="fixed", top_db=100.0)


def cosine(config: ConfigDict) -> None:
    """A learning rate that falls to 0, and the last epoch kept."""
    config.optimizer.schedule = "cosine"
    config.keep = "last"


def average(config: ConfigDict) -> None:
    """A running average of the weights, and the last epoch kept."""
    config.update(average_decay=0.999, keep="last")


def longer(config: ConfigDict) -> None:
    """Thrice as many epochs."""
    config.num_epochs *= 3


def mixed(config: ConfigDict) -> None:
    """Mixup, masks and label smoothing instead of noise and stretching."""
    config.augment.update(noise_probability=0.0, stretch_probability=0.0, mixup_alpha=0.3)
    config.augment.update(time_masks=2, mel_masks=2, mel_mask_bands=64, time_mask_frames=16)
    config.label_smoothing = 0.1


def plain(config: ConfigDict) -> None:
    """No augmentation."""
    config.augment.update(noise_probability=0.0, stretch_probability=0.0)


WAYS: dict[str, tuple[Callable, ...]] = {
    "source": (source,),
    "crops": (source, crops),
    "levels": (source, levels),
    "cosine": (source, cosine),
    "average": (source, average),
    "mixed": (mixed,),
    "plain": (plain,),
    "all_noise": (source, crops, levels, cosine, average),
    "all_mixed": (mixed, crops, levels, cosine, average),
    "all_plain": (plain, crops, levels, cosine, average),
    "source_longer": (source, longer),
    "all_mixed_longer": (mixed, crops, levels, cosine, average, longer),
    "all_plain_longer": (plain, crops, levels, cosine, average, longer),
}


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    if bool(_METADATA.value) == bool(_LABELS.value):
        raise InputError("give --metadata_dir or --labels_csv")
    parallel.keep_memory()
    parallel.use_compilation_cache()
    rows = read_fma(_METADATA.value, _AUDIO.value) if _METADATA.value else read_table(_LABELS.value)
    splits = folds(rows, seed=0)[: _FOLDS.value]
    ways = _WAYS.value or list(WAYS)
    out = Path(_OUT.value).absolute()
    answers = Path(_ANSWERS.value or out / "answers.jsonl")
    for seed in range(_SEEDS.value):
        for fold, split_of in enumerate(splits):
            for network in _NETWORKS.value:
                for way in ways:
                    key = {"network": network, "way": way, "fold": fold, "seed": seed}
                    # Read anew each time: other processes may work on the same.
                    if any(key.items() <= line.items() for line in _read(answers)):
                        continue
                    name = f"{network}-{way}-fold{fold}-seed{seed}"
                    console.log.info("%s", name)
                    config = _config(network, way, seed, out)
                    found = _train(config, rows, split_of, out / "runs" / name)
                    _add(answers, key | found)
                    jax.clear_caches()  # which would grow by every training
                    _write_results(out, _read(answers), rows)
    _write_results(out, _read(answers), rows)


def _read(answers: Path) -> list[dict]:
    """Whole lines; one that a killed process has left half written is passed over."""
    lines = []
    for line in answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def _add(answers: Path, line: dict) -> None:
    """Appends a line, in one write, on a line of its own even after a torn one."""
    answers.parent.mkdir(parents=True, exist_ok=True)
    torn = answers.exists() and not answers.read_bytes().endswith(b"\n")
    text = json.dumps(line, separators=(",", ":")) + "\n"
    with open(answers, "a", encoding="utf-8") as file:
        file.write("\n" + text if torn else text)


def _config(network: str, way: str, seed: int, out: Path) -> ConfigDict:
    name, *overrides = network.split(":")
    config = importlib.import_module(f"mgc_jax.configs.{name}").get_config()
    config.update(dataset="audio_folder", seed=seed, num_epochs=_EPOCHS.value)
    config.model_overrides.update(dict(override.split("=") for override in overrides))
    for lever in WAYS[way]:
        lever(config)
    kind = f"{config.audio.clip_seconds:g}s-{config.mel.reference}"
    config.data_dir = str(out / "records" / kind)
    return config


def _train(config: ConfigDict, rows: Sequence[Row], split_of: Sequence[str], workdir: Path) -> dict:
    """One training.

    Returns:
        The `epoch` that was kept, the last `step`, and what the two said of the test tracks, in the
        order of the table: `kept` and `last`, numbers of genres or None for files without a clip.
    """
    check_config(config)  # before files are decoded
    dataset = _open(config, rows, split_of)
    network, progress = train(config, dataset, workdir)
    test = dataset.splits["test"]
    kept, epoch = evaluate_best(workdir, network, test)
    state = create_train_state(network, dataset.splits["train"].steps_per_epoch(config.batch_size))
    with Checkpoints(workdir) as checkpoints:
        state, _ = checkpoints.restore_last(state)
    last = parallel.replicate(state.evaluated)
    last = predict_split(network.predict_step, last, test, config.batch_size)
    shutil.rmtree(workdir)
    paths = _paths(dataset, rows)
    result = {"epoch": epoch, "step": progress.step}
    for name, clips in (("kept", kept), ("last", last)):
        tracks = track_predictions(clips)
        pairs = zip(tracks.track_id.tolist(), tracks.log_probs.argmax(axis=1).tolist(), strict=True)
        said = {paths[track]: genre for track, genre in pairs}
        result[name] = [said.get(row.path) for row in _test_rows(rows, split_of)]
    return result


def _test_rows(rows: Sequence[Row], split_of: Sequence[str]) -> list[Row]:
    return [row for row, split in zip(rows, split_of, strict=True) if split == "test"]


def _paths(dataset: ClipDataset, rows: Sequence[Row]) -> dict[int, str]:
    """Paths of `rows` by track id; records leave out the folder that holds all."""
    known = {row.path for row in rows}
    above = Path(os.path.dirname(os.path.commonprefix(list(known))))
    paths = read_paths(dataset.path)
    return {i: path if path in known else str(above / path) for i, path in paths.items()}


def _open(config: ConfigDict, rows: Sequence[Row], split_of: Sequence[str]) -> ClipDataset:
    """The records of all tracks, prepared if they are not there, cut into the splits of a fold."""
    inputs = inputs_of(config.model)
    table = Path(config.data_dir) / "tracks.csv"
    write_table(table, rows, folds(rows, seed=0)[0])
    preparation.prepare(
        config,
        inputs,
        workers=os.cpu_count() or 1,
        audio_dir=_AUDIO.value,
        labels_csv=str(table),
    )
    dataset = open_dataset(config, inputs)
    wanted = {row.path: split for row, split in zip(rows, split_of, strict=True)}
    by_track = {i: wanted[path] for i, path in _paths(dataset, rows).items()}
    parts = list(dataset.splits.values())
    splits = {}
    for name in dataset.splits:
        chosen = [
            np.flatnonzero([by_track[i] == name for i in part.labels["track_id"].tolist()])
            for part in parts
        ]
        splits[name] = _Fold(parts, chosen)
    return dataset._replace(splits=splits)


class _Fold(Split):
    """Some clips of several splits, as one split."""

    def __init__(self, parts: Sequence[Split], chosen: Sequence[np.ndarray]):
        """Joins rows of splits, in the order of both."""
        shards = np.cumsum([0, *(len(part._maps) for part in parts)])
        pairs = list(zip(parts, chosen, strict=True))

        def join(values: Callable) -> np.ndarray:
            return np.concatenate([values(part)[rows] for part, rows in pairs])

        first = parts[0]._index
        shard = [
            part._index.shard[rows] + before
            for (part, rows), before in zip(pairs, shards, strict=False)
        ]
        self._index = Index(
            np.concatenate(shard),
            {name: join(lambda p, name=name: p._index.offsets[name]) for name in first.offsets},
            {name: join(lambda p, name=name: p._index.labels[name]) for name in first.labels},
        )
        self._maps = [file for part in parts for file in part._maps]
        self._arrays = [file for part in parts for file in part._arrays]
        self._views = [file for part in parts for file in part._views]
        self._fields = parts[0]._fields


def _write_results(out: Path, lines: Sequence[dict], rows: Sequence[Row]) -> None:
    """Scores of all runs that are there: results.json, index.html, and the table printed."""
    genres = sorted({row.genre for row in rows})
    tests = [_test_rows(rows, split_of) for split_of in folds(rows, seed=0)]
    runs = {}
    for line in lines:
        for epoch in ("kept", "last"):
            answers = runs.setdefault((line["network"], line["way"], epoch), {})
            for row, said in zip(tests[line["fold"]], line[epoch], strict=True):
                if said is not None:
                    key = line["fold"], line["seed"], row.path
                    answers[key] = genres.index(row.genre), said, row.artist
    table = []
    for (network, way, epoch), answers in runs.items():
        base = runs.get((network, "source", "kept"), {})
        row = {"network": network, "way": way, "epoch": epoch} | _scores(answers)
        row |= _differences({k: answers[k] for k in answers if k in base}, base)
        table.append(row)
    write_text(out / "results.json", json.dumps(table, indent=2))
    head = ("Network", "Way", "Epoch", "Trainings", "Top-1", "Macro F1")
    head += ("Top-1 less the source's", "Macro F1 less the source's")
    cells = [
        (r["network"], r["way"], r["epoch"], r["trainings"], r["top1"], r["f1_macro"])
        + tuple((f"{r[k]:+.3f}", page.interval(r[f"{k}_interval"])) for k in ("d_top1", "d_f1"))
        for r in table
        if "d_top1" in r
    ]
    body = f"<h1>Recognition</h1>{page.table('Tracks of all folds', head, cells, style='names')}"
    write_bytes(out / "index.html", page.document("Recognition", body))
    print("|", " | ".join(head), "|\n|" + "---|" * len(head))
    for row in cells:
        print(
            "|",
            " | ".join(" ".join(c) if isinstance(c, tuple) else page.plain(c) for c in row),
            "|",
        )


def _counts(answers: dict, owners: np.ndarray, size: int, classes: int) -> np.ndarray:
    """Confusion matrices of each artist: `[artists, classes, classes]`."""
    counts = np.zeros((size, classes, classes))
    for owner, (label, said, _) in zip(owners, answers.values(), strict=True):
        counts[owner, label, said] += 1
    return counts


def _of_confusion(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Top-1 and macro F1 of `[..., classes, classes]`, over the classes that there are."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    ends = matrix.sum(-1) + matrix.sum(-2)
    f1 = np.where(ends > 0, 2 * hits / np.maximum(ends, 1e-9), np.nan)
    return hits.sum(-1) / matrix.sum((-2, -1)), np.nanmean(f1, axis=-1)


def _scores(answers: dict) -> dict:
    classes = 1 + max(max(label, said) for label, said, _ in answers.values())
    matrix = _counts(answers, np.zeros(len(answers), int), 1, classes)[0]
    top1, f1 = _of_confusion(matrix)
    trainings = len({key[:2] for key in answers})
    return {"trainings": trainings, "top1": float(top1), "f1_macro": float(f1)}


def _differences(answers: dict, base: dict) -> dict:
    """Of two ways on the same folds and seeds: differences of scores, with 95% intervals."""
    if not answers:
        return {}
    base = {key: base[key] for key in answers}
    names, owners = np.unique([artist for *_, artist in answers.values()], return_inverse=True)
    classes = 1 + max(max(a[:2]) for part in (answers, base) for a in part.values())
    ours, theirs = (_counts(part, owners, len(names), classes) for part in (answers, base))
    rng = np.random.default_rng(0)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
    found = {}
    for place, name in enumerate(("d_top1", "d_f1")):

        def difference(weights, place=place):
            of = [_of_confusion(np.tensordot(weights, part, 1))[place] for part in (ours, theirs)]
            return of[0] - of[1]

        found[name] = float(difference(np.ones(len(names))))
        found[f"{name}_interval"] = interval(difference(draws))
    return found


if __name__ == "__main__":
    cli.run_main(main)
