"""What is unknown: distances as scipy and scikit-learn have them, shares of tracks, answers."""

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from child import ROOT, call
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import LedoitWolf

import mgc_jax
from mgc_jax.data.tags import read_tags
from mgc_jax.errors import InputError
from mgc_jax.results.files import KNOWN, read_known, write_known
from mgc_jax.results.known import Known, fit_known, shrunk_covariance
from mgc_jax.timeline import plot_timeline
from mgc_jax.training.evaluate import keep_known
from mgc_jax.training.network import load_run


def test_distance_by_hand():
    """Two genres with variances 4 and 1: 6 and 2 away from the nearer mean."""
    known = Known(np.array([[0.0, 0], [20, 0]]), np.diag([1 / 2, 1]), np.zeros(1))
    found = known.distance([[0, 3], [16, 0], [20, 0], [12, 3]])
    np.testing.assert_allclose(found, [3, 2, 0, 5])


@pytest.mark.parametrize("count", [40, 3000])  # fewer and more than there are channels
def test_fitted_distances_are_those_of_scipy_and_scikit_learn(count):
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(60, 60)) / 8
    labels = rng.integers(3, size=count) * 2  # no track of the genres 1 and 3
    centres = rng.normal(size=(5, 60)) * 3
    vectors = rng.normal(size=(count, 60)) @ mixing + centres[labels]
    validation = rng.normal(size=(7, 60)) @ mixing + centres[0]
    known = fit_known(vectors, labels, validation)
    means = {label: vectors[labels == label].mean(axis=0) for label in (0, 2, 4)}
    residuals = vectors - [means[label] for label in labels.tolist()]
    reference = LedoitWolf(assume_centered=True).fit(residuals)
    np.testing.assert_allclose(shrunk_covariance(residuals), reference.covariance_, atol=1e-9)
    inverse = np.linalg.inv(reference.covariance_)
    expected = [min(mahalanobis(v, mean, inverse) for mean in means.values()) for v in validation]
    np.testing.assert_allclose(known.distances, expected, rtol=1e-4)
    np.testing.assert_allclose(known.distance(validation), expected, rtol=1e-4)


def test_one_clip_a_genre_is_no_error():
    known = fit_known(np.eye(3), np.arange(3), np.zeros((2, 3)))
    np.testing.assert_allclose(known.distances, 1, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 7, 8, 20, 100])
def test_limit_leaves_a_share_beyond_it(count):
    distances = np.random.default_rng(count).permutation(count) + 1.0
    for share in (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.99):
        limit = Known(np.zeros((1, 1)), np.eye(1), distances).limit(share)
        assert (distances > limit).sum() == int(round(count * share, 9)), share


@pytest.fixture
def run(workdir, tmp_path):
    """A copy of the trained run, to change."""
    return Path(shutil.copytree(workdir, tmp_path / "run"))


@pytest.fixture(scope="module")
def validation(corpus, dataset):
    """The files of the validation tracks, in stored order."""
    tracks = np.unique(dataset.splits["validation"].labels["track_id"]).tolist()
    return [corpus / "fma_small" / f"{i // 1000:03d}" / f"{i:06d}.mp3" for i in tracks]


def test_share_of_validation_tracks_is_unknown(workdir, validation):
    known = read_known(workdir, load_run(workdir).epoch)
    plain = mgc_jax.load(workdir).predict(validation)
    for share, expected in ((0.25, 2), (0.5, 4), (0.0, 0)):
        results = mgc_jax.load(workdir, unknown=share).predict(validation)
        distances = [result.distance for result in results]
        # The stored clips are rounded to bytes.
        np.testing.assert_allclose(distances, known.distances, rtol=2e-3)
        assert sum(result.unknown for result in results) == expected
        order = np.argsort(known.distances)[len(results) - expected :]
        assert {i for i, result in enumerate(results) if result.unknown} == set(order.tolist())
        for result, without in zip(results, plain, strict=True):
            assert result.ranking == pytest.approx(without.ranking, abs=1e-5)
            assert result.genre == (None if result.unknown else without.genre)
            assert not without.unknown and without.distance is None


