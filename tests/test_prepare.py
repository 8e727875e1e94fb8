"""The prepare command on corpora that are damaged, and when it is killed."""

import csv
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from conftest import write_audio
from test_datasets import write_metadata

from configs import default
from mgc_jax.datasets import builders
from mgc_jax.datasets.tracks import read_folder
from mgc_jax.errors import InputError
from mgc_jax.input_pipeline import open_dataset

ROOT = Path(__file__).parents[1]
SPLITS = ("training", "validation", "test")


def command(*arguments):
    return [
        sys.executable,
        "-m",
        "mgc_jax.prepare",
        f"--config={ROOT}/configs/baseline_a_2d.py",
        *map(str, arguments),
    ]


def prepare(*arguments):
    return subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True)


def read_skipped(folder):
    with open(folder / "skipped.csv", newline="", encoding="utf-8") as file:
        return {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(file)}


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write_nothing_useful(path, kind):
    """A file, or what looks like one, that cannot be used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "cut off":
        write_audio(path, 30)
        path.write_bytes(path.read_bytes()[:20000])
    elif kind == "not finite":
        samples = np.full((48000, 2), np.nan, np.float32)
        soundfile.write(path, samples, 48000, format="WAV", subtype="FLOAT")
    elif kind == "lying":
        write_audio(path.with_suffix(".wav"), 2)
        content = path.with_suffix(".wav").read_bytes()
        path.with_suffix(".wav").unlink()
        path.write_bytes(content[:40] + struct.pack("<I", 10**9) + content[44:])
    elif kind == "short":
        write_audio(path, 0.5)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"this is text"}[kind])


BAD = {
    "empty": "empty file",
    "text": "cannot be decoded: ",
    "cut off": "cut off: ",
    "folder": "not a regular file",
    "pipe": "not a regular file",
    "loop": "cannot be opened: Too many levels of symbolic links",
    "not finite": "holds samples that are not finite numbers",
    "lying": "cut off: 2.0 s of the 5669",
    "short": "too short: 0.5",
    "missing": "no such file",
}


@pytest.fixture
def damaged_corpus(tmp_path):
    """Six good tracks of three seconds, one with garbage in it, and one of each bad kind."""
    audio = tmp_path / "fma_small" / "000"
    rows = [(10 * i, split, "Folk" if i % 2 else "Rock") for i, split in enumerate(SPLITS * 2, 1)]
    for i, _, _ in rows:
        write_audio(audio / f"{i:06d}.mp3", 3, seed=i)
    for i, kind in enumerate(BAD, 101):
        write_nothing_useful(audio / f"{i:06d}.mp3", kind)
        rows.append((i, "training", "Rock"))
    write_audio(audio / "000200.mp3", 30)
    content = bytearray((audio / "000200.mp3").read_bytes())
    at = len(content) // 2
    content[at : at + 5000] = bytes(5000)
    (audio / "000200.mp3").write_bytes(content)
    rows += [(200, "training", "Rock"), (300, "training", ""), (10, "test", "Rock")]
    write_metadata(
        tmp_path, "".join(f"{i},y,{split},small,{genre},x\n" for i, split, genre in rows)
    )
    write_audio(audio / "000999.mp3", 3)
    return tmp_path


def test_bad_tracks_are_skipped_counted_and_listed(damaged_corpus):
    flags = (f"--audio_dir={damaged_corpus}/fma_small", f"--data_dir={damaged_corpus}/out")
    folder = damaged_corpus / "out/fma_small/mel"

    failed = prepare(*flags)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert "error: 3 of 20 tracks cannot be used" in line and "--max_skipped=0.05" in line
    assert len(read_skipped(folder)) == 3  # known before anything is decoded

    failed = prepare(*flags, "--max_skipped=0.2")
    assert failed.returncode == 1
    assert "error: 13 of 20 tracks cannot be used" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    assert len(read_skipped(folder)) == 13
    assert not (folder / "1.0.0").exists()
    decoded = files_of(folder / "clips.incomplete")
    assert len(decoded) == 7

    done = prepare(*flags, "--max_skipped=0.7", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert "7 tracks were decoded before" in done.stderr
    assert "7 of 20 tracks, 7 clips; 13 skipped, see skipped.csv" in done.stderr
    assert done.stdout == ""
    skipped = read_skipped(folder / "1.0.0")
    assert len(skipped) == 13
    for i, (_, reason) in enumerate(BAD.items(), 101):
        assert skipped[f"{i:06d}.mp3"].startswith(reason)
    assert skipped["000300.mp3"] == "no top genre in tracks.csv"
    assert skipped["000010.mp3"] == "duplicate id 10 in tracks.csv"
    assert skipped["000999.mp3"] == "not in tracks.csv"
    assert [path.name for path in sorted(folder.iterdir())] == [".lock", "1.0.0"]
    builder = tfds.builder_from_directory(folder / "1.0.0")
    records = tfds.as_numpy(builder.as_dataset("train+validation+test"))
    assert {int(r["track_id"]) for r in records} == {10, 20, 30, 40, 50, 60, 200}

    again = prepare(*flags)
    assert again.returncode == 0 and "is there already" in again.stderr


def test_no_usable_track(tmp_path):
    write_metadata(tmp_path, "2,y,training,small,Rock,x\n")
    config = default.get_config()
    config.data_dir = str(tmp_path / "out")
    with pytest.raises(InputError, match="no usable track.*Check that --audio_dir"):
        builders.prepare(config, ("mel",), audio_dir=tmp_path / "fma_small")
    with pytest.raises(InputError, match="no TFRecords"):
        open_dataset(config, ("mel",))


def test_nowhere_to_write(tmp_path):
    write_audio(tmp_path / "music/rock/a.wav", 2)
    (tmp_path / "out").write_text("a file")
    config = default.get_config()
    config.dataset, config.data_dir = "audio_folder", str(tmp_path / "out")
    with pytest.raises(InputError, match="cannot write the data set to .*out/audio_folder/mel"):
        builders.prepare(config, ("mel",), audio_dir=tmp_path / "music")


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """40 files in folders of genres, with every kind of name."""
    root = tmp_path_factory.mktemp("some music")
    for i in range(40):
        genre, extension = ("blues", "wav") if i % 2 else ("Hip Hop ♫", "mp3")
        write_audio(root / genre / f"name\nof {i}.{extension}", 1 + i % 3 * 6, 22050, seed=i)
    return root


def music_flags(music, data_dir):
    return (f"--audio_dir={music}", f"--data_dir={data_dir}", "--config.dataset=audio_folder")


@pytest.fixture(scope="module")
def undisturbed(music, tmp_path_factory):
    """What an undisturbed run with one worker writes."""
    data_dir = tmp_path_factory.mktemp("undisturbed")
    done = prepare(*music_flags(music, data_dir), "--workers=1")
    assert done.returncode == 0, done.stderr
    return data_dir / "audio_folder"


def test_folders_of_genres(music, undisturbed):
    builder = tfds.builder_from_directory(undisturbed / "mel/1.0.0")
    assert builder.info.features["label"].names == ["Hip Hop ♫", "blues"]
    expected = {track.track_id: track for track in read_folder(music).tracks}
    with open(undisturbed / "mel/1.0.0/tracks.csv", newline="", encoding="utf-8") as file:
        listed = {int(row["track_id"]): row for row in csv.DictReader(file)}
    assert listed.keys() == expected.keys()
    for split in builder.info.splits:
        for record in tfds.as_numpy(builder.as_dataset(split)):
            track = expected[int(record["track_id"])]
            assert (track.split, track.genre) == (split, ["Hip Hop ♫", "blues"][record["label"]])
            assert listed[track.track_id]["path"] == track.path


def test_killed_at_random_points_it_goes_on_and_ends_with_the_same_bytes(
    music, undisturbed, tmp_path
):
    """SIGKILL at growing delays: while it lists, decodes, writes; with other numbers of workers."""
    config = default.get_config()
    config.dataset, config.data_dir = "audio_folder", str(tmp_path)
    folder = tmp_path / "audio_folder/mel"
    rng, delay, kills, decoded = random.Random(7), 0.0, 0, {}
    while True:
        arguments = (*music_flags(music, tmp_path), f"--workers={rng.randint(1, 3)}")
        with subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE) as process:
            wait_for_decoding(process, folder, len(decoded))
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()
        kills += 1
        delay += rng.uniform(0, 0.6)
        before, decoded = decoded, finished(folder)
        assert before.items() <= decoded.items()  # nothing is decoded twice
        if not (folder / "1.0.0").exists():
            with pytest.raises(InputError, match="no TFRecords"):
                open_dataset(config, ("mel",))
    assert kills >= 3 and len(decoded) > 3
    assert (
        prepare(*music_flags(music, tmp_path)).returncode == 0
    )  # tidies up if the last kill was late
    assert files_of(tmp_path / "audio_folder") == files_of(undisturbed)


def finished(folder):
    """Name and time of change of the tracks that were decoded."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in (folder / "clips.incomplete").glob("*")
        if not path.suffix
    }


