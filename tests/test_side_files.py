"""Files beside the records and the checkpoints that were damaged, or never were ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mgc_jax import console
from mgc_jax.configs import default
from mgc_jax.data import shards
from mgc_jax.data.tracks import read_paths, read_skipped
from mgc_jax.errors import InputError
from mgc_jax.files import misfit
from mgc_jax.results import comparison, files, plots, report
from mgc_jax.training import loop
from mgc_jax.training.claim import check_config, check_workdir
from mgc_jax.training.network import Network, load_run, with_defaults
from mgc_jax.training.pretrained import load_weights
from mgc_jax.training.run_log import RunLog, total_seconds


@pytest.fixture
def run(workdir, tmp_path) -> Path:
    """A copy of a finished run that a test may damage."""
    return Path(shutil.copytree(workdir, tmp_path / "run"))


def read_log(run: Path) -> None:
    """All that reads the log."""
    log = files.read_log(run)
    plots.curves_figure(log, 2)
    report.cost({"seconds": total_seconds(run), "devices": "x", "flops_per_clip": 1e9}, log)
    with RunLog(run, 3, 1, 100):
        pass


def read_config(run: Path) -> None:
    check_workdir(run, with_defaults({"model": "baseline_a_2d"}), new=True)


def compare(run: Path) -> None:
    comparison.read_runs([run], least=1)


READERS: dict[str, Callable[[Path], object]] = {
    "config.json": read_config,
    "genres.json": load_run,
    "data.json": load_run,
    "calibration.json": load_run,
    "metrics.jsonl": read_log,
    "report/metrics.json": compare,
    "report/run.json": compare,
    "report/predictions.csv": compare,
    "checkpoints/last/*/progress/metadata": loop.load_progress,
    "checkpoints/last/*/proof/metadata": loop.load_progress,
    "checkpoints/best/*/score/metadata": load_run,
}
RECORDS = {
    "features.json": shards.read_info,
    "dataset_info.json": shards.read_info,
    "metadata.json": shards.read_info,
    "tracks.csv": read_paths,
    "skipped.csv": read_skipped,
}
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut": lambda whole: whole[: len(whole) // 2],
    "foreign": lambda whole: b"PK\x03\x04" + bytes(range(256)),
    "not UTF-8": lambda whole: b"\xff\xfe{\x00}\x00",
    "deep": lambda whole: b"[" * 100_000,
    "NULs": lambda whole: b"\0" * len(whole),
    "a number": lambda whole: b"3",
    "a huge number": lambda whole: b"9" * 6000,
    "no content": lambda whole: b"{}",
    "absurd values": lambda whole: json.dumps(absurd(json.loads(whole.splitlines()[0]))).encode(),
    "texts": lambda whole: json.dumps(texts(json.loads(whole.splitlines()[0]))).encode(),
}


def absurd(value):
    """The same keys, and a number that nothing can be counted with for all else."""
    if isinstance(value, dict):
        return {key: absurd(part) for key, part in value.items()}
    return [10**30] if isinstance(value, list) else 10**30


def texts(value):
    """The same keys, and texts for all that is no dictionary."""
    if isinstance(value, dict):
        return {key: texts(part) for key, part in value.items()}
    return str(value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_a_run_is_one_line(run, damage):
    for name, read in READERS.items():
        for path in run.glob(name):
            check(path, damage, lambda read=read: read(run), silent=name == "metrics.jsonl")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_records_is_one_line(own_data, damage):
    folder = Path(own_data.data_dir) / "fma_small" / "mel_waveform" / "2.0.0"
    for name, read in RECORDS.items():
        check(folder / name, damage, lambda read=read: read(folder))


def check(path: Path, damage: str, read: Callable, silent: bool = False) -> None:
    """Damages a file, and puts it right again; of a log, lines may be left out, which is said."""
    whole = path.read_bytes()
    try:
        path.write_bytes(DAMAGE[damage](whole))
    except ValueError:
        return  # of what is no JSON, no values can be changed
    try:
        read()
    except InputError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 1000
        assert any(part in said for part in (path.name, str(path.parent), "checkpoint"))
    else:
        # Another state that was passed over for an older one, and a log, are no errors.
        assert silent or "checkpoints" in path.parts or damage == "no content", path
    path.write_bytes(whole)


@pytest.mark.parametrize("keys", [("temperature",), ("epoch",)])
def test_a_changed_digit_is_not_believed(run, keys):
    path = run / "calibration.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {key: found[key] + 1 for key in keys}))
    with pytest.raises(InputError, match=r"calibration\.json has changed"):
        load_run(run)


def test_scores_and_predictions_belong_together(run):
    compare(run)
    scores = run / "report" / "metrics.json"
    whole = scores.read_text()
    scores.write_text(whole.replace('"count": 24', '"count": 25'))
    with pytest.raises(InputError, match=r"metrics\.json has changed"):
        compare(run)
    scores.write_text(whole)
    predictions = run / "report" / "predictions.csv"
    rows = predictions.read_text().splitlines()
    predictions.write_text("\n".join([*rows[:-1], rows[-1].replace("Rock", "Folk")]) + "\n")
    with pytest.raises(InputError, match=r"predictions\.csv is not what metrics\.json was"):
        compare(run)


@pytest.mark.parametrize(
    "part,changes", [("audio", {"clip_seconds": 11.0}), ("mel", {"top_db": 81.0})]
)
def test_weights_know_the_settings_that_they_were_trained_with(
    run, caplog, monkeypatch, part, changes
):
    """A changed digit in config.json would give other probabilities without a word."""
    monkeypatch.setattr(console.log, "propagate", True)
    config = files.read_config(run)
    config[part] |= changes
    files.write_config(run, config)
    with pytest.raises(InputError, match=f"it was trained with {part} "):
        load_run(run)


def test_a_checkpoint_with_a_changed_digit_is_passed_over(run, caplog, monkeypatch):
    monkeypatch.setattr(console.log, "propagate", True)
    before = loop.load_progress(run)
    path = run / "checkpoints" / "last" / str(before.step) / "progress" / "metadata"
    path.write_text(
        path.read_text().replace(f'"step": {before.step}', f'"step": {before.step + 1}')
    )
    assert loop.load_progress(run).step < before.step
    assert "its progress have changed" in caplog.text


def test_nothing_after_nuls_is_lost_unsaid(run, caplog, monkeypatch):
    """As a crash of the machine leaves them where a page was not written."""
    monkeypatch.setattr(console.log, "propagate", True)
    path = run / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    hole = len(lines[1]) + len(lines[2]) // 2
    content = lines[0] + b"\0" * hole + b"".join(lines)[len(lines[0]) + hole :]
    path.write_bytes(content)
    kept = files.read_log(run)
    assert kept == [json.loads(line) for line in [lines[0], *lines[3:]]]
    assert "1 damaged lines are left out" in caplog.text


@pytest.mark.parametrize(
    "key,value,says",
    [
        ("mel.n_fft", 65_538, "n_fft=65538: need a whole number above 0, 65,536 at most"),
        ("mel.n_fft", 1023, "n_mels=513: need a whole number above 0, 512 at most"),
        ("mel.n_mels", 1026, "n_mels=1026"),
        ("audio.clip_seconds", 601.0, "clip_seconds=601.0: need a number above 0, 600 at most"),
        ("audio.clip_seconds", float("nan"), "clip_seconds=nan"),
        ("audio.sample_rate", 10**9, "sample_rate"),
        ("learning_rate", float("nan"), "learning_rate=nan"),
        ("learning_rate", float("inf"), "learning_rate=inf"),
        ("weight_decay", -1.0, "weight_decay=-1.0"),
        ("num_epochs", 10**12, "num_epochs=1000000000000"),
        ("seed", -1, "seed=-1"),
        ("label_smoothing", 1.0, "label_smoothing=1.0"),
        ("optimizer.b1", 1.0, "b1=1.0"),
    ],
)
def test_settings_have_bounds(key, value, says):
    config = default.get_config()
    config.model = "baseline_a_2d"
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=says):
        check_config(config)


@pytest.mark.parametrize("value", [None, [], "x", {"a": 1}])
def test_stored_settings_of_other_types(value):
    for key in ("batch_size", "audio"):
        if key == "audio" and isinstance(value, dict):
            continue  # a key more is a newer version's
        with pytest.raises(InputError):
            check_config(with_defaults({"model": "baseline_a_2d", key: value}))


def test_forms():
    form = {"a": [int], "b": {"c": float | None}}
    assert not misfit({"a": [1, 2], "b": {"c": None}, "d": 0}, form)
    assert misfit({"a": [], "b": {"c": None}}, form) == "a=[]"
    assert misfit({"a": [1, True], "b": {"c": None}}, form) == "a.1=True"
    assert misfit({"a": [1]}, form) == "no b"
    assert misfit({"a": [2**63], "b": {"c": 1.0}}, form).startswith("a.0=9223")


def test_weights_of_foreign_types_are_one_line(config, tmp_path):
    """float8 is known to safetensors, but not to NumPy."""
    fresh = Network.from_config(config, list("abcdefgh")).init()
    path = tmp_path / "weights.safetensors"
    content = json.dumps(
        {"conv0.weight": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    ).encode()
    path.write_bytes(len(content).to_bytes(8, "little") + content + b"\0" * 4)
    with pytest.raises(InputError) as error:
        load_weights(path, config.model, fresh)
    assert "\n" not in str(error.value)
    save_file({"conv0.weight": np.zeros(4, np.complex64)}, path)
    with pytest.raises(InputError) as error:
        load_weights(path, config.model, fresh)
    assert "\n" not in str(error.value)