def test_eval_makes_it_anew(run, dataset):
    """Where it is missing, damaged or of another epoch; one that is sound stays."""
    network, *_, epoch, _ = load_run(run)
    path = run / KNOWN
    before = read_known(run, epoch)
    stamp = path.stat().st_mtime_ns
    keep_known(run, network, dataset.splits)
    assert path.stat().st_mtime_ns == stamp
    content = path.read_bytes()
    for broken in (None, b"", content[:-100], "epoch", "pickle", "shape", "text", "nan"):
        if broken is None:
            path.unlink()
        elif broken == "epoch":
            write_known(run, epoch + 1, before)
        elif broken == "pickle":
            np.savez(path, epoch=epoch, **before._replace(means=np.array([{}]))._asdict())
        elif broken == "shape":
            write_known(run, epoch, before._replace(whitening=before.whitening[1:]))
        elif broken == "text":
            write_known(run, epoch, before._replace(distances=np.array(["near"])))
        elif broken == "nan":
            write_known(run, epoch, before._replace(distances=before.distances * np.nan))
        else:
            path.write_bytes(broken)
        with pytest.raises(InputError, match=r"known\.npz.*with --mode=eval") as said:
            mgc_jax.load(run, unknown=0.05)
        assert "\n" not in str(said.value)
        keep_known(run, network, dataset.splits)
        for array, expected in zip(read_known(run, epoch), before, strict=True):
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("share", [-0.1, 1, 5, float("nan")])
def test_a_share_is_below_one(run, share):
    with pytest.raises(InputError, match="need a share of the validation tracks"):
        mgc_jax.load(run, unknown=share)


def other_sounds(folder: Path) -> dict[str, Path]:
    """Noise, a tone, and speech where there is a synthesiser: no music of the corpus."""
    rng = np.random.default_rng(0)
    time = np.arange(12 * 16000) / 16000
    sounds = {"noise": rng.normal(size=len(time)) * 0.1, "tone": np.sin(2 * np.pi * 440 * time) / 3}
    paths = {name: folder / f"{name}.flac" for name in sounds}
    for name, sound in sounds.items():
        soundfile.write(paths[name], sound, 16000)
    if shutil.which("espeak-ng"):
        paths["speech"] = folder / "speech.wav"
        words = "The train to the coast leaves at seven, and the last one back at ten. " * 3
        subprocess.run(["espeak-ng", "-w", paths["speech"], words], check=True)
    return paths


def test_what_is_no_music_is_unknown_everywhere(workdir, corpus, validation, tmp_path):
    """In Python, in tables, JSON and CSV, in the picture; and no such genre is written."""
    sounds = other_sounds(tmp_path)
    network = mgc_jax.load(workdir, unknown=0.25)
    results = network.predict(sounds.values(), spectrograms=True)
    for result in results:
        assert result.unknown and result.genre is None, (result.source, result.distance)
        assert result.distance > network.limit
        assert plot_timeline(result).axes[0].get_title().endswith("\nunknown")
    known = network.limit
    song = min(validation, key=lambda path: network.predict(path)[0].distance)

    flags = (f"--workdir={workdir}", "--unknown=0.25", song, *sounds.values())
    rows = [
        json.loads(line)
        for line in call("predict", "--format=json", *flags).stdout.split("\n")[:-1]
    ]
    assert [row["unknown"] for row in rows] == [False] + [True] * len(sounds)
    assert rows[0]["genre"] and rows[0]["distance"] <= known
    for row, result in zip(rows[1:], results, strict=True):
        assert row["genre"] is None and row["distance"] == pytest.approx(result.distance, rel=1e-4)
    said = call("predict", "--format=csv", *flags).stdout
    table = list(csv.DictReader(io.StringIO(said)))
    assert [row["unknown"] for row in table] == ["False"] + ["True"] * len(sounds)
    assert table[0]["genre"] and not any(row["genre"] for row in table[1:])
    said = call("predict", *flags).stdout
    assert said.count("unknown: like none of these genres") == len(sounds)

    before = read_tags(sounds["noise"])
    written = call(
        "tag",
        *flags[:2],
        "--min_probability=0",
        "--write",
        *sounds.values(),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert written.returncode == 0 and "left as they are: unknown music" in written.stderr
    assert read_tags(sounds["noise"]) == before
    plain = call("predict", "--format=csv", flags[0], song)
    assert "unknown" not in plain.stdout and "distance" not in plain.stdout
