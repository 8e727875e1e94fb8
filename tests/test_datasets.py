"""Lists of tracks, and the records that plain TFDS reads."""

import collections
import contextlib
import hashlib
import os
import random

import numpy as np
import pytest
import tensorflow_datasets as tfds
from shared import write_audio

from mgc_jax.configs import default
from mgc_jax.data import preparation
from mgc_jax.data.audio_folder import read_folder
from mgc_jax.data.clips import iter_clips
from mgc_jax.data.features import make_features
from mgc_jax.data.fma import read_fma
from mgc_jax.data.gtzan import read_gtzan, read_splits
from mgc_jax.data.sources import list_tracks
from mgc_jax.data.tracks import Track
from mgc_jax.errors import InputError

HEADER = """,album,set,set,track,track
,title,split,subset,genre_top,title
track_id,,,,,
"""


def write_metadata(root, rows, genres=None):
    (root / "fma_metadata").mkdir(exist_ok=True)
    (root / "fma_small").mkdir(exist_ok=True)
    (root / "fma_metadata" / "tracks.csv").write_text(HEADER + rows)
    if genres:
        titles = "".join(f"{i},{genre}\n" for i, genre in enumerate(genres))
        (root / "fma_metadata" / "genres.csv").write_text("genre_id,title\n" + titles)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def reasons(listing):
    return {track.track_id: reason for track, reason in listing.skipped}


def test_read_fma(tmp_path):
    write_metadata(
        tmp_path,
        '2,"two\nlines, one album",training,small,Rock,x\n'
        "140,y,validation,small,Folk,x\n"
        "1000,y,test,medium,Jazz,x\n"
        "1001,y,test,large,Jazz,x\n"
        "123456,y,test,large,,no genre\n",
    )
    audio, metadata = tmp_path / "fma_small", tmp_path / "fma_metadata"
    expected = [
        Track(2, str(audio / "000" / "000002.mp3"), "Rock", "train"),
        Track(140, str(audio / "000" / "000140.mp3"), "Folk", "validation"),
        Track(1000, str(audio / "001" / "001000.mp3"), "Jazz", "test"),
        Track(1001, str(audio / "001" / "001001.mp3"), "Jazz", "test"),
    ]
    for subset, count in {"small": 2, "medium": 3, "large": 4}.items():
        listing = read_fma(audio, metadata, subset)
        assert listing.tracks == expected[:count]
        assert not listing.skipped and not listing.left_out


