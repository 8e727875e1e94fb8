"""Lists of tracks: duplicates, what may be skipped, and what ties records to their source."""

import csv
import random
import shutil

import pytest
import tensorflow_datasets as tfds

from mgc_jax.configs import default
from mgc_jax.data.audio_folder import read_folder
from mgc_jax.data.sources import check_same_source, fingerprint, list_tracks
from mgc_jax.data.tracks import (
    Track,
    check_usable,
    count_duplicates,
    name_lost_genres,
    unify_genres,
    without_duplicates,
)
from mgc_jax.errors import InputError

SPLITS = ("train", "validation", "test")


def tracks_of(*rows):
    return [Track(i, path, genre, split) for i, (path, genre, split) in enumerate(rows)]


TRACKS = tracks_of(
    ("/m/jazz/1.mp3", "jazz", "train"),
    ("/m/jazz/2.mp3", "jazz", "test"),
    ("/m/rock/1.mp3", "rock", "train"),
    ("/m/rock/2.mp3", "rock", "test"),
    ("/m/rock/3.mp3", "rock", "validation"),
    ("/m/rock/4.mp3", "rock", "train"),
    ("/m/rock/broken.mp3", "rock", "train"),
)
# One content three times in a genre, one in both genres, one only once.
DIGESTS = {
    "/m/jazz/1.mp3": "a",
    "/m/jazz/2.mp3": "b",
    "/m/rock/1.mp3": "c",
    "/m/rock/2.mp3": "b",
    "/m/rock/3.mp3": "c",
    "/m/rock/4.mp3": "c",
}


def test_duplicates_are_left_out_with_the_reason():
    found = without_duplicates(TRACKS, DIGESTS)
    assert [track.path for track in found.tracks] == [
        "/m/jazz/1.mp3",
        "/m/rock/1.mp3",
        "/m/rock/broken.mp3",
    ]
    assert not found.skipped
    assert {track.path: reason for track, reason in found.left_out} == {
        "/m/jazz/2.mp3": "the same audio as /m/rock/2.mp3, which has another genre, rock",
        "/m/rock/2.mp3": "the same audio as /m/jazz/2.mp3, which has another genre, jazz",
        "/m/rock/3.mp3": "the same audio as /m/rock/1.mp3",
        "/m/rock/4.mp3": "the same audio as /m/rock/1.mp3",
    }


def test_duplicates_do_not_depend_on_the_order_of_anything():
    expected = without_duplicates(TRACKS, DIGESTS)
    rng = random.Random(1)
    for _ in range(20):
        digests = dict(rng.sample(list(DIGESTS.items()), len(DIGESTS)))
        found = without_duplicates(rng.sample(TRACKS, len(TRACKS)), digests)
        assert set(found.tracks) == set(expected.tracks)
        assert found.left_out == expected.left_out


def test_duplicates_are_counted():
    assert count_duplicates(TRACKS, DIGESTS) == {
        "contents": 2,
        "tracks": 5,
        "across_splits": 1,
        "across_genres": 1,
    }
    assert set(count_duplicates(TRACKS, {}).values()) == {0}


