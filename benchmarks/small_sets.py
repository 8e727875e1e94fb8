"""What music of few tracks is classified best by: training from scratch, or published weights.

    python benchmarks/small_sets.py --audio_dir=fma_small --metadata_dir=fma_metadata
    python benchmarks/small_sets.py --audio_dir=music --labels_csv=music.csv   # path,genre,artist

Each seed cuts the tracks into five folds of whole artists, genres kept in proportion; every fold is
the test set once, the next one the validation set, the other three are trained on. With
--metadata_dir, FMA's own split is one more test (`own`). What is done is kept in --out, and the
same command goes on.

Prints track-level top-1: the mean over seeds and tracks, and its 95% interval, bootstrapped over
artists. --ways names what is compared:

scratch       configs/baseline_a_2d.py as it is: the source's recipe
tuned         configs/musicnn.py: musicnn from msd_musicnn, whose filters over the picture stay;
              random stretches of 3 s, a learning rate of 0.001
probe_msd     configs/probe.py: a head on msd_musicnn as it is
probe_mtt     the same on mtt_musicnn
probe_both    the same on both

All partitions of the probes share one pass through the networks: a track's statistics are the same
whatever split it is in.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from absl import flags
from folds import Row, folds, read_fma, read_table, train, write_table

from mgc_jax import cli, console, parallel
from mgc_jax.data import preparation, shards
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.data.tracks import read_paths
from mgc_jax.errors import InputError
from mgc_jax.files import write_text
from mgc_jax.models import inputs_of
from mgc_jax.results.metrics import interval, track_predictions
from mgc_jax.training.evaluate import evaluate_best
from mgc_jax.training.heads import TrackStatistics, decide, fit_head
from mgc_jax.training.network import Network
from mgc_jax.training.probing import compute_statistics, load_frozen, probe_config

_AUDIO = flags.DEFINE_string("audio_dir", None, "Folder of audio files.", required=True)
_METADATA = flags.DEFINE_string("metadata_dir", None, "Folder of FMA's tracks.csv.")
_LABELS = flags.DEFINE_string("labels_csv", None, "Table with the columns path, genre and artist.")
_OUT = flags.DEFINE_string("out", "runs/small_sets", "Folder of tables, records and runs.")
_WAYS = flags.DEFINE_list("ways", ["scratch", "tuned"], "What to compare.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "How often folds are drawn.", lower_bound=1)
_EPOCHS = flags.DEFINE_list("epochs", ["20", "8"], "Of trainings from scratch, and tuned.")

_CONFIGS = {"scratch": "baseline_a_2d", "tuned": "musicnn"}
_PROBES = {
    "probe_msd": ["msd_musicnn"],
    "probe_mtt": ["mtt_musicnn"],
    "probe_both": ["msd_musicnn", "mtt_musicnn"],
}
_RESAMPLES = 2000


Hits = list[tuple[str, bool]]  # artist of each test track, and whether it was told right


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    if bool(_METADATA.value) == bool(_LABELS.value):
        raise InputError("give --metadata_dir or --labels_csv")
    parallel.keep_memory()
    parallel.use_compilation_cache()
    rows = read_fma(_METADATA.value, _AUDIO.value) if _METADATA.value else read_table(_LABELS.value)
    out = Path(_OUT.value)
    hits = {}  # of a way and a kind of split
    probes = None
    for seed in range(_SEEDS.value):
        for name, kind, splits in _partitions(rows, seed):
            table = out / f"{name}.csv"
            write_table(table, rows, splits)
            for way in _WAYS.value:
                if way in _PROBES:
                    probes = probes or _Probes(rows, table, out)
                    found = probes.hits(way, splits)
                    hits.setdefault((way, kind), []).extend(found)
                    continue
                path = out / "runs" / f"{way}-{name}-seed{seed}.json"
                if not path.exists():
                    console.log.info("%s", path.stem)
                    found = _train(way, table, seed, path.with_suffix(""), rows)
                    write_text(path, json.dumps(found))
                    jax.clear_caches()  # which would grow by every training
                hits.setdefault((way, kind), []).extend(json.loads(path.read_text()))
    _print_table(hits)


def _partitions(rows: Sequence[Row], seed: int) -> list[tuple[str, str, list[str]]]:
    """Name, kind and the tracks' splits of each partition of a seed."""
    found = []
    if all(row.split for row in rows):
        found.append(("own", "own", [row.split for row in rows]))
    for number, splits in enumerate(folds(rows, seed)):
        found.append((f"folds{seed}_{number}", "folds", splits))
    return found


