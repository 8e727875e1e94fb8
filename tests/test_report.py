"""The report page: what it shows, what it escapes, and what it says when an input is missing."""

import csv
import functools
import json
import re
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from mgc_jax import console
from mgc_jax.errors import InputError
from mgc_jax.results import files, plots, report
from mgc_jax.results import page as page_module
from mgc_jax.results.files import read_predictions, write_evaluation
from mgc_jax.results.metrics import SplitPredictions, track_predictions

GENRES = ["Rock", "R&B <x>", r"Pop $\frac$"]
PICTURES = (
    "confusion_matrix",
    "confusion_matrix_clips",
    "training_curves",
    "reliability",
    "spectrograms",
)
LOG = [
    {"kind": "train", "epoch": 1, "step": 4, "loss": 1.9, "top1": 0.31, "seconds": 4.0}
    | {"clips_per_s": 4.0},
    {"kind": "validation", "epoch": 1, "step": 4, "loss": 1.8, "top1": 0.35, "f1": 0.33},
    {"kind": "note", "text": "something else"},
    {"kind": "train", "epoch": 2, "step": 8, "loss": float("nan"), "top1": 0.4, "seconds": 2.0}
    | {"clips_per_s": 8.0},
    {"kind": "validation", "epoch": 2, "step": 8, "loss": 1.7, "top1": 0.41, "f1": None},
]


def _predictions() -> SplitPredictions:
    """20 tracks of 3 clips, ten of Rock and ten of R&B; the last genre never occurs."""
    label = np.repeat([0, 1], 30)
    logits = np.random.default_rng(4).normal(size=(60, 3)) + 1.5 * np.eye(3)[label]
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    n = np.arange(60)
    return SplitPredictions(9000 + n // 3, n % 3, label, log_probs.astype(np.float32))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    config = {
        "dataset": "fma_small",
        "model": "fusionnet",
        "note": "<script>alert(1)</script>",
        "audio": {"sample_rate": 16000, "clip_seconds": 3.0},
        "mel": {"n_fft": 1024, "hop_length": 512, "n_mels": 32, "frames": 64, "top_db": 80.0},
    }
    config |= {"learning_rate": 1e-4, "weight_decay": 1e-4, "batch_size": 4, "num_epochs": 2}
    (tmp_path / "config.json").write_text(json.dumps(config | {"seed": 0}))
    (tmp_path / "genres.json").write_text(json.dumps(GENRES))
    write_evaluation(tmp_path, _predictions(), GENRES, epoch=2)
    _write_log(tmp_path, LOG)
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    """Skips the drawing, most of the time a report takes, where only the text is looked at."""
    monkeypatch.setattr(page_module, "png", lambda figure: b"no picture")


def _write_log(workdir: Path, rows: list[dict]) -> None:
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _examples() -> list[tuple]:
    rng = np.random.default_rng(0)
    picture = rng.uniform(-80, 0, (32, 64))
    return [
        ("a log-mel of $ome & <b>", lambda axes: axes.imshow(picture, extent=(0, 2, 0, 32))),
        ("a waveform", lambda axes: axes.plot(np.linspace(0, 2, 9), rng.uniform(-1, 1, 9))),
    ]


def _data(**changes) -> dict:
    splits = {"train": {"tracks": 6394, "clips": 63940}, "test": {"tracks": 20, "clips": 60}}
    used = {"dataset": "fma_small", "features": "mel", "splits": splits, "synthetic": False}
    used |= {"inputs": ["log-mel of 64 frames x 32 bands"]}
    return used | {"tracks_listed": 6416, "tracks_used": 6414, "skipped": []} | changes


_RUN = {
    "command": "train --workdir <here>",
    "devices": "1 x cpu",
    "parameters": 661058,
    "seconds": 3723.4,
    "flops_per_clip": 2.5e9,
    "versions": {"jax": "0.10.2"},
    "finished": "2026-01-01 12:00 UTC",
}


def _write(workdir: Path, **changes) -> str:
    path = report.write_report(workdir, examples=_examples(), data=_data(**changes), run=_RUN)
    assert path == workdir / "report" / "index.html"
    return path.read_text(encoding="utf-8")