def test_what_is_left_out_is_listed_but_does_not_count_as_skipped(tmp_path):
    tracks = tracks_of(*((f"/m/rock/{split}.mp3", "rock", split) for split in SPLITS))
    left_out = [(track, "the same audio") for track in tracks[:1] * 30]
    check_usable(tracks, [], 0.0, tmp_path, left_out)
    with open(tmp_path / "skipped.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 30
    with pytest.raises(InputError, match="1 of 4 tracks cannot be used .*broken"):
        check_usable(tracks, [(TRACKS[-1], "broken")], 0.2, tmp_path, left_out)
    check_usable(tracks, [(TRACKS[-1], "broken")], 0.3, tmp_path, left_out)


def test_genres_that_lost_all_their_files_are_named(caplog, monkeypatch):
    monkeypatch.setattr("mgc_jax.console.log.propagate", True)
    name_lost_genres(TRACKS, TRACKS[:2])
    assert caplog.messages == ["no usable file in rock: no genres"]
    name_lost_genres(TRACKS, TRACKS)
    assert len(caplog.messages) == 1


def test_genres_come_back_from_tfds_label_file_as_they_went_in(tmp_path):
    odd = [
        "Rock ",
        "rock",
        "Rock",
        "  \n",
        "R&B/\nSoul",
        "a\x85b",
        "x\x00y",
        "été",
        "e\u0301te\u0301",
    ]
    odd += ["\u3000夜曲\u3000", "<b>", "Hip\tHop", "Hip Hop", "STRASSE", "straße"]
    genres = sorted({genre for genre in unify_genres(odd).values() if genre})
    assert genres == ["<b>", "Hip Hop", "R&B/ Soul", "Rock", "STRASSE", "a b", "x y", "été", "夜曲"]
    label = tfds.features.ClassLabel(names=genres)
    label.save_metadata(tmp_path, "label")
    again = tfds.features.ClassLabel(num_classes=len(genres))
    again.load_metadata(tmp_path, "label")
    assert again.names == genres


@pytest.fixture
def music(tmp_path):
    for i in range(40):
        path = tmp_path / "music" / ("rock" if i % 2 else "jazz") / f"{i}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(i))
    return tmp_path / "music"


def test_the_fingerprint_is_that_of_the_source(music, tmp_path, monkeypatch):
    first = fingerprint(read_folder(music))
    assert "40 files" in first["summary"] and str(music) in first["summary"]
    assert "genres by folders; grouping by parent; splits by hash" in first["summary"]
    # The folder by other names, and a cover, change nothing.
    (tmp_path / "link").symlink_to(music)
    (music / "rock/cover.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    for name in ("music", "./music/", "link", music / "rock/.."):
        assert fingerprint(read_folder(name)) == first
    check_same_source(first, fingerprint(read_folder(music)), "tfrecords")


def other_folder(music):
    shutil.copytree(music, music.parent / "copy")
    return read_folder(music.parent / "copy")


def one_more_file(music):
    (music / "rock/more.mp3").write_bytes(b"")
    return read_folder(music)


def another_size(music):
    (music / "rock/1.mp3").write_bytes(bytes(1000))
    return read_folder(music)


def another_genre(music):
    (music / "rock").rename(music / "metal")
    return read_folder(music)


def other_splits(music):
    rows = [f"{'rock' if i % 2 else 'jazz'}/{i}.mp3,{SPLITS[i % 3]}" for i in range(40)]
    (music.parent / "splits.csv").write_text("path,split\n" + "\n".join(rows))
    return read_folder(music, music.parent / "splits.csv")


@pytest.mark.parametrize(
    "change", [other_folder, one_more_file, another_size, another_genre, other_splits]
)
def test_another_source_is_refused_with_both_named(music, change):
    first = fingerprint(read_folder(music))
    other = fingerprint(change(music))
    with pytest.raises(InputError) as refusal:
        check_same_source(first, other, "tfrecords/audio_folder")
    (line,) = str(refusal.value).splitlines()
    assert first["summary"] in line and other["summary"] in line


def test_the_demo_is_the_same_wherever_it_lies(corpus, tmp_path):
    """Its seed and size say all; so a data_dir that was moved stays usable."""
    config = default.get_config()
    config.dataset, config.demo.tracks, config.demo.seed = "demo", 24, 1
    found = []
    for name in ("here", "there"):
        made = tmp_path / name / "demo_audio" / "24_tracks_seed_1"
        shutil.copytree(corpus, made)
        config.data_dir = str(tmp_path / name)
        found.append(fingerprint(list_tracks(config, 1)))
    assert found[0] == found[1]
    assert found[0]["summary"].startswith("the demo's 24 tracks seed 1 (24 files")