def test_large_says_how_many_have_no_genre(tmp_path, caplog):
    write_metadata(tmp_path, "2,y,test,large,Jazz,x\n3,y,test,large,,x\n4,y,test,small,,x\n")
    with caplog.at_level("INFO"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("mgc_jax.console.log.propagate", True)
        read_fma(tmp_path / "fma_small", tmp_path / "fma_metadata", "large")
    assert "2 tracks of FMA large without a top genre left out" in caplog.text


def test_rows_and_files_that_do_not_fit_are_skipped_with_the_reason(tmp_path):
    write_metadata(
        tmp_path,
        "2,y,training,small,Rock,x\n"
        "2,y,test,small,Rock,x\n"
        "3,y,training,small,,x\n"
        "4,y,training,small,Polka,x\n"
        "5,y,somewhere,small,Rock,x\n"
        "6,y,test,large,Rock,of another subset\n",
        genres=["Rock", "Folk"],
    )
    audio = tmp_path / "fma_small"
    touch(audio, "000/000002.mp3", "000/000006.mp3", "000/000007.mp3", "000/notes.txt", "x.mp3")
    found = read_fma(audio, tmp_path / "fma_metadata", "small")
    assert [track.track_id for track in found.tracks] == [2]
    assert [(os.path.basename(track.path), reason) for track, reason in found.skipped] == [
        ("000002.mp3", "duplicate id 2 in tracks.csv"),
        ("000003.mp3", "no top genre in tracks.csv"),
        ("000004.mp3", "unknown genre 'Polka': not in genres.csv"),
        ("000005.mp3", "unknown split 'somewhere' in tracks.csv"),
        ("000007.mp3", "not in tracks.csv"),
        ("x.mp3", "not in tracks.csv"),
    ]


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
    with pytest.raises(InputError, match="--audio_dir=.*nowhere is no folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no audio files"):
        read_folder(tmp_path)


@pytest.fixture
def music(tmp_path):
    """2,000 files in two genres, as GTZAN and as albums."""
    names = [f"blues/blues.{i:05d}.wav" for i in range(1000)]
    names += [f"Hip Hop/artist {i % 7}/álbum {i % 50}/{i}\n♫.MP3" for i in range(1000)]
    touch(tmp_path / "music", *names)
    return tmp_path / "music"


def splits_of(listing, root):
    return {os.path.relpath(track.path, root): track.split for track in listing.tracks}


def test_folders_are_split_80_10_10_within_each_genre(music):
    listing = read_folder(music, group_by="file")
    assert not listing.skipped
    counts = collections.Counter((track.genre, track.split) for track in listing.tracks)
    for genre in ("blues", "Hip Hop"):
        # Four standard deviations of the binomial distribution.
        assert abs(counts[genre, "train"] - 800) < 51
        assert abs(counts[genre, "validation"] - 100) < 38
        assert abs(counts[genre, "test"] - 100) < 38
    assert len({track.track_id for track in listing.tracks}) == 2000


def test_a_files_split_depends_on_its_path_alone(music, tmp_path, monkeypatch):
    before = splits_of(read_folder(music, group_by="file"), music)
    touch(music, *[f"blues/new {i}.ogg" for i in range(300)], "jazz/first.flac")
    after = splits_of(read_folder(music, group_by="file"), music)
    assert len(after) == 2301 and before.items() <= after.items()
    music.rename(tmp_path / "elsewhere")
    scandir = os.scandir

    @contextlib.contextmanager
    def shuffled(path):
        with scandir(path) as entries:
            yield random.sample(entries := list(entries), len(entries))

    monkeypatch.setattr(os, "scandir", shuffled)
    again = read_folder(tmp_path / "elsewhere", group_by="file")
    assert splits_of(again, tmp_path / "elsewhere") == after
    # The same on every machine and in every version.
    assert after["blues/blues.00000.wav"] == "train"
    assert sum(split == "test" for split in after.values()) == 243


def test_group_by_parent_keeps_an_albums_files_together(music):
    listing = read_folder(music, group_by="parent")
    albums = collections.defaultdict(set)
    for track in listing.tracks:
        albums[os.path.dirname(track.path)].add(track.split)
    blues = albums.pop(str(music / "blues"))
    assert blues == {"train", "validation", "test"}  # a genre's folder is no album
    assert len(albums) > 50 and all(len(splits) == 1 for splits in albums.values())
    assert set.union(*albums.values()) == blues


def test_splits_csv(tmp_path):
    touch(tmp_path / "music", "rock/a.wav", "rock/b b.wav", "rock/c,\nc.wav", "rock/d.wav", "x.wav")
    (tmp_path / "splits.csv").write_text(
        "split,path\n"
        "train,rock/a.wav\n"
        f"validation,{tmp_path}/music/rock/b b.wav\n"
        'holdout,"rock/c,\nc.wav"\n'
        "test,./jazz/gone.wav\n"
        "test,rock/e.wav\ntrain,rock/e.wav\n"
        "test,../outside.wav\n"
    )
    listing = read_folder(tmp_path / "music", tmp_path / "splits.csv")
    assert splits_of(listing, tmp_path / "music") == {
        "jazz/gone.wav": "test",  # found missing when it is decoded
        "rock/a.wav": "train",
        "rock/b b.wav": "validation",
    }
    found = {os.path.basename(track.path): reason for track, reason in listing.skipped}
    assert found == {
        "outside.wav": "no genre: not in a folder below --audio_dir",
        "c,\nc.wav": "unknown split 'holdout'",
        "d.wav": "not in the splits' CSV",
        "e.wav": "listed twice in the splits' CSV",
        "x.wav": "no genre: not in a folder below --audio_dir",
    }


@pytest.mark.parametrize("content", ["", "file,split\na,train\n", "path\nrock/a.wav\n", "\udcff"])
def test_foreign_splits_csv(tmp_path, content):
    touch(tmp_path / "music", "rock/a.wav")
    (tmp_path / "splits.csv").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="splits.csv.*needs the columns path and split"):
        read_folder(tmp_path / "music", tmp_path / "splits.csv")


def test_odd_folders(tmp_path):
    root = tmp_path / "music"
    touch(root, "rock/a.mp3", "rock/.hidden.mp3", "rock/._a.mp3", ".trash/b.mp3", "rock/cover.jpg")
    touch(root, "rock/folder.mp3/inside.mp3")
    (root / "rock" / "again").symlink_to(root / "rock")
    (root / "rock" / "up").symlink_to("..")
    (root / "rock" / "loop.mp3").symlink_to("loop.mp3")
    touch(tmp_path, "elsewhere/c.mp3")
    (root / "jazz").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(root / "rock" / "pipe.mp3")
    touch(root, os.fsdecode(b"rock/caf\xe9.mp3"))
    listing = read_folder(root)
    assert sorted(splits_of(listing, root)) == [
        "jazz/c.mp3",
        "rock/a.mp3",
        "rock/folder.mp3/inside.mp3",
        "rock/loop.mp3",
        "rock/pipe.mp3",
    ]
    assert reasons(listing) == {-1: "file name is not UTF-8: rename it"}