class _Reader(HTMLParser):
    """Collects table rows as text, links and sources, and every element's name."""

    def __init__(self, page: str):
        super().__init__()
        self.rows, self.links, self.tags, self.alts = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset")]
        self.alts += [value for name, value in attrs if name == "alt"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("td", "th", "small") and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip("\n")


def _with_interval(level: dict, key: str) -> str:
    low, high = level["intervals"][key]
    return f"{level[key]:.3f} {low:.3f}–{high:.3f}"


def _tick_labels(axes) -> list[str]:
    return [label.get_text() for label in axes.get_xticklabels()]


def test_page_is_self_contained(no_pictures, workdir):
    page = _write(workdir)
    links = _Reader(page).links
    assert len(links) == 5
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert not re.search(r"https?://|url\(|@import", page)


def test_page_shows_the_numbers_of_metrics_json(no_pictures, workdir):
    page = _write(workdir)
    metrics = json.loads((workdir / "report" / "metrics.json").read_text())
    rows = _Reader(page).rows
    for key, name in report.SCORES.items():
        assert [name, *(_with_interval(metrics[level], key) for level in ("track", "clip"))] in rows
    for genre in GENRES:
        of = metrics["track"]["per_class"][genre]
        scores = [f"{of[key]:.3f}" for key in ("precision", "recall", "f1")]
        scores.append("–" if of["roc_auc"] is None else f"{of['roc_auc']:.3f}")
        assert [genre, *scores, str(of["support"])] in rows
    cards = re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", page)
    shown = ("top1", "f1", "f1_macro", "precision", "recall", "roc_auc")
    assert [value for _, value in cards] == [f"{metrics['track'][key]:.3f}" for key in shown]
    assert "top-1 of 0.500 per track" in page  # ten of the twenty tracks are of either genre


def test_model_card_has_the_scores_for_people_and_for_the_hub(no_pictures, workdir):
    _write(workdir)
    _, front, card = (workdir / "README.md").read_text().split("---\n", 2)
    track = json.loads((workdir / "report" / "metrics.json").read_text())["track"]
    (result,) = yaml.safe_load(front)["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(track["top1"], abs=1e-4)
    low, high = track["intervals"]["recall"]
    assert f"| Recall | {track['recall']:.3f} ({low:.3f}–{high:.3f}) |" in card
    assert "## Limits" in card and "synthesised" not in card


def test_published_row_stands_beside_this_run(no_pictures, workdir):
    page = _write(workdir, dataset="fma_medium")
    rows = _Reader(page).rows
    assert ["Published, FMA small (test)", "0.553", "0.888", "0.548", "0.557"] in rows
    tracks = json.loads((workdir / "report" / "metrics.json").read_text())["track"]
    scores = [f"{tracks[key]:.3f}" for key in ("f1", "accuracy_ovr", "precision", "recall")]
    assert ["This run, tracks (test)", *scores] in rows
    assert "on fma_medium, not on FMA small" in page
    assert "other music under FMA small" in _write(workdir)  # lists 6,416 tracks
    assert "cannot be compared" not in _write(workdir, tracks_listed=8000)


def test_what_differs_from_the_source_is_said(no_pictures, workdir):
    inputs = ["log-mel of 64 frames x 32 bands", "waveform at 16,000 Hz"]
    rows = _Reader(_write(workdir, inputs=inputs)).rows
    assert ["Music", "FMA small, 8,000 tracks", "fma_small, 6,416 tracks"] in rows
    assert ["Split", "80/10/10, corrupt files left out", "100/0 by tracks, 0 left out"] in rows
    own = "log-mel of 64 frames x 32 bands and waveform at 16,000 Hz, clips of 3 s"
    assert own in [row[-1] for row in rows]
    recipe = "learning rate 0.0001, weight decay 0.0001, batch {}, {} epochs"
    assert ["Recipe", recipe.format(8, 20), recipe.format(4, 2)] in rows
    assert ["First weights", "not stated", "random"] in rows
    assert ["Augmentation", "white noise, time stretching", "none"] in rows
    config = json.loads((workdir / "config.json").read_text())
    config["augment"] = {"noise_probability": 0.5, "stretch_probability": 0.0, "time_masks": 2}
    (workdir / "config.json").write_text(json.dumps(config))
    rows = _Reader(_write(workdir)).rows
    assert ["Augmentation", "white noise, time stretching", "white noise, time masks"] in rows


def test_most_confident_mistakes_have_their_track_ids(no_pictures, workdir):
    rows = _Reader(_write(workdir)).rows
    start = 1 + rows.index(["Track", "True genre", "Predicted", "Probability", "Of the true genre"])
    tracks = track_predictions(_predictions())
    expected = []
    for track_id, label, log_probs in zip(
        tracks.track_id, tracks.label, tracks.log_probs, strict=True
    ):
        probabilities = np.exp(log_probs)
        if (guess := probabilities.argmax()) != label:
            shown = f"{probabilities[guess]:.3f}", f"{probabilities[label]:.3f}"
            expected.append([str(track_id), GENRES[label], GENRES[guess], *shown])
    expected.sort(key=lambda row: row[3], reverse=True)
    assert len(expected) > 1 and rows[start : start + len(expected)] == expected


def test_unknown_network_has_no_published_row(no_pictures, workdir):
    config = json.loads((workdir / "config.json").read_text()) | {"model": "my<net>"}
    (workdir / "config.json").write_text(json.dumps(config))
    page = _write(workdir)
    assert "The source published no scores for my&lt;net&gt;." in page


def test_text_from_data_is_escaped(no_pictures, workdir):
    skipped = [{"track_id": 1, "path": "<img src=x>.mp3", "reason": "a & b"}]
    page = _write(workdir, dataset="<b>mine", skipped=skipped)
    assert "R&amp;B &lt;x&gt;" in page
    assert "R&B <x>" not in page
    tags = set(_Reader(page).tags)
    assert not tags & {"x", "script", "here"}
    assert page.count("<img") == 5
    assert "<b>mine" not in page


def test_skipped_tracks_are_listed_with_reasons(no_pictures, workdir):
    skipped = [
        {"track_id": 98565 + i, "path": f"098/{98565 + i}.mp3", "reason": f"too short: {i} s"}
        for i in range(63)
    ]
    page = _write(workdir, skipped=skipped)
    rows = _Reader(page).rows
    assert ["98614", "098/98614.mp3", "too short: 49 s"] in rows
    assert "too short: 50 s" not in page
    assert "and 13 more, see skipped.csv" in page
    assert "6,416 tracks listed, 6,414 used, 63 skipped" in page
    assert ["all", "6,414", "64,000"] in rows
    assert "more, see skipped.csv" not in _write(workdir, skipped=skipped[:50])


def test_run_section_tells_how_it_was_made(no_pictures, workdir):
    page = _write(workdir)
    rows = _Reader(page).rows
    assert ["Parameters", "661,058"] in rows
    assert ["Training and validation (h:min:s)", "1:02:03"] in rows
    assert ["Cost", "1.03 h of 1 x cpu"] in rows
    assert ["Training speed, median epoch", "6 clips/s"] in rows  # 4 steps of 4 clips in 4 and 2 s
    compute = "8e+10 FLOP (32 clips of 2.5 GFLOP)"
    assert ["Training compute, as XLA counts", compute] in rows
    facts = files.read_facts(workdir)
    assert facts["data"]["tracks_listed"] == 6416 and facts["run"]["parameters"] == 661058
    assert ["Versions", "jax 0.10.2"] in rows
    assert "train --workdir &lt;here&gt;" in page
    assert "&quot;hop_length&quot;: 512" in page


@pytest.mark.parametrize("synthetic", [True, False])
def test_notice_only_on_synthesised_music(no_pictures, workdir, synthetic):
    page = _write(workdir, synthetic=synthetic)
    assert ("say nothing about real music" in page) is synthetic
    assert ("demo on synthesised music" in page) is synthetic
    if synthetic:
        assert page.index("say nothing about real music") < page.index("<h2>")


def test_pictures_are_written_and_embedded(workdir):
    page = _write(workdir)
    for name in PICTURES:
        with Image.open(workdir / "report" / f"{name}.png") as picture:
            picture.load()
            assert picture.width > 700 and picture.height > 350
            assert len(picture.convert("L").getcolors()) > 30  # not a blank sheet
    assert all(len(alt) > 20 for alt in _Reader(page).alts)
    left = {path.name for path in (workdir / "report").iterdir()}
    others = {"index.html", "metrics.json", "predictions.csv", "run.json"}
    assert left == others | {f"{name}.png" for name in PICTURES}


def test_confusion_figure_writes_counts_and_shares():
    counts = [[21, 7, 2], [4, 26, 0], [0, 0, 0]]
    axes = plots.confusion_figure(counts, GENRES, "Clips").axes[0]
    written = [text.get_text() for text in axes.texts]
    assert written == ["21\n70%", "7\n23%", "2\n7%", "4\n13%", "26\n87%", *["0"] * 4]
    shares = axes.images[0].get_array()
    np.testing.assert_allclose(shares, [[0.7, 7 / 30, 2 / 30], [4 / 30, 26 / 30, 0], [0, 0, 0]])
    assert _tick_labels(axes) == GENRES


def test_confusion_figure_holds_many_long_names():
    names = [f"A rather long name of genre {i}" for i in range(16)]
    figure = plots.confusion_figure(np.full((16, 16), 1234), names, "Tracks")
    figure.draw_without_rendering()  # lays it out
    axes = figure.axes[0]
    cell = axes.get_window_extent().width / 16
    assert max(text.get_window_extent().width for text in axes.texts) < cell


def test_reliability_figure_draws_the_bins_of_metrics_json(workdir):
    metrics = json.loads((workdir / "report" / "metrics.json").read_text())
    track, clip = plots.reliability_figure(metrics).axes
    for axes, level in ((track, "track"), (clip, "clip")):
        bins = [row for row in metrics[level]["reliability"] if row["count"]]
        bars = [(bar.get_x(), bar.get_height()) for bar in axes.patches]
        assert bars == [(row["low"], row["accuracy"]) for row in bins]
        assert sum(int(text.get_text()) for text in axes.texts) == metrics[level]["count"]
        assert f"{metrics[level]['ece']:.3f}" in axes.get_title()


def test_curves_mark_the_kept_epoch_and_pass_over_gaps():
    loss, scores = plots.curves_figure(LOG, 2).axes
    lines = {line.get_label(): line for line in (*loss.lines, *scores.lines)}
    assert list(lines["kept: epoch 2"].get_xdata()) == [2, 2]
    np.testing.assert_array_equal(lines["train"].get_ydata(), [1.9, np.nan])
    np.testing.assert_array_equal(lines["validation top-1"].get_ydata(), [0.35, 0.41])
    np.testing.assert_array_equal(lines["validation F1"].get_ydata(), [0.33, np.nan])


@pytest.mark.parametrize("rows", [LOG[:2], [LOG[0], LOG[3]], []], ids=["one", "train", "none"])
def test_short_logs_still_make_a_report(workdir, rows):
    _write_log(workdir, rows)
    _write(workdir)
    page_module.png(figure := plots.curves_figure(rows, 1))
    left, right = figure.axes[0].get_xlim()
    ticks = [tick for tick in figure.axes[0].get_xticks() if left <= tick <= right]
    assert ticks and all(tick == int(tick) for tick in ticks)


def test_a_resumed_epoch_counts_once():
    again = LOG[0] | {"loss": 1.5}
    loss = plots.curves_figure([LOG[0], again], None).axes[0]
    assert [list(line.get_ydata()) for line in loss.lines] == [[1.5]]


def test_examples_are_laid_out_and_have_one_scale():
    figure = plots.examples_figure(_examples())
    figure.draw_without_rendering()
    picture, wave, *_ = figure.axes
    assert len(picture.images) == 1 and len(wave.lines) == 1
    assert picture.get_title(loc="left") == "a log-mel of $ome & <b>"
    assert figure.axes[-1].get_ylabel() == "dB"
    page_module.png(plots.examples_figure([]))


def test_attention_is_drawn_where_there_is_some(workdir):
    """Two heads, the second of which looks at the third of four positions alone."""
    seconds = np.array([1.0, 2.0, 3.0, 4.0])
    attention = np.array([[0.25, 0], [0.25, 0], [0.25, 1], [0.25, 0]])
    draw = functools.partial(plots.draw_attention, seconds=seconds, attention=attention)
    axes = plots.examples_figure([("Jazz", draw)]).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 1, 1, 1], [0, 0, 4, 0]]
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    assert "What it attends to" not in _write(workdir)
    report.write_report(workdir, examples=[], data=_data(), run=_RUN, attention=[("Jazz", draw)])
    assert "What it attends to" in (workdir / "report" / "index.html").read_text(encoding="utf-8")
    assert (workdir / "report" / "attention.png").exists()


