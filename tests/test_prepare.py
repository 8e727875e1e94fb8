"""The prepare command on corpora that are damaged, and when it is killed."""

import csv
import multiprocessing
import os
import random
import shutil
import signal
import struct
import sys
import time
from pathlib import Path

import child
import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from shared import write_audio
from test_datasets import write_metadata

from mgc_jax.configs import default
from mgc_jax.data import preparation
from mgc_jax.data.audio_folder import read_folder
from mgc_jax.data.input_pipeline import open_dataset
from mgc_jax.errors import InputError
from mgc_jax.files import take_lock

ROOT = Path(__file__).parents[1]
SPLITS = ("training", "validation", "test")


def run_command(*arguments):
    return child.call("prepare", "--config=configs/baseline_a_2d.py", *arguments)


def read_skipped(folder):
    with open(folder / "skipped.csv", newline="", encoding="utf-8") as file:
        return {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(file)}


def files_of(folder):
    """All files but the lock, which names who wrote last."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
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
    "lying": "cut off: 2.0 s of the 5668.9 s",
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
    config = default.get_config()
    config.data_dir = str(damaged_corpus / "out")
    audio_dir = damaged_corpus / "fma_small"
    folder = damaged_corpus / "out/fma_small/mel"

    with pytest.raises(InputError, match="3 of 20 tracks cannot be used.*--max_skipped=0.05"):
        preparation.prepare(config, ("mel",), audio_dir=audio_dir)
    assert len(read_skipped(folder)) == 3  # known before anything is decoded

    flags = (f"--audio_dir={audio_dir}", f"--data_dir={config.data_dir}", "--max_skipped=0.2")
    failed = run_command(*flags)
    child.assert_one_error(failed, "13 of 20 tracks cannot be used")
    assert len(read_skipped(folder)) == 13
    assert not (folder / "2.0.0").exists()
    assert len(files_of(folder / "clips.incomplete")) == 7

    done = run_command(*flags[:2], "--max_skipped=0.7")
    assert done.returncode == 0, done.stderr
    assert "7 tracks were decoded before" in done.stderr
    assert "7 of 20 tracks, 7 clips; 13 skipped, see skipped.csv" in done.stderr
    skipped = read_skipped(folder / "2.0.0")
    assert len(skipped) == 13
    for i, (_, reason) in enumerate(BAD.items(), 101):
        assert skipped[f"{i:06d}.mp3"].startswith(reason)
    assert skipped["000300.mp3"] == "no top genre in tracks.csv"
    assert skipped["000010.mp3"] == "duplicate id 10 in tracks.csv"
    assert skipped["000999.mp3"] == "not in tracks.csv"
    assert [path.name for path in sorted(folder.iterdir())] == [".lock", "2.0.0"]
    builder = tfds.builder_from_directory(folder / "2.0.0")
    records = tfds.as_numpy(builder.as_dataset("train+validation+test"))
    assert {int(r["track_id"]) for r in records} == {10, 20, 30, 40, 50, 60, 200}


def test_no_usable_track(tmp_path):
    write_metadata(tmp_path, "2,y,training,small,Rock,x\n")
    config = default.get_config()
    config.data_dir = str(tmp_path / "out")
    with pytest.raises(InputError, match="no usable track.*Check that --audio_dir"):
        preparation.prepare(config, ("mel",), audio_dir=tmp_path / "fma_small")
    with pytest.raises(InputError, match="no TFRecords"):
        open_dataset(config, ("mel",))


def test_nowhere_to_write(tmp_path):
    write_audio(tmp_path / "music/rock/a.wav", 2)
    (tmp_path / "out").write_text("a file")
    config = folder_config(tmp_path / "out")
    with pytest.raises(InputError, match="cannot write the data set to .*out/audio_folder/mel"):
        preparation.prepare(config, ("mel",), audio_dir=tmp_path / "music")


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """40 files in folders of genres, with every kind of name."""
    root = tmp_path_factory.mktemp("some music")
    for i in range(40):
        genre, extension = ("blues", "wav") if i % 2 else ("Hip Hop ♫", "mp3")
        write_audio(root / genre / f"name\nof {i}.{extension}", 1 + i % 3 * 6, 22050, seed=i)
    return root


def folder_config(data_dir):
    config = default.get_config()
    config.dataset, config.data_dir = "audio_folder", str(data_dir)
    return config


@pytest.fixture(scope="module")
def undisturbed(music, tmp_path_factory):
    """What an undisturbed run with one worker writes; the second run finds it there."""
    data_dir = tmp_path_factory.mktemp("undisturbed")
    flags = (f"--audio_dir={music}", f"--data_dir={data_dir}", "--config.dataset=audio_folder")
    for said in ("40 of 40 tracks", "is there already"):
        done = run_command(*flags, "--workers=1")
        assert done.returncode == 0 and said in done.stderr, done.stderr
    return data_dir / "audio_folder"


def test_folders_of_genres(music, undisturbed):
    builder = tfds.builder_from_directory(undisturbed / "mel/2.0.0")
    assert builder.info.features["label"].names == ["Hip Hop ♫", "blues"]
    expected = {track.track_id: track for track in read_folder(music).tracks}
    with open(undisturbed / "mel/2.0.0/tracks.csv", newline="", encoding="utf-8") as file:
        listed = {int(row["track_id"]): row for row in csv.DictReader(file)}
    assert listed.keys() == expected.keys()
    for split in builder.info.splits:
        for record in tfds.as_numpy(builder.as_dataset(split)):
            track = expected[int(record["track_id"])]
            assert (track.split, track.genre) == (split, ["Hip Hop ♫", "blues"][record["label"]])
            assert listed[track.track_id]["path"] == track.path


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_workers():
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        worker.kill()


def prepare_in_child(data_dir, music, workers, deviation, act, tracks):
    # Only for time's sake: importing librosa takes longer than all the rest.
    preparation._check_against_librosa = lambda *_: deviation
    run_all = preparation.run_all

    def run_and_act(*arguments):
        for count, answer in enumerate(run_all(*arguments), start=1):
            if count == tracks:
                act()
            yield answer

    preparation.run_all = run_and_act
    preparation.prepare(folder_config(data_dir), ("mel",), audio_dir=music, workers=workers)


@pytest.fixture(scope="module")
def start(music, undisturbed):
    """Starts a preparation of the music as a process that can be killed, or that acts itself."""
    deviation = tfds.builder_from_directory(undisturbed / "mel/2.0.0").info.metadata
    deviation = dict(deviation["librosa_deviation"])

    def start(data_dir, workers, act=None, tracks=None):
        arguments = (data_dir, music, workers, deviation, act, tracks)
        process = child.CONTEXT.Process(target=prepare_in_child, args=arguments)
        process.start()
        return process

    return start


def finished(folder):
    """The tracks that were decoded, with the time of it."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in (folder / "clips.incomplete").glob("*")
        if not path.suffix
    }


