"""From a list of tracks to records that plain TFDS reads."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import write_audio

from configs import default
from mgc_jax.datasets import builders
from mgc_jax.datasets.clips import extract_clips
from mgc_jax.datasets.tracks import Track, read_fma
from mgc_jax.errors import InputError
from mgc_jax.features import ClipSettings

HEADER = """,album,set,set,track,track
,title,split,subset,genre_top,title
track_id,,,,,
"""


def write_metadata(root, rows):
    (root / "fma_metadata").mkdir(exist_ok=True)
    (root / "fma_small").mkdir(exist_ok=True)
    (root / "fma_metadata" / "tracks.csv").write_text(HEADER + rows)


def test_read_fma(tmp_path):
    write_metadata(
        tmp_path,
        '2,"two\nlines, one album",training,small,Rock,x\n'
        "140,y,validation,small,Folk,x\n"
        "1000,y,test,medium,Jazz,x\n"
        "1001,y,test,large,Jazz,x\n"
        "123456,y,test,small,,no genre\n",
    )
    audio, metadata = tmp_path / "fma_small", tmp_path / "fma_metadata"
    expected = [
        Track(2, str(audio / "000" / "000002.mp3"), "Rock", "train"),
        Track(140, str(audio / "000" / "000140.mp3"), "Folk", "validation"),
        Track(1000, str(audio / "001" / "001000.mp3"), "Jazz", "test"),
    ]
    assert read_fma(audio, metadata, "small") == expected[:2]
    assert read_fma(audio, metadata, "medium") == expected


@pytest.mark.parametrize(
    "table", ["", "a,b\n1,2\n", HEADER + "2,y,training,small,Rock,x\n3,y,train", "\x00\x01"]
)
def test_foreign_or_truncated_metadata(tmp_path, table):
    write_metadata(tmp_path, "")
    (tmp_path / "fma_metadata" / "tracks.csv").write_text(table)
    with pytest.raises(InputError, match="tracks.csv is not FMA's tracks.csv, or is cut off"):
        read_fma(tmp_path / "fma_small", tmp_path / "fma_metadata", "small")


def test_missing_folders(tmp_path):
    with pytest.raises(InputError, match="--audio_dir=.*nowhere is no folder"):
        read_fma(tmp_path / "nowhere", tmp_path, "small")
    with pytest.raises(InputError, match="let --metadata_dir name"):
        read_fma(tmp_path, tmp_path, "small")


def test_records_hold_the_clips_of_every_track(corpus, prepared):
    settings = ClipSettings.from_config(prepared)
    builder = tfds.builder_from_directory(f"{prepared.data_dir}/fma_small/mel_waveform/1.0.0")
    names = builder.info.features["label"].names
    tracks = {
        t.track_id: t for t in read_fma(corpus / "fma_small", corpus / "fma_metadata", "small")
    }
    seen = set()
    for split in ("train", "validation", "test"):
        for record in tfds.as_numpy(builder.as_dataset(split)):
            track = tracks[record["track_id"]]
            assert (track.split, track.genre) == (split, names[record["label"]])
            seen.add((track.track_id, int(record["clip"])))
            if record["clip"] == 1:
                clip = extract_clips(track.path, settings, ("mel", "waveform"))[1]
                np.testing.assert_array_equal(record["mel"], clip["mel"])
                np.testing.assert_array_equal(record["waveform"], clip["waveform"])
    assert seen == {(track_id, clip) for track_id in tracks for clip in range(3)}
    assert names == sorted({track.genre for track in tracks.values()})


def test_metadata_says_what_was_used(prepared):
    builder = tfds.builder_from_directory(f"{prepared.data_dir}/fma_small/mel_waveform/1.0.0")
    metadata = builder.info.metadata
    assert metadata["splits"] == {s: {"tracks": 8, "clips": 24} for s in builders.SPLITS}
    assert metadata["tracks_listed"] == 24
    assert metadata["settings"]["n_mels"] == 513
    assert metadata["librosa_deviation"]["mel_db"] < 0.01
    assert metadata["synthetic"] is False


@pytest.fixture
def damaged_corpus(tmp_path):
    """Six good tracks of three seconds, and four that cannot be used."""
    good = [(10 * i, split) for i, split in enumerate(["training", "validation", "test"] * 2, 1)]
    bad = {11: b"", 21: b"this is text", 41: None}
    rows = [(i, split, "Rock" if i % 20 else "Folk") for i, split in good]
    rows += [(i, "training", "Rock") for i in (*bad, 31)]
    write_metadata(tmp_path, "".join(f"{i},y,{split},small,{g},x\n" for i, split, g in rows))
    for i, _ in good:
        write_audio(tmp_path / "fma_small" / "000" / f"{i:06d}.mp3", 3, seed=i)
    write_audio(tmp_path / "fma_small" / "000" / "000031.mp3", 0.5)
    for i, content in bad.items():
        if content is not None:
            (tmp_path / "fma_small" / "000" / f"{i:06d}.mp3").write_bytes(content)
    return tmp_path


def test_prepare_command_skips_counts_and_lists(damaged_corpus):
    command = [sys.executable, "-m", "mgc_jax.prepare", "--config=configs/baseline_a_2d.py"]
    command += [f"--audio_dir={damaged_corpus}/fma_small", f"--data_dir={damaged_corpus}/out"]
    done = subprocess.run([*command, "--workers=2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "6 of 10 tracks, 6 clips; 4 skipped, see skipped.csv" in done.stderr
    assert done.stdout == ""
    with open(damaged_corpus / "out/fma_small/mel/1.0.0/skipped.csv", newline="") as file:
        skipped = {int(row["track_id"]): row["reason"] for row in csv.DictReader(file)}
    assert skipped.keys() == {11, 21, 31, 41}
    assert skipped[11] == "empty file"
    assert skipped[21].startswith("cannot be decoded")
    assert skipped[31].startswith("too short: 0.5")
    assert skipped[41] == "no such file"
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "is there already" in again.stderr


def test_folder_without_mp3s(tmp_path):
    write_metadata(tmp_path, "2,y,training,small,Rock,x\n")
    config = default.get_config()
    config.data_dir = str(tmp_path / "out")
    builder = builders.make_builder(config, ("mel",), audio_dir=tmp_path / "fma_small")
    with pytest.raises(InputError, match="no usable track.*Check that --audio_dir"):
        builder.download_and_prepare()
    assert not builder.is_prepared()


def test_unknown_dataset():
    config = default.get_config()
    config.dataset = "gtzan"
    with pytest.raises(InputError, match="'gtzan' is unknown: one of fma_small"):
        builders.make_builder(config, ("mel",))