@pytest.mark.parametrize("name", ["config.json", "genres.json", "report/metrics.json"])
def test_missing_and_broken_inputs_are_named(no_pictures, workdir, name):
    (workdir / name).write_text('{"a": 1}\n{"b": ')
    with pytest.raises(InputError, match=re.escape(name) + r".*line 2.*train the run"):
        _write(workdir)
    (workdir / name).write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=re.escape(name) + ".*train the run"):
        _write(workdir)
    (workdir / name).unlink()
    with pytest.raises(InputError, match=re.escape(name) + ".*train the run"):
        _write(workdir)
    assert not (workdir / "report" / "index.html").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"model": ', b"\xff\xfe{", b"\0" * 40, b"[" * 100_000, b"1e999"],
)
def test_absurd_json_is_one_line(workdir, content):
    for name in ("config.json", "report/metrics.json", "report/run.json"):
        (workdir / name).parent.mkdir(exist_ok=True)
        (workdir / name).write_bytes(content)
    for read in (files.read_config, lambda w: files.read_metrics(w, GENRES), files.read_facts):
        with pytest.raises(InputError) as error:
            read(workdir)
        assert "\n" not in str(error.value) and ".json" in str(error.value)


def test_torn_and_damaged_log_lines(workdir, caplog, monkeypatch):
    monkeypatch.setattr(console.log, "propagate", True)
    lines = [json.dumps({"kind": "step", "epoch": 1, "step": i}).encode() for i in range(5)]
    (workdir / "metrics.jsonl").write_bytes(b"\n".join([*lines[:4], lines[4][:9]]))
    assert [row["step"] for row in files.read_log(workdir)] == [0, 1, 2, 3]
    assert not caplog.messages  # the last line of a killed run
    lines[2] = b"\0" * 30
    (workdir / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [row["step"] for row in files.read_log(workdir)] == [0, 1, 3, 4]
    assert "1 damaged lines are left out" in caplog.text


def test_many_genres_make_a_matrix_without_numbers():
    names = [f"genre {i}" for i in range(161)]
    counts = np.random.default_rng(0).integers(0, 9, (161, 161))
    axes = plots.confusion_figure(counts, names, "Tracks").axes[0]
    assert not axes.texts and _tick_labels(axes) == names


def test_many_genres_make_few_examples():
    from mgc_jax.training import reporting

    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(161), 3))
    split = types.SimpleNamespace(labels={"label": labels})
    shown, rows = reporting._clip_of_each_genre(split)
    assert shown.tolist() == labels[rows].tolist() == list(range(24))