def wait_for_a_track(process, folder, before):
    """Until one more is decoded, or all are."""
    while process.is_alive() and before == len(finished(folder)) < 40:
        time.sleep(0.005)


def test_killed_at_random_points_it_goes_on_and_ends_with_the_same_bytes(
    start, undisturbed, tmp_path
):
    """SIGKILL while it decodes, and later while it writes, with other numbers of workers.

    Twice after a number of tracks, so that it is certain to happen; then at any time.
    """
    config, folder = folder_config(tmp_path), tmp_path / "audio_folder/mel"
    rng, delay, kills, done = random.Random(7), 0.0, [], {}
    while True:
        if len(kills) < 2:
            process = start(tmp_path, rng.randint(1, 3), kill_itself, rng.randint(1, 9))
        else:
            process = start(tmp_path, rng.randint(1, 3))
            wait_for_a_track(process, folder, len(done))
            process.join(delay)
            process.kill()
        process.join()
        before, done = done, finished(folder)
        if (folder / "2.0.0").exists():
            break
        kills.append(len(done))
        delay += rng.uniform(0, 0.1)
        assert process.exitcode == -signal.SIGKILL
        assert before.items() <= done.items()  # nothing is decoded twice
        with pytest.raises(InputError, match="no TFRecords"):
            open_dataset(config, ("mel",))
    assert len(kills) >= 2 and 0 < kills[0] < 40
    process = start(tmp_path, workers=2)  # the last one may have been killed before it tidied up
    process.join()
    assert process.exitcode == 0
    assert files_of(tmp_path / "audio_folder") == files_of(undisturbed)