def _train(way: str, table: Path, seed: int, workdir: Path, rows: Sequence[Row]) -> Hits:
    """Trains on a partition; of its test tracks, by the epoch of the lowest validation loss."""
    config = importlib.import_module(f"mgc_jax.configs.{_CONFIGS[way]}").get_config()
    config.update(dataset="audio_folder", seed=seed)
    config.num_epochs = int(_EPOCHS.value[list(_CONFIGS).index(way)])
    if way == "tuned":
        config.optimizer.freeze = "trunk/(input|timbral|temporal)"
        config.update(crop_seconds=3.0, windows=3, learning_rate=1e-3)
    config.data_dir = str(table.with_suffix(f".{way}"))
    inputs = inputs_of(config.model)
    sources = {"audio_dir": _AUDIO.value, "labels_csv": str(table)}
    preparation.prepare(config, inputs, workers=2, **sources)
    dataset = open_dataset(config, inputs)
    network, _ = train(config, dataset, workdir)
    predictions, _ = evaluate_best(workdir, network, dataset.splits["test"])
    tracks = track_predictions(predictions)
    paths = read_paths(dataset.path)
    artists = {str(Path(row.path)): row.artist for row in rows}
    right = tracks.log_probs.argmax(axis=1) == tracks.label
    for folder in (workdir, config.data_dir):
        shutil.rmtree(folder)
    ids = tracks.track_id.tolist()
    return [(artists[paths[i]], bool(hit)) for i, hit in zip(ids, right, strict=True)]


class _Probes:
    """What the frozen networks say of all tracks, and heads that are fitted on a part of them."""

    def __init__(self, rows: Sequence[Row], table: Path, out: Path):
        """Passes the tracks of a table's partition, which are all, through each network."""
        self._rows = rows
        self._genres = sorted({row.genre for row in rows})
        self._config = importlib.import_module("mgc_jax.configs.probe").get_config()
        self._config.update(dataset="audio_folder", data_dir=str(out / "probe"))
        if not shards.has_records(self._config, inputs_of("probe")):
            sources = {"audio_dir": _AUDIO.value, "labels_csv": str(table)}
            preparation.prepare(self._config, inputs_of("probe"), workers=2, **sources)
        dataset = open_dataset(self._config, inputs_of("probe"))
        paths = read_paths(dataset.path)
        self._statistics = {}
        for name in sorted({name for names in _PROBES.values() for name in names}):
            self._config.init_from = name
            network = Network.from_config(probe_config(self._config), dataset.genres)
            splits = sorted(dataset.splits)
            frozen = load_frozen(network)
            found = compute_statistics(network, frozen, dataset, splits, out / "probe")
            self._statistics[name] = {
                paths[track]: statistics
                for tracks in found
                for track, statistics in zip(
                    tracks.track_id.tolist(), tracks.statistics, strict=True
                )
            }

        usable = self._statistics[name]  # damaged files were left out
        self._usable = [i for i, row in enumerate(rows) if str(Path(row.path)) in usable]

    def hits(self, way: str, splits: Sequence[str]) -> Hits:
        """Of a partition's test tracks, by a head for it."""
        train, validation, test = (
            self._tracks(way, [i for i in self._usable if splits[i] == name])
            for name in ("train", "validation", "test")
        )
        head = fit_head(train, validation, self._genres, self._config)
        console.log.info("%s: %s", way, head)
        right = decide(head.params, test.statistics).argmax(axis=1) == test.label
        artists = (self._rows[i].artist for i in test.track_id.tolist())
        return list(zip(artists, right.tolist(), strict=True))

    def _tracks(self, way: str, places: Sequence[int]) -> TrackStatistics:
        """The tracks at these places in the table, of all networks of a way."""
        rows = [self._rows[place] for place in places]
        found = [
            np.split(np.stack([self._statistics[name][str(Path(row.path))] for row in rows]), 2, 1)
            for name in _PROBES[way]
        ]
        halves = [half for part in (0, 1) for half in (both[part] for both in found)]
        label = np.array([self._genres.index(row.genre) for row in rows])
        return TrackStatistics(np.array(places), label, np.concatenate(halves, axis=1))


def _print_table(hits: dict[tuple[str, str], Hits]) -> None:
    rng = np.random.default_rng(0)
    print("| way | split | tests | top-1 | 95% interval |\n|---|---|---|---|---|")
    for (way, kind), rows in hits.items():
        names, owner = np.unique([artist for artist, _ in rows], return_inverse=True)
        right = np.bincount(owner, [hit for _, hit in rows])
        count = np.bincount(owner)
        draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), _RESAMPLES)
        low, high = interval(draws @ right / (draws @ count))
        top1 = right.sum() / count.sum()
        print(f"| {way} | {kind} | {len(rows)} | {top1:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    cli.run_main(main)