def test_incomplete_metrics_are_named(no_pictures, workdir):
    path = workdir / "report" / "metrics.json"
    metrics = json.loads(path.read_text())
    del metrics["track"]["per_class"]["Rock"]["recall"]
    path.write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"metrics\.json.*track\.per_class\.Rock\.recall"):
        _write(workdir)
    metrics["track"] = metrics["clip"] | {"confusion_matrix": [[1, 2], [3, 4]]}
    path.write_text(json.dumps(metrics))
    with pytest.raises(InputError, match=r"metrics\.json: track\.confusion_matrix"):
        _write(workdir)


def test_no_genre_is_a_formula(workdir):
    genres = ["=1+1", "'Rock", "@home"]
    path = workdir / "report" / "predictions.csv"
    files._write_predictions(path, _predictions(), genres, {})
    labels = {row["label"] for row in csv.DictReader(path.read_text().splitlines())}
    assert labels <= {"'=1+1", "'Rock", "'@home"}
    found = read_predictions(workdir, genres)
    np.testing.assert_array_equal(found.label, _predictions().label)


def test_predictions_come_back_from_the_file(workdir):
    written = _predictions()
    found = read_predictions(workdir, GENRES)
    for name in ("track_id", "clip", "label"):
        np.testing.assert_array_equal(getattr(found, name), getattr(written, name))
    np.testing.assert_allclose(found.log_probs, written.log_probs, atol=1e-6)