def test_a_killed_worker_costs_nothing(start, undisturbed, tmp_path):
    """As the kernel does when memory runs out: the track is tried again."""
    process = start(tmp_path, 2, kill_workers, 1)
    process.join()
    assert process.exitcode == 0
    assert files_of(tmp_path / "audio_folder") == files_of(undisturbed)


def test_two_at_once_make_one(start, undisturbed, tmp_path):
    both = [start(tmp_path, workers=1) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert files_of(tmp_path / "audio_folder") == files_of(undisturbed)


def test_a_changed_file_is_decoded_again(music, tmp_path):
    shutil.copytree(music, tmp_path / "music")
    config = folder_config(tmp_path / "out")
    (tmp_path / "music/blues/bad.wav").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 41 tracks cannot be used"):
        preparation.prepare(
            config, ("mel",), audio_dir=tmp_path / "music", max_skipped=0.01, workers=2
        )
    write_audio(tmp_path / "music/blues/bad.wav", 12, seed=9)
    changed = tmp_path / "music/blues/name\nof 1.wav"
    write_audio(changed, 25, 22050, seed=8)
    preparation.prepare(config, ("mel",), audio_dir=tmp_path / "music", max_skipped=0)
    records = open_dataset(config, ("mel",)).splits.values()
    assert sum(len(split) for split in records) == 41 + 2


@pytest.mark.skipif(" " in sys.executable, reason="Beam starts no Python whose path has a space")
def test_beam_writes_the_same_records(music, undisturbed, tmp_path):
    """On the direct runner with two processes, with a file that cannot be used."""
    pytest.importorskip("apache_beam")
    shutil.copytree(music, tmp_path / "music")
    (tmp_path / "music/blues/bad.wav").write_bytes(b"")
    preparation.prepare(
        folder_config(tmp_path),
        ("mel",),
        audio_dir=tmp_path / "music",
        beam_runner="DirectRunner",
        beam_options="direct_num_workers=2,direct_running_mode=multi_processing",
    )
    folder = tmp_path / "audio_folder/mel/2.0.0"
    assert read_skipped(folder) == {"bad.wav": "empty file"}
    found, expected = (
        tfds.builder_from_directory(path) for path in (folder, undisturbed / "mel/2.0.0")
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


def test_unknown_beam_runner(music, tmp_path, monkeypatch):
    pytest.importorskip("apache_beam")
    config = folder_config(tmp_path)
    monkeypatch.setattr(sys, "executable", "/a folder/python")
    parallel = {
        "beam_runner": "DirectRunner",
        "beam_options": "direct_running_mode=multi_processing",
    }
    with pytest.raises(InputError, match="/a folder/python', whose path has a space"):
        preparation.prepare(config, ("mel",), audio_dir=music, **parallel)
    with pytest.raises(InputError, match="--beam_runner=NoRunner"):
        preparation.prepare(config, ("mel",), audio_dir=music, beam_runner="NoRunner")


@pytest.fixture
def library(tmp_path):
    """Two genres of 30 files each, one of them twice, one in both genres, and a cover."""
    root = tmp_path / "library"
    for i in range(60):
        write_audio(root / ("blues" if i % 2 else "rock") / f"{i:02d}.wav", 2, 16000, 1, seed=i)
    shutil.copy(root / "rock/04.wav", root / "rock/again.wav")
    shutil.copy(root / "blues/07.wav", root / "rock/which.wav")
    (root / "rock/cover.jpg").write_bytes(b"\xff\xd8")
    return root


def test_copies_are_found_by_their_sound(library, tmp_path):
    """The same list for any number of workers."""
    listed = []
    for workers in (1, 2):
        config = folder_config(tmp_path / f"out{workers}")
        preparation.prepare(config, ("mel",), audio_dir=library, workers=workers)
        folder = Path(config.data_dir) / "audio_folder/mel/2.0.0"
        listed.append(read_skipped(folder))
        with open(folder / "tracks.csv", newline="") as file:
            kept = {Path(row["path"]).name for row in csv.DictReader(file)}
        assert len(kept) == 59 and {"04.wav", "cover.jpg", "07.wav"} & kept == {"04.wav"}
    assert listed[0] == listed[1]
    assert set(listed[0]) == {"again.wav", "07.wav", "which.wav"}
    assert "the same audio as" in listed[0]["again.wav"]
    assert "another genre" in listed[0]["07.wav"] and "another genre" in listed[0]["which.wav"]


def test_clips_without_signal_are_left_out_and_counted(library, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(preparation.console.log, "propagate", True)
    caplog.set_level("INFO", "mgc_jax")
    music = np.random.default_rng(0).normal(size=160_000) * 0.1
    sound = np.concatenate([music, np.zeros(320_000), music, np.zeros(80_000)])
    soundfile.write(library / "rock/gap.flac", sound, 16000)
    soundfile.write(library / "rock/nothing.flac", np.zeros(200_000), 16000)
    config = folder_config(tmp_path / "out")
    preparation.prepare(config, ("mel",), audio_dir=library, workers=2)
    dataset = open_dataset(config, ("mel",))
    with open(dataset.path / "tracks.csv", newline="") as file:
        (gap,) = (row["track_id"] for row in csv.DictReader(file) if "gap" in row["path"])
    numbers = [
        number
        for split in dataset.splits.values()
        for track, number in zip(split.labels["track_id"], split.labels["clip"], strict=True)
        if track == int(gap)
    ]
    assert sorted(numbers) == [0, 3, 4]  # the last one holds half of the second music
    assert dataset.metadata["silent_clips"] == 2
    assert "2 clips without signal left out" in caplog.text
    assert read_skipped(dataset.path)["nothing.flac"].startswith("no signal")


def test_records_are_tied_to_their_source(library, tmp_path, caplog, monkeypatch):
    config = folder_config(tmp_path / "out")
    preparation.prepare(config, ("mel",), audio_dir=library, workers=2)
    preparation.prepare(config, ("mel",), audio_dir=library, workers=2)  # the same: nothing to do
    other = shutil.copytree(library, tmp_path / "other")
    with pytest.raises(InputError, match="was prepared from .*library.*, not from .*other"):
        preparation.prepare(config, ("mel",), audio_dir=other)
    write_audio(library / "rock/new.wav", 3, seed=99)
    with pytest.raises(InputError, match="was prepared from .*62 files.*, not from .*63 files"):
        preparation.prepare(config, ("mel",), audio_dir=library)
    # Another collection below the same folder has a name of its own.
    config.name = "jazzclub"
    preparation.prepare(config, ("mel",), audio_dir=library, workers=2)
    assert (tmp_path / "out/jazzclub/mel/2.0.0/dataset_info.json").exists()
    assert open_dataset(config, ("mel",)).genres == ["blues", "rock"]
    for name in ("demo", "Jazz Club", "9"):
        config.name = name
        with pytest.raises(InputError, match=f"config.name='{name}': use small letters"):
            preparation.prepare(config, ("mel",), audio_dir=library)


def test_a_second_preparation_says_for_whom_it_waits(prepared, corpus):
    folder = Path(prepared.data_dir) / "fma_small" / "mel_waveform"
    command = ["-m", "mgc_jax.prepare", "--config=fusionnet", f"--data_dir={prepared.data_dir}"]
    with open(folder / ".lock", "a+") as file:
        assert not take_lock(file)  # as the first one does
        second = child.Python(*command, f"--audio_dir={corpus / 'fma_small'}")
        while "waiting for" not in second.read("stderr"):
            assert second.process.is_alive(), second.read("stderr")
            time.sleep(0.05)
    done = second.finish()
    assert done.returncode == 0, done.stderr
    assert f"waiting for process {os.getpid()} on " in done.stderr
    assert f"which prepares {folder}" in done.stderr and "is there already" in done.stderr
