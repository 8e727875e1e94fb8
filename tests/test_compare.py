"""The comparison of runs: its numbers by hand, its page, and folders that cannot be compared."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from child import assert_one_error, call

from mgc_jax.errors import InputError
from mgc_jax.results import comparison, report
from mgc_jax.results.files import read_predictions, write_evaluation, write_genres
from mgc_jax.results.metrics import SplitPredictions

GENRES = ["Rock", "Pop", "Folk"]
LABELS = np.arange(30) % 3


def _predictions(right: int, first_track: int = 100) -> SplitPredictions:
    """30 tracks of one clip, the first `right` of them predicted right."""
    n = np.arange(30)
    predicted = np.where(n < right, LABELS, (LABELS + 1) % 3)
    log_probs = np.log(np.eye(3)[predicted] * 0.7 + 0.1).astype(np.float32)
    return SplitPredictions(first_track + n, 0 * n, LABELS, log_probs)


def _make_run(folder: Path, right: int, **changes) -> Path:
    """A finished run, but for its pictures."""
    config = {"model": "densenet", "dataset": "fma_small", "seed": 0, "data_dir": "x"}
    config |= {"audio": {"sample_rate": 16000, "clip_seconds": 10.0}, "num_epochs": 1}
    config |= {"mel": {"hop_length": 1250, "top_db": 80.0, "frames": 128, "n_mels": 513}}
    config |= {"learning_rate": 1e-4, "weight_decay": 1e-4, "batch_size": 8} | changes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "genres.json").write_text(json.dumps(GENRES))
    line = {"kind": "train", "epoch": 1, "step": 2, "loss": 1.0, "seconds": 2.0, "clips_per_s": 8.0}
    (folder / "metrics.jsonl").write_text(json.dumps(line))
    write_evaluation(folder, _predictions(right), GENRES, epoch=1)
    data = {
        "dataset": "fma_small",
        "features": "mel",
        "inputs": ["log-mel"],
        "tracks_listed": 8000,
        "tracks_used": 8000,
    }
    data |= {"splits": {"test": {"tracks": 30, "clips": 30}}, "skipped": [], "synthetic": False}
    run = {"command": "x", "devices": "1 x cpu", "parameters": 7, "seconds": 36.0, "versions": {}}
    run |= {"finished": "now", "flops_per_clip": None}
    with pytest.MonkeyPatch.context() as patch:  # drawing is most of a report's time
        patch.setattr(report.page, "png", lambda figure: b"no picture")
        report.write_report(folder, examples=[], data=data, run=run)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Two runs that differ by their seed, and a worse one of another network."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        _make_run(folder / "worse", 12, model="baseline_b"),
        _make_run(folder / "first", 27),
        _make_run(folder / "second", 21, seed=1, data_dir="y"),
    ]


def _tables(runs) -> dict[str, list]:
    return {table.title: table.rows for table in comparison.compare(comparison.read_runs(runs))}


def test_best_run_is_first_and_the_others_are_tested_against_it(runs):
    rows = _tables(runs)["Against the best run"]
    assert [row[0] for row in rows] == ["second", "worse"]
    # Tracks 21 to 26 are right in the best run only: p = 2 * (1/2)^6.
    assert rows[0][2:] == (6, 0, pytest.approx(2 / 2**6))
    assert rows[1][2:] == (15, 0, pytest.approx(2 / 2**15))
    # Recall is the same in each genre, and so is precision: F1 is the share that is right.
    difference, bounds = rows[0][1]
    assert difference == "+0.200"
    low, high = map(float, bounds.split(" to "))
    # The number of drawn tracks out of the six is binomial(30, 0.2): 95% in 2 to 11 of 30.
    assert low == pytest.approx(2 / 30, abs=0.04) and high == pytest.approx(11 / 30, abs=0.04)


def test_runs_that_differ_by_seed_become_mean_and_spread(runs):
    tables = _tables(runs)
    ((name, number, f1, top1),) = tables["Where only the seed differs"]
    assert (name, number) == ("mean of first, second", 2)
    assert f1 == top1 == ("0.800 ± 0.141", "0.700–0.900")  # 27/30 and 21/30
    assert "Where only the seed differs" not in _tables(runs[:2])


def test_sources_table_has_ours_in_it(runs):
    rows = _tables(runs)["The source's results and ours"]
    published = {row[0]: row[2:] for row in rows if row[1] == "published"}
    assert published["densenet"] == (0.574, 0.892, 0.578, 0.571, "–", "–", 6_955_784)
    assert len(published) == 5
    ours = {row[:2]: row[2:] for row in rows if row[1] != "published"}
    assert ours["baseline_b", "worse, tracks"][0][0] == "0.400"
    mean, bounds = ours["densenet", "mean of first, second, clips"][0]
    assert mean == "0.800 ± 0.141"  # 27/30 and 21/30
    # A drawn track has 0, 1/2 or 1 (of 30: 3, 6 and 21), a variance of 0.11 a track.
    low, high = map(float, bounds.split("–"))
    spread = 1.96 * (0.11 / 30) ** 0.5
    assert low == pytest.approx(0.8 - spread, abs=0.03)
    assert high == pytest.approx(0.8 + spread, abs=0.03)
    at = [row[:2] for row in rows].index
    assert at(("densenet", "published")) + 1 == at(("densenet", "mean of first, second, tracks"))


def test_command_writes_page_and_markdown(runs, tmp_path):
    output = tmp_path / "out" / "page.html"
    done = call("compare", *runs, f"--output={output}")
    assert done.returncode == 0, done.stderr
    page, markdown = output.read_text(), output.with_suffix(".md").read_text()
    assert "data:image/png;base64," in page and "http" not in page
    for title in _tables(runs):
        assert title.replace("'", "&#x27;") in page and f"## {title}" in markdown
    assert "| second | +0.200 (" in markdown
    widths = {line.count("|") for line in markdown.splitlines() if "densenet" in line}
    assert widths == {9, 10}  # of the two tables that name networks


@pytest.mark.parametrize(
    "damage,says",
    [
        ("empty", "1 finished runs among 2 folders"),
        ("metrics", "other/report/metrics.json cannot be read"),
        ("run", "other/report/run.json is missing"),
        ("tracks", "different tracks (5 only in the first, 5 only in the second)"),
        ("genres", "first and other tell different genres apart"),
    ],
)
def test_folders_that_cannot_be_compared_are_one_line(runs, tmp_path, damage, says):
    other = tmp_path / "other"
    shutil.copytree(runs[1], other)
    if damage == "empty":
        shutil.rmtree(other / "report")
    elif damage == "metrics":
        (other / "report" / "metrics.json").write_text('{"split": ')
    elif damage == "run":
        (other / "report" / "run.json").unlink()
    elif damage == "tracks":
        shifted = _predictions(20, first_track=105)
        shifted = shifted._replace(label=(LABELS + 5) % 3)  # where ids are the same, so are labels
        write_evaluation(other, shifted, GENRES, epoch=1)
    else:
        genres = ["Jazz" if genre == "Rock" else genre for genre in GENRES]
        write_genres(other, genres)
        write_evaluation(other, read_predictions(runs[1], GENRES), genres, epoch=1)
    with pytest.raises(InputError) as error:
        comparison.read_runs([runs[1], other])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_finished_run_is_passed_over(runs, tmp_path):
    shown = call("compare", *runs, tmp_path / "gone")
    assert shown.returncode == 0 and "gone is no finished run: passed over" in shown.stderr
    # The page lies in the folder that holds all that was named.
    common = Path(os.path.commonpath([runs[0].parent, tmp_path]))
    assert (common / "comparison.html").exists() and (common / "comparison.md").exists()
    found = call("compare", runs[0], tmp_path / "gone")
    assert found.returncode == 1 and "1 finished runs among 2 folders" in found.stderr


def test_bad_use_is_one_line(runs, tmp_path):
    for arguments, says in [
        ([runs[0]], "at least two workdirs"),
        ([runs[0], runs[0] / "report" / ".."], "named twice"),
        ([*runs, "--output=page.pdf"], "should end in .html"),
    ]:
        done = call("compare", *arguments)
        assert_one_error(done, says)
