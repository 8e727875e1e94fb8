"""The source's table made anew: what it holds, that it goes on, and what it says before."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mgc_jax.errors import InputError
from mgc_jax.results import files, report
from mgc_jax.training.reproduction import NETWORKS, estimate, make_configs, reproduce


def configs_of(data_dir, networks=("baseline_a_1d",), seeds=2):
    return make_configs(
        networks, seeds=seeds, epochs=1, dataset="fma_small", name="", data_dir=str(data_dir)
    )


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory) -> Path:
    """Two seeds of the quickest network; the second in a call of its own, as after a kill."""
    folder = tmp_path_factory.mktemp("results")
    picture = report.page.png(Figure(figsize=(1, 1)))
    with pytest.MonkeyPatch.context() as patch:  # drawing is most of a report's time
        patch.setattr(report.page, "png", lambda figure: picture)
        reproduce(configs_of(prepared.data_dir, seeds=1), folder)
        log = folder / "runs" / "baseline_a_1d-seed0" / files.LOG
        before = log.stat().st_mtime_ns
        reproduce(configs_of(prepared.data_dir), folder)
        assert log.stat().st_mtime_ns == before  # what is done is not done again
    return folder


def test_table_has_the_source_ours_and_what_made_them(folder):
    table = (folder / "table.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    published = {row[0]: row for row in rows if row[1:2] == ["published"]}
    assert set(published) == set(NETWORKS) and published["densenet"][2] == "0.574"
    runs = [folder / "runs" / f"baseline_a_1d-seed{seed}" for seed in (0, 1)]
    for level in ("track", "clip"):
        (ours,) = (row for row in rows if row[1:2] and row[1].endswith(f"seed1, {level}s"))
        scores = [json.loads((run / "report/metrics.json").read_text())[level] for run in runs]
        for column, key in enumerate(("f1", "accuracy_ovr", "precision", "recall", "top1"), 2):
            values = [score[key] for score in scores]
            spread = np.std(values, ddof=1)
            assert ours[column].startswith(f"{np.mean(values):.3f} ± {spread:.3f} (")
        assert ours[-1] == "645,080"
    facts = [json.loads((run / "report/run.json").read_text()) for run in runs]
    for part, key in [("data", "source"), ("data", "fingerprint"), ("run", "code")]:
        assert len(facts[0][part][key]) == 64 and facts[0][part][key] in table
        assert facts[0][part][key] == facts[1][part][key]
    for fact in facts:
        assert fact["run"]["command"] in table
    assert "--config.seed=1" in facts[1]["run"]["command"]
    assert "table.html" in {path.name for path in folder.iterdir()}


def test_dry_run_needs_no_data(tmp_path, capsys):
    estimate(configs_of(tmp_path / "none", seeds=3))
    said = capsys.readouterr().out
    # 8,000 tracks of three clips, each of 128 x 513 bytes and 160,000 samples of two.
    assert "9.3 GB of records" in said and "--download" in said and "7.2 GiB of audio" in said
    assert "runs       3, each of 1 epochs" in said
    assert not list(tmp_path.iterdir())


def test_nothing_is_trained_before_all_can_be(prepared, tmp_path):
    with pytest.raises(InputError, match="did you mean 'densenet'"):
        configs_of(prepared.data_dir, networks=["densent"])
    with pytest.raises(InputError, match="no TFRecords in"):
        reproduce(configs_of(tmp_path / "none"), tmp_path)
    assert not list(tmp_path.iterdir())