@pytest.mark.parametrize("damage", ["genres", "rows", "torn", "missing"])
def test_damaged_predictions_are_named(workdir, damage):
    path, genres = workdir / "report" / "predictions.csv", GENRES
    lines = path.read_text().splitlines()
    if damage == "genres":
        genres = ["other", "genres"]
    elif damage == "rows":
        path.write_text(lines[0])
    elif damage == "torn":
        path.write_text("\n".join(lines)[:-30])
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"predictions\.csv.*--mode=eval"):
        read_predictions(workdir, genres)


def test_a_failure_leaves_the_last_report(no_pictures, workdir):
    page = _write(workdir)
    with pytest.raises(KeyError):
        _write(workdir, splits={"train": {}})
    assert (workdir / "report" / "index.html").read_text(encoding="utf-8") == page


def test_numbers_are_rounded_and_gaps_shown():
    values = (1234, 0.12345, np.float32(0.5), np.int64(1000), None, float("nan"), "a<b")
    expected = ["1,234", "0.123", "0.500", "1,000", "–", "–", "a&lt;b"]
    assert [page_module.text(value) for value in values] == expected


def test_import_needs_no_accelerator_library():
    code = (
        "import sys, mgc_jax.results.report; "
        "sys.exit(bool({'jax', 'tensorflow', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    root = Path(report.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