def wait_for_decoding(process, folder, before):
    """Until a track more is done, or it is over with decoding."""
    while process.poll() is None and before <= len(finished(folder)) < min(40, before + 1):
        time.sleep(0.01)


def test_a_killed_worker_costs_nothing(music, undisturbed, tmp_path):
    """As the kernel does when memory runs out: the track is tried again."""
    arguments = (*music_flags(music, tmp_path), "--workers=2")
    folder = tmp_path / "audio_folder/mel"
    with subprocess.Popen(command(*arguments), cwd=ROOT, stderr=subprocess.PIPE) as process:
        wait_for_decoding(process, folder, 0)
        for child in children_of(process.pid)[:2]:
            os.kill(child, signal.SIGKILL)
        assert process.wait() == 0, process.stderr.read().decode()
    assert files_of(tmp_path / "audio_folder") == files_of(undisturbed)


def children_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    worker = b"multiprocessing.spawn"
    return [int(c) for c in children if worker in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_changed_file_is_decoded_again(music, tmp_path):
    shutil.copytree(music, tmp_path / "music")
    config = default.get_config()
    config.dataset, config.data_dir = "audio_folder", str(tmp_path / "out")
    (tmp_path / "music/blues/bad.wav").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 41 tracks cannot be used"):
        builders.prepare(
            config, ("mel",), audio_dir=tmp_path / "music", max_skipped=0.01, workers=2
        )
    write_audio(tmp_path / "music/blues/bad.wav", 12, seed=9)
    changed = tmp_path / "music/blues/name\nof 1.wav"
    write_audio(changed, 25, 22050, seed=8)
    builders.prepare(config, ("mel",), audio_dir=tmp_path / "music", max_skipped=0)
    records = open_dataset(config, ("mel",)).splits.values()
    assert sum(len(split) for split in records) == 41 + 1


def test_two_at_once_make_one(music, undisturbed, tmp_path):
    arguments = command(*music_flags(music, tmp_path), "--workers=1")
    both = [subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[1].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("is there already" in text for text in said) == 1
    assert files_of(tmp_path / "audio_folder") == files_of(undisturbed)


def test_beam_writes_the_same_records(music, undisturbed, tmp_path):
    """On the direct runner with two processes, with a file that cannot be used."""
    pytest.importorskip("apache_beam")
    shutil.copytree(music, tmp_path / "music")
    (tmp_path / "music/blues/bad.wav").write_bytes(b"")
    arguments = music_flags(tmp_path / "music", tmp_path / "out")
    options = "direct_num_workers=2,direct_running_mode=multi_processing"
    done = prepare(*arguments, "--beam_runner=DirectRunner", f"--beam_options={options}")
    assert done.returncode == 0, done.stderr
    assert "40 of 41 tracks" in done.stderr and "1 skipped" in done.stderr
    folder = tmp_path / "out/audio_folder/mel/1.0.0"
    assert read_skipped(folder) == {"bad.wav": "empty file"}
    found, expected = (
        tfds.builder_from_directory(path) for path in (folder, undisturbed / "mel/1.0.0")
    )
    for name in ("splits", "settings", "librosa_deviation"):
        assert found.info.metadata[name] == expected.info.metadata[name]
    for split in expected.info.splits:
        assert records_of(found, split) == records_of(expected, split)


def records_of(builder, split):
    return {
        (int(record["track_id"]), int(record["clip"])): (record["label"], record["mel"].tobytes())
        for record in tfds.as_numpy(builder.as_dataset(split))
    }


def test_unknown_beam_runner(music, tmp_path):
    pytest.importorskip("apache_beam")
    failed = prepare(*music_flags(music, tmp_path), "--beam_runner=NoRunner")
    assert failed.returncode == 1 and "error: --beam_runner=NoRunner" in failed.stderr
    assert "Traceback" not in failed.stderr