@pytest.mark.parametrize("ending", ["wav", "au", "mp3"])
def test_gtzan_in_its_fault_filtered_split(tmp_path, ending):
    genres = ["blues", "classical", "country", "disco", "hiphop"]
    genres += ["jazz", "metal", "pop", "reggae", "rock"]
    names = [f"{genre}/{genre}.{i:05d}.{ending}" for genre in genres for i in range(100)]
    touch(tmp_path / "Data/genres_original", *names)
    write_audio(tmp_path / f"Data/genres_original/jazz/jazz.00054.{ending}", 1)
    (tmp_path / "Data/genres_original/rock" / f"rock.00001.{ending}").unlink()
    listing = read_gtzan(tmp_path)
    assert not listing.skipped
    counts = collections.Counter(track.split for track in listing.tracks)
    assert counts == {"train": 443, "validation": 197, "test": 290}
    assert sorted({track.genre for track in listing.tracks}) == genres
    for track in listing.tracks:
        assert os.path.basename(track.path).startswith(f"{track.genre}.")
        assert os.path.exists(track.path) != track.path.endswith("/rock/rock.00001.wav")
    ids = {track.track_id: os.path.basename(track.path) for track in listing.tracks}
    assert len(ids) == 930
    assert ids[554] == f"jazz.00054.{ending}" and ids[29] == f"blues.00029.{ending}"
    config = default.get_config()
    config.dataset = "gtzan"
    assert list_tracks(config, 1, audio_dir=tmp_path, labels=None) == listing
    touch(tmp_path, "pictures/blues.00000.png")
    with pytest.raises(InputError, match="no file such as blues/blues.00000.wav below"):
        read_gtzan(tmp_path / "pictures")


def test_gtzans_damaged_file_is_known_by_name(tmp_path):
    write_audio(tmp_path / "jazz/jazz.00055.wav", 1)
    (tmp_path / "jazz/jazz.00054.wav").write_bytes(bytes(1000))
    listing = read_gtzan(tmp_path)
    ((track, reason),) = listing.skipped
    assert (track.path, track.genre) == (str(tmp_path / "jazz/jazz.00054.wav"), "jazz")
    assert reason.endswith("known to be damaged in copies of GTZAN")
    assert len(listing.tracks) == 929


def test_gtzans_lists_are_those_of_their_authors():
    """Hashes of the lists as they were published: numbers from 1 to 1000, 100 a genre."""
    genres = sorted({name.partition(".")[0] for name in read_splits()})
    numbers = collections.defaultdict(list)
    for name, split in read_splits().items():
        genre, number = name.split(".")
        numbers[split].append(100 * genres.index(genre) + int(number) + 1)
    digests = {
        split: hashlib.sha256(" ".join(map(str, sorted(found))).encode()).hexdigest()[:16]
        for split, found in numbers.items()
    }
    assert digests == {
        "train": "a2aeabdebba9a9d8",
        "validation": "0b6b565bdecb7b75",
        "test": "64443a8853b34166",
    }


def test_records_hold_the_clips_of_every_track(corpus, prepared):
    features = make_features(("mel", "waveform"), prepared)
    builder = tfds.builder_from_directory(f"{prepared.data_dir}/fma_small/mel_waveform/2.0.0")
    names = builder.info.features["label"].names
    listing = read_fma(corpus / "fma_small", corpus / "fma_metadata", "small")
    tracks = {track.track_id: track for track in listing.tracks}
    seen = set()
    for split in ("train", "validation", "test"):
        for record in tfds.as_numpy(builder.as_dataset(split)):
            track = tracks[record["track_id"]]
            assert (track.split, track.genre) == (split, names[record["label"]])
            seen.add((track.track_id, int(record["clip"])))
            if record["clip"] == 1:
                clip = list(iter_clips(track.path, features))[1].features
                np.testing.assert_array_equal(record["mel"], clip["mel"])
                np.testing.assert_array_equal(record["waveform"], clip["waveform"])
    assert seen == {(track_id, clip) for track_id in tracks for clip in range(3)}
    assert names == sorted({track.genre for track in tracks.values()})


def test_metadata_says_what_was_used(prepared):
    builder = tfds.builder_from_directory(f"{prepared.data_dir}/fma_small/mel_waveform/2.0.0")
    metadata = builder.info.metadata
    assert metadata["splits"] == {
        split: {"tracks": 8, "clips": 24} for split in ("train", "validation", "test")
    }
    assert metadata["tracks_listed"] == 24
    assert metadata["settings"]["mel"]["n_mels"] == 513
    assert metadata["librosa_deviation"]["mel_db"] < 0.01
    assert metadata["librosa_deviation"]["waveform"] < 1e-6
    assert metadata["synthetic"] is False


@pytest.mark.parametrize(
    "dataset,sources,message",
    [
        ("musicnet", {}, "'musicnet' is unknown: one of fma_small, fma_medium"),
        ("fma_medium", {}, "needs --audio_dir.*or --download"),
        ("audio_folder", {}, "needs --audio_dir, the folder of the genres' folders"),
        ("audio_folder", {"download": True}, "--download are for FMA"),
        ("demo", {"labels": "tags"}, "are for audio_folder; demo has genres and splits of its own"),
        ("fma_small", {"group_by": "parent"}, "--group_by are for audio_folder"),
    ],
)
def test_sources_that_do_not_fit(tmp_path, dataset, sources, message):
    config = default.get_config()
    config.dataset, config.data_dir = dataset, str(tmp_path)
    with pytest.raises(InputError, match=message):
        preparation.prepare(config, ("mel",), **sources)
