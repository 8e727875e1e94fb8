"""Probes: heads beside scikit-learn's own, whole runs beside features computed another way."""

import csv
import json
import signal

import jax
import numpy as np
import pytest
from child import ROOT, Python, call, log_lines
from shared import training_flags
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import mgc_jax
from mgc_jax.configs import default, probe
from mgc_jax.data import preparation
from mgc_jax.data.features import Mel96
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.data.opening import find_files
from mgc_jax.errors import InputError, Interrupted
from mgc_jax.models import create_model
from mgc_jax.models.musicnn import Trunk, cut_patches
from mgc_jax.results.files import read_predictions
from mgc_jax.results.metrics import track_predictions
from mgc_jax.training.heads import TrackStatistics, decide, fit_head
from mgc_jax.training.network import load_run
from mgc_jax.training.probing import _Pass
from mgc_jax.training.public_weights import load_public
from mgc_jax.training.track_head import join_statistics

BOTH = ("msd_musicnn", "mtt_musicnn")
GENRES = ["Folk", "Hip-Hop", "Rock"]


def tracks_of(count, seed, genres=3, width=12):
    """Clouds, not well separated; one column never changes, one is large."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % genres
    statistics = rng.normal(size=(count, width)) + 0.5 * np.eye(genres, width)[label]
    statistics[:, -1] = 0.3
    statistics[:, -2] *= 1e4
    return TrackStatistics(np.arange(count), label, statistics)


def settings(**given):
    config = default.get_config()
    config.probe.update({"radial_gammas": (1.0,), "radial_penalties": (), "refit": False})
    config.probe.update(given)
    return config


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


@pytest.mark.parametrize("genres", [2, 3])
@pytest.mark.parametrize("balance", [False, True])
def test_logistic_regression_is_scikit_learns(genres, balance):
    train, held_out = tracks_of(40, 0, genres), tracks_of(21, 1, genres)
    config = settings(logistic_penalties=(0.1,))
    config.balance_classes = balance
    head = fit_head(train, held_out, GENRES[:genres], config)
    theirs = make_pipeline(
        StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced" if balance else None)
    ).fit(train.statistics, train.label)
    found = log_softmax(decide(head.params, held_out.statistics))
    expected = theirs.predict_proba(held_out.statistics)
    np.testing.assert_allclose(np.exp(found), expected, atol=1e-3)
    assert np.std(expected) > 0.02 and head.support == 0
    calibrated = log_softmax(decide(head.params, held_out.statistics) / head.temperature)
    np.testing.assert_allclose(head.validation.log_probs, calibrated, atol=1e-6)


@pytest.mark.parametrize("genres", [2, 3])
def test_radial_machine_is_scikit_learns_and_jax_decides_as_numpy(genres):
    train, held_out = tracks_of(40, 0, genres), tracks_of(21, 1, genres)
    config = settings(logistic_penalties=(), radial_penalties=(3.0,), radial_gammas=(0.5,))
    head = fit_head(train, held_out, GENRES[:genres], config)
    machine = SVC(C=3.0, kernel="rbf", gamma=0.5 / 12)
    theirs = make_pipeline(StandardScaler(), OneVsRestClassifier(machine))
    theirs.fit(train.statistics, train.label)
    expected = theirs.decision_function(held_out.statistics)
    if genres == 2:  # one machine, whose other side is its negative
        expected = np.stack([-expected, expected], axis=1)
    found = decide(head.params, held_out.statistics)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert np.std(expected) > 0.1 and 0 < head.support <= 40
    module = create_model("probe", genres, support=head.support)
    params = jax.tree.map(np.float32, head.params)
    in_jax = module.apply({"params": params}, np.float32(held_out.statistics), method="decide")
    np.testing.assert_allclose(in_jax, found, atol=1e-4)


def test_validation_chooses():
    """The lowest log-loss at its own temperature, of all that are listed, by brute force."""
    train, held_out = tracks_of(60, 0), tracks_of(45, 1)
    both = settings(
        logistic_penalties=(0.001, 0.1), radial_penalties=(1.0, 30.0), radial_gammas=(0.3, 3.0)
    )
    head = fit_head(train, held_out, GENRES, both)
    losses = {}
    lists = [{"logistic_penalties": (p,)} for p in (0.001, 0.1)]
    lists += [
        {"logistic_penalties": (), "radial_penalties": (p,), "radial_gammas": (g,)}
        for p in (1.0, 30.0)
        for g in (0.3, 3.0)
    ]
    for given in lists:
        one = fit_head(train, held_out, GENRES, settings(**given))
        logits = decide(one.params, held_out.statistics)
        at = [
            log_loss(held_out.label, np.exp(log_softmax(logits / t)))
            for t in np.geomspace(0.05, 20, 400)
        ]
        losses[one.loss] = str(one)
        # Its temperature is for targets that are not quite 1.
        assert min(at) - 1e-3 < one.loss < min(at) + 0.05
    assert str(head) == losses[min(losses)] and head.loss == min(losses)
    assert len(losses) == 6


def test_chosen_head_is_fitted_once_more():
    """To all tracks, as scikit-learn does; what was said of the validation tracks stays."""
    train, held_out = tracks_of(60, 0), tracks_of(45, 1)
    penalties = {"logistic_penalties": (0.001, 0.1)}
    before = fit_head(train, held_out, GENRES, settings(**penalties))
    after = fit_head(train, held_out, GENRES, settings(refit=True, **penalties))
    assert after.temperature == before.temperature and after.loss == before.loss
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=before.settings["penalty"]))
    statistics = np.concatenate([train.statistics, held_out.statistics])
    theirs.fit(statistics, np.concatenate([train.label, held_out.label]))
    others = tracks_of(30, 2).statistics
    found = np.exp(log_softmax(decide(after.params, others)))
    np.testing.assert_allclose(found, theirs.predict_proba(others), atol=1e-3)
    assert np.abs(found - np.exp(log_softmax(decide(before.params, others)))).max() > 0.01


@pytest.mark.parametrize(
    "change,says",
    [
        (dict(logistic_penalties=()), "config.probe lists no head"),
        (dict(logistic_penalties=(-1.0,)), "need numbers above 0"),
        (
            dict(logistic_penalties=(), radial_penalties=(1.0,), radial_tracks=10),
            "lists no head: .*a higher radial_tracks",
        ),
    ],
)
def test_heads_that_cannot_be_fitted(change, says):
    with pytest.raises(InputError, match=says):
        fit_head(tracks_of(40, 0), tracks_of(21, 1), GENRES, settings(**change))
    with pytest.raises(InputError, match="no training track of Rock: "):
        fit_head(tracks_of(40, 0, genres=2), tracks_of(21, 1), GENRES, settings())


def test_clips_join_to_their_track():
    """Mean and deviation of all patches, from those of clips of three patches each."""
    patches = np.random.default_rng(0).normal(3, 1, (4, 3, 5))
    clips = np.concatenate([patches.mean(axis=1), patches.std(axis=1)], axis=1)
    expected = np.concatenate([patches.mean(axis=(0, 1)), patches.std(axis=(0, 1))])
    np.testing.assert_allclose(join_statistics(clips), expected, rtol=1e-12)


@pytest.fixture(scope="module")
def config(corpus, tmp_path_factory):
    """The config of the corpus's tracks of three genres, prepared for musicnn and others."""
    folder = tmp_path_factory.mktemp("three_genres")
    with open(corpus / "fma_metadata" / "tracks.csv", newline="") as file:
        rows = list(csv.reader(file))
    genre = rows[1].index("genre_top")
    with open(folder / "tracks.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows[:3] + [row for row in rows[3:] if row[genre] in GENRES])
    config = probe.get_config()
    config.data_dir = str(folder / "tfrecords")
    sources = {"audio_dir": corpus / "fma_small", "metadata_dir": folder}
    for features in (("mel96",), ("mel",)):
        preparation.prepare(config, features, workers=2, max_skipped=0.9, **sources)
    return config


def arguments(config, workdir, *more):
    first = (f"--config={ROOT}/configs/probe.py", f"--config.data_dir={config.data_dir}")
    return (*first, f"--workdir={workdir}", "--config.batch_size=3", *more)


@pytest.fixture(scope="module")
def radial(config, public_cache, tmp_path_factory):
    """A probe on two networks, with a radial machine."""
    workdir = tmp_path_factory.mktemp("runs") / "radial"
    more = ("--config.probe.logistic_penalties=()", f"--pretrained={','.join(BOTH)}")
    done = call("probe", *arguments(config, workdir, *more))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return workdir


@pytest.fixture(scope="module")
def statistics(config, public_cache):
    """By split: ids, labels and statistics of tracks, on both networks; all patches at once."""
    networks = [load_public(name) for name in BOTH]
    trunk = Trunk(lambda name: networks[0].network.module.norm(False)(name=name, epsilon=1e-3))
    feature = Mel96.from_config(config)
    apply = jax.jit(trunk.apply)
    found = {}
    for name, split in open_dataset(config, ("mel96",)).splits.items():
        rows = []
        ids = np.unique(split.labels["track_id"])
        for track in ids:
            places = np.flatnonzero(split.labels["track_id"] == track)
            clips = feature.network_input(split.gather(places)["mel96"])
            patches = np.concatenate([np.asarray(cut_patches(clip[None]))[0] for clip in clips])
            layers = []
            for _, variables, *_ in networks:
                own = {part: variables[part]["trunk"] for part in variables}
                layers += list(apply(own, patches))
            x = np.concatenate(layers, axis=1).astype(float)
            rows.append(np.concatenate([x.mean(axis=0), x.std(axis=0)]))
        labels = [split.labels["label"][split.labels["track_id"] == track][0] for track in ids]
        found[name] = ids, np.array(labels), np.stack(rows)
    return found


def test_a_track_is_all_its_patches_at_once(radial, config, statistics, corpus):
    """The whole way, beside scikit-learn on features of all patches together."""
    train, validation, test = (statistics[name] for name in ("train", "validation", "test"))
    assert test[2].shape == (len(test[0]), 2 * 3412)
    run = load_run(radial)
    assert run.network.module.networks == 2
    assert len(train[0]) < run.network.module.support <= len(train[0]) + len(validation[0])
    genres = run.network.genres
    losses = {}
    for penalty in config.probe.radial_penalties:
        for gamma in config.probe.radial_gammas:
            machine = SVC(C=penalty, kernel="rbf", gamma=gamma / 6824)
            theirs = make_pipeline(StandardScaler(), OneVsRestClassifier(machine))
            theirs.fit(*train[:0:-1])
            at = theirs.decision_function(validation[2])
            tried = [log_softmax(at / t) for t in np.geomspace(0.05, 20, 400)]
            # As Platt has it: of few tracks, the target is not quite 1.
            count = len(validation[0])
            target = np.full((count, len(genres)), 1 / (count + len(genres)))
            target[np.arange(count), validation[1]] *= count + 1
            best = min(tried, key=lambda found: -np.sum(target * found))
            losses[log_loss(validation[1], np.exp(best))] = theirs
    theirs = losses[min(losses)]
    both = zip(train, validation, strict=True)
    _, labels, of_tracks = (np.concatenate(pair) for pair in both)
    theirs.fit(of_tracks, labels)
    expected = log_softmax(theirs.decision_function(test[2]) / run.temperature)
    clips = read_predictions(radial, genres)
    np.testing.assert_array_equal(clips.tracks.track_id, test[0])
    np.testing.assert_array_equal(clips.tracks.label, test[1])
    np.testing.assert_allclose(clips.tracks.log_probs, expected, atol=2e-3)
    assert np.std(expected) > 0.05
    # Not the mean of the clips, which every other network has.
    mean = track_predictions(clips._replace(tracks=None)).log_probs
    assert np.abs(mean - expected).max() > 0.01
    metrics = json.loads((radial / "report" / "metrics.json").read_text())
    assert metrics["track"]["top1"] == np.mean(expected.argmax(axis=1) == test[1])
    assert metrics["track"]["loss"] == pytest.approx(log_loss(test[1], np.exp(expected)), abs=2e-3)
    (line,) = log_lines(radial)
    assert line["loss"] == pytest.approx(min(losses), abs=2e-3) and line["kind"] == "validation"
    # Files are what records are; MP3s of the test split.
    paths = {int(path.split("/")[-1][:-4]): path for path in find_files([corpus / "fma_small"])}
    network = mgc_jax.load(radial)
    for row, track in enumerate(test[0][:2].tolist()):
        (result,) = network.predict(paths[track])
        found = [result.ranking[genre] for genre in genres]
        np.testing.assert_allclose(np.log(found), expected[row], atol=0.02)
        own = clips.log_probs[clips.track_id == track]
        np.testing.assert_allclose(np.log(result.timeline), own, atol=0.02)


def test_workdir_is_as_any(radial, config, corpus, tmp_path):
    """The page, the card, compare, export, embed and the app's page take it."""
    workdir = tmp_path / "run"
    done = call("main", *training_flags(config, workdir))
    assert done.returncode == 0, done.stderr
    page = (radial / "report" / "index.html").read_text()
    for text in (page, (radial / "README.md").read_text()):
        assert "all its patches at once" in " ".join(text.split())
        assert "mean of its clips" not in " ".join(text.split())
    assert "mean of its clips" in " ".join((workdir / "report/index.html").read_text().split())
    done = call("compare", radial, workdir, f"--output={tmp_path}/compare.html")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((radial / "report" / "metrics.json").read_text())["track"]
    assert f"| radial | probe | {metrics['top1']:.3f} (" in (tmp_path / "compare.md").read_text()
    song = next((corpus / "fma_small").rglob("*.mp3"))
    done = call("predict", f"--workdir={radial}", "--format=json", "--timeline", song)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="is a probe, which does not say .* unknown"):
        mgc_jax.load(radial, unknown=0.05)
    network = mgc_jax.load(radial)
    (embedded,) = network.embed(str(song))
    assert embedded.vector.shape == (2 * 3412,) and np.isfinite(embedded.vector).all()
    done = call("export", f"--workdir={radial}", tmp_path / "exported")
    assert done.returncode == 0, done.stderr
    file = jax.export.deserialize(
        bytearray((tmp_path / "exported" / "network.jax_export").read_bytes())
    )
    clips = np.stack([clip.samples for clip in mgc_jax.data.audio.read_clips(song, 16000, 160_000)])
    (result,) = network.predict(str(song))
    np.testing.assert_allclose(file.call(clips), result.timeline, atol=1e-4)


def test_a_pass_goes_on_where_it_stopped(config, tmp_path):
    """With what is whole on disk: no clip of it is passed again."""
    split = open_dataset(config, ("mel96",)).splits["train"]
    expected = split.gather(np.arange(len(split)))["mel96"].astype(np.float32).mean(axis=1)
    passed = []

    def step(stop_after, batch):
        if len(passed) == stop_after:
            raise Interrupted("stopped")
        passed.append(len(batch["label"]))
        return batch["mel96"].astype(np.float32).mean(axis=1)

    batches = -(-len(split) // 3)
    assert batches == 3
    with pytest.raises(Interrupted):
        _Pass(step, 2, split, 3, tmp_path).run("clips")
    assert len(passed) == 2 and [path.name for path in tmp_path.iterdir()] == ["0.npy"]
    found = _Pass(step, None, split, 3, tmp_path).run("clips")
    np.testing.assert_array_equal(found, expected)
    assert len(passed) == batches
    _Pass(step, 0, split, 3, tmp_path).run("clips")  # all is there
    (tmp_path / "6.npy").write_bytes((tmp_path / "6.npy").read_bytes()[:-1])
    passed.clear()
    found = _Pass(step, None, split, 3, tmp_path).run("clips")
    np.testing.assert_array_equal(found, expected)
    assert len(passed) == 1


# Ends itself once some clips are kept.
_ENDING = """
import os, sys
from mgc_jax import cli
from mgc_jax.training import probing

class Ending(probing._Pass):
    def _keep(self, *arguments):
        kept = super()._keep(*arguments)
        os.kill(os.getpid(), {})
        return kept

probing._CLIPS_A_FILE = 3
probing._Pass = Ending
cli.run("probe")
"""


def test_a_killed_probe_goes_on(config, public_cache, tmp_path):
    """Its end is what an uninterrupted one gives, to the bit; a workdir without a head is free."""
    more = ("--config.probe.radial_penalties=()", "--pretrained=msd_musicnn")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = call("probe", *arguments(config, whole, *more))
    assert done.returncode == 0, done.stderr
    for number, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        ended = Python(
            "-c", _ENDING.format(int(number)), *arguments(config, killed, *more)
        ).finish()
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        assert list(killed.glob("statistics-*/train/0.npy"))
        assert not (killed / "config.json").exists()
    done = call("probe", *arguments(config, killed, *more))
    assert done.returncode == 0, done.stderr
    assert not list(killed.glob("statistics-*"))
    for name in ("predictions.csv", "track_predictions.csv"):
        files = [workdir / "report" / name for workdir in (whole, killed)]
        assert files[0].read_bytes() == files[1].read_bytes()
    finished = call("probe", *arguments(config, whole, *more))
    assert finished.returncode == 0 and "this probe is complete" in finished.stderr
    other = call("probe", *arguments(config, whole, more[0], "--pretrained=mtt_musicnn"))
    assert other.returncode == 1
    assert "init_from is 'msd_musicnn' there, 'mtt_musicnn' now" in other.stderr


@pytest.mark.parametrize(
    "flags,says",
    [
        (("--config=densenet",), "config.model='densenet': a probe is on musicnn"),
        (("--config=probe", "--pretrained=msd_musicn"), "did you mean 'msd_musicnn'?"),
        (("--config=probe", "--pretrained=msd_musicnn,"), "--pretrained=... is missing"),
        (("--config=probe", "--config.crop_seconds=5"), "a probe reads all of each clip"),
        (("--config=probe", "--config.data_dir=/nowhere"), "prepare"),
    ],
)
def test_bad_use_is_one_line(public_cache, tmp_path, flags, says):
    done = call("probe", *flags, f"--workdir={tmp_path}/run")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: ") and says in last
    assert "Traceback" not in done.stderr and not (tmp_path / "run").exists()


def test_a_probe_is_not_trained(tmp_path):
    trained = call("main", "--config=probe", f"--workdir={tmp_path}/run")
    assert trained.returncode == 1
    assert "config.model='probe' is not trained, but fitted by `mgc_jax probe`" in trained.stderr
