"""The search for audio below a folder, and folders of audio as data sets."""

import collections
import os

import pytest
import soundfile
from shared import write_audio

from mgc_jax.data.audio_folder import read_folder
from mgc_jax.data.folders import find_audio
from mgc_jax.errors import InputError


@pytest.fixture
def said(caplog, monkeypatch):
    """The log's lines so far, as a function."""
    monkeypatch.setattr("mgc_jax.console.log.propagate", True)
    caplog.set_level("INFO")
    return lambda: [record.getMessage() for record in caplog.records]


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found_below(root):
    return [os.path.relpath(path, root) for path in find_audio(root).audio]


def splits_of(listing, root):
    return {os.path.relpath(track.path, root): track.split for track in listing.tracks}


def genres_of(listing, root):
    return {os.path.relpath(track.path, root): track.genre for track in listing.tracks}


def test_what_is_found(tmp_path):
    touch(tmp_path, "b.mp3", "a/B.FLAC", "a/b/c/d.opus", "a/album.mp3/1.wav", "a/album.mp3/x.jpg")
    touch(tmp_path, ".hidden.mp3", "a/._b.mp3", ".Trashes/1/c.mp3", "a/notes.txt", "a/README")
    touch(tmp_path, "a/cover.JPG", "a/.cover.png")
    found = find_audio(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path in found.audio] == [
        "a/B.FLAC",
        "a/album.mp3/1.wav",
        "a/b/c/d.opus",
        "b.mp3",
    ]
    assert found.others == {".jpg": 2, ".txt": 1, "": 1}
    assert not found.links


def test_links_are_followed_once(tmp_path):
    root = tmp_path / "music"
    touch(root, "a/1.mp3", "a/album/2.mp3", ".store/3.mp3")
    touch(tmp_path, "out/4.mp3", "out/deep/5.mp3", "6.mp3")
    for link, target in {
        "a/again": "../a",  # to itself
        "a/up": "..",
        "above": "../..",
        "b": "a/album",  # inside: found at its real place
        "best.mp3": "a/1.mp3",
        "c/3.mp3": "../.store/3.mp3",  # hidden, so found by the link alone
        "d": "../out",
        "e": "../out/deep",  # found below d
        "f.mp3": "../6.mp3",
        "g.mp3": "../6.mp3",
        "h.mp3": "../out/4.mp3",
        "loop.mp3": "loop.mp3",  # whoever opens it will say so
    }.items():
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(target)
    (tmp_path / "out/back").symlink_to("../out")
    (tmp_path / "out/into").symlink_to("../music/a")
    found = find_audio(root)
    assert [os.path.relpath(path, root) for path in found.audio] == [
        "a/1.mp3",
        "a/album/2.mp3",
        "c/3.mp3",
        "d/deep/5.mp3",
        "f.mp3",
        "h.mp3",
        "loop.mp3",
    ]
    assert sorted(os.path.relpath(path, root) for path in found.links) == [
        *("a/again", "a/up", "above", "b", "best.mp3", "d/4.mp3", "d/back", "d/into", "e", "g.mp3")
    ]
    # By a link to the folder, or with another name of it, the same.
    (tmp_path / "other").symlink_to("music")
    assert len(find_audio(tmp_path / "other").audio) == 7
    assert len(find_audio(f"{root}/a/..").audio) == 7


@pytest.mark.parametrize("inside", [True, False])
def test_links_that_double_at_each_level(tmp_path, inside):
    """16,384 paths lead to one file; it is found once."""
    root = tmp_path / "music"
    levels = root if inside else tmp_path / "elsewhere"
    touch(levels, "14/song.mp3")
    for level in range(14):
        (levels / str(level)).mkdir()
        for name in ("left", "right"):
            (levels / str(level) / name).symlink_to(f"../{level + 1}")
    root.mkdir(exist_ok=True)
    (root / "start").symlink_to(levels / "0")
    found = find_audio(root)
    assert len(found.audio) == 1
    assert found.audio[0].endswith("song.mp3")
    assert len(found.links) == 2 * 14 + 1 if inside else 14


def test_folders_1100_levels_deep(tmp_path):
    here = str(tmp_path)
    for _ in range(1100):
        here = os.path.join(here, "d")
        os.mkdir(here)
    with open(f"{here}/song.mp3", "w"):
        pass
    try:
        assert find_audio(tmp_path).audio == [f"{here}/song.mp3"]
    finally:  # pytest could not: shutil.rmtree is recursive
        os.remove(f"{here}/song.mp3")
        while here != str(tmp_path):
            os.rmdir(here)
            here = os.path.dirname(here)


def test_paths_longer_than_the_system_allows_are_said(tmp_path, said):
    touch(tmp_path, "a.mp3")
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(50):
        os.mkdir("d" * 100, dir_fd=here)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert found_below(tmp_path) == ["a.mp3"]
    (line,) = said()
    assert line.endswith("cannot be searched: File name too long") and len(line) < 300


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_folders_without_permission_are_said(tmp_path, said):
    touch(tmp_path, "a.mp3", "closed/b.mp3")
    (tmp_path / "closed").chmod(0)
    assert found_below(tmp_path) == ["a.mp3"]
    (tmp_path / "closed").chmod(0o700)
    assert [line.endswith("closed cannot be searched: Permission denied") for line in said()]


def test_other_files_are_one_line_and_never_skipped(tmp_path, said):
    touch(tmp_path, "rock/1.mp3", "jazz/1.mp3", "classical/readme.txt", "rock/.hidden/2.mp3")
    touch(tmp_path, *(f"rock/cover {i}.jpg" for i in range(30)), "jazz/a.cue", "jazz/b.CUE")
    listing = read_folder(tmp_path)
    assert len(listing.tracks) == 2
    assert not listing.skipped and not listing.left_out
    assert f"{tmp_path}: 33 other files: 30 .jpg, 2 .cue, 1 .txt" in said()
    assert "no audio in the folders 'classical': no genres" in said()


def test_one_folder_too_high(tmp_path):
    genres = ("blues", "metal", "rock")
    touch(tmp_path, *(f"GTZAN/Data/genres_original/{genre}/1.wav" for genre in genres))
    touch(tmp_path, *(f"GTZAN/Data/images_original/{genre}/1.png" for genre in genres))
    meant = f"--audio_dir={tmp_path}/GTZAN/Data/genres_original"
    for high in ("GTZAN/Data", "GTZAN", ""):
        with pytest.raises(InputError) as refusal:
            read_folder(tmp_path / high)
        (line,) = str(refusal.value).splitlines()
        assert f"{meant}?" in line
    assert len(read_folder(tmp_path / "GTZAN/Data/genres_original").tracks) == 3
    with pytest.raises(InputError, match="no audio files in folders of genres"):
        read_folder(tmp_path / "GTZAN/Data/genres_original/blues")
    touch(tmp_path, "one/rock/1.wav", "one/x.wav")
    with pytest.raises(InputError, match="one genre only, 'rock': at least two are needed$"):
        read_folder(tmp_path / "one")


def test_genres_may_hold_folders_to_any_depth(tmp_path):
    names = [f"{genre}/artist/album/cd {i}/song.mp3" for genre in "ab" for i in range(3)]
    touch(tmp_path, *names)
    found = genres_of(read_folder(tmp_path), tmp_path)
    assert found == {name: name[0] for name in names}


def test_folders_named_as_splits(tmp_path, said):
    touch(tmp_path, "Train/rock/1.mp3", "Train/rock/album/2.mp3", "Train/jazz/1.mp3", "x.mp3")
    touch(tmp_path, "dev/rock/3.mp3", "TESTING/jazz/4.mp3", "Train/loose.mp3", "dev/pop/cover.jpg")
    listing = read_folder(tmp_path)
    assert splits_of(listing, tmp_path) == {
        "TESTING/jazz/4.mp3": "test",
        "Train/jazz/1.mp3": "train",
        "Train/rock/1.mp3": "train",
        "Train/rock/album/2.mp3": "train",
        "dev/rock/3.mp3": "validation",
    }
    assert {track.genre for track in listing.tracks} == {"rock", "jazz"}
    assert {reason for _, reason in listing.skipped} == {
        "no genre: not in a folder below --audio_dir"
    }
    assert "the folders TESTING, Train, dev are taken as splits, not as genres" in said()
    assert "no audio in the folders 'dev/pop': no genres" in said()


def test_a_missing_validation_split_is_a_tenth_of_train(tmp_path, said):
    names = [f"train/{genre}/{i}.mp3" for genre in ("rock", "jazz") for i in range(1000)]
    touch(tmp_path, *names, "test/rock/a.mp3", "test/jazz/a.mp3")
    splits = splits_of(read_folder(tmp_path), tmp_path)
    counts = collections.Counter(splits.values())
    assert counts["test"] == 2
    assert abs(counts["validation"] - 200) < 54  # four standard deviations
    assert counts["train"] == 2000 - counts["validation"]
    assert "a tenth of train becomes the validation split" in said()
    touch(tmp_path, "train/pop/1.mp3")
    assert splits.items() <= splits_of(read_folder(tmp_path), tmp_path).items()


def test_a_missing_test_split_is_refused(tmp_path):
    touch(tmp_path, "train/rock/1.mp3", "train/jazz/1.mp3", "val/rock/1.mp3", "test/rock/1.txt")
    with pytest.raises(InputError, match="train, val are taken as splits, but none is named test"):
        read_folder(tmp_path)
    rows = "".join(f"train/rock/{i}.mp3,{split}\n" for i, split in enumerate(("train", "test"), 1))
    (tmp_path / "splits.csv").write_text(f"path,split\n{rows}val/rock/1.mp3,dev\n")
    touch(tmp_path, "train/rock/2.mp3", "train/jazz/1.mp3")
    listing = read_folder(tmp_path, tmp_path / "splits.csv")  # the table decides, genres stay
    assert splits_of(listing, tmp_path) == {
        "train/rock/1.mp3": "train",
        "train/rock/2.mp3": "test",
        "val/rock/1.mp3": "validation",
    }


def test_folders_are_splits_only_if_all_are_named_so_and_train_is_among_them(tmp_path):
    touch(tmp_path, "a/train/a/1.mp3", "a/test/b/1.mp3", "a/techno/1.mp3")
    assert set(genres_of(read_folder(tmp_path / "a"), tmp_path).values()) == {
        *("train", "test", "techno")
    }
    touch(tmp_path, "b/dev/a/1.mp3", "b/test/b/1.mp3")
    assert set(genres_of(read_folder(tmp_path / "b"), tmp_path).values()) == {"dev", "test"}


def test_albums_stay_together_by_default_and_it_is_said(tmp_path, said):
    names = [f"{genre}/album {i}/{j}.mp3" for genre in "ab" for i in range(40) for j in range(5)]
    touch(tmp_path, *names)
    by_album = collections.defaultdict(set)
    default = splits_of(read_folder(tmp_path), tmp_path)
    assert any("(an album) share one split" in line for line in said())
    for name, split in default.items():
        by_album[os.path.dirname(name)].add(split)
    assert len(by_album) == 80 and all(len(splits) == 1 for splits in by_album.values())
    assert default == splits_of(read_folder(tmp_path, group_by="parent"), tmp_path)
    by_file = splits_of(read_folder(tmp_path, group_by="file"), tmp_path)
    assert any(by_file[f"a/album 0/{j}.mp3"] != by_file["a/album 0/0.mp3"] for j in range(5))


def test_without_albums_nothing_is_said(tmp_path, said):
    touch(tmp_path, *(f"{genre}/{i}.mp3" for genre in "ab" for i in range(60)))
    splits = splits_of(read_folder(tmp_path), tmp_path)
    assert splits == splits_of(read_folder(tmp_path, group_by="file"), tmp_path)
    assert set(splits.values()) == {"train", "validation", "test"}
    assert not said()


def test_artists_stay_together_by_their_tags(tmp_path, said):
    for i in range(60):
        path = tmp_path / ("rock" if i % 2 else "jazz") / f"{i}.flac"
        path.parent.mkdir(exist_ok=True)
        with soundfile.SoundFile(path, "w", 8000, 1) as file:
            if i < 54:
                file.artist = f"Artist {i % 9}" if i < 27 else f"ARTIST {i % 9}"
            file.write([0.0] * 8000)
    splits = splits_of(read_folder(tmp_path, group_by="artist"), tmp_path)
    by_artist = collections.defaultdict(set)
    for name, split in splits.items():
        number = int(os.path.basename(name).removesuffix(".flac"))
        by_artist[number % 9 if number < 54 else number].add(split)
    assert all(len(found) == 1 for found in by_artist.values())
    assert len(set(splits.values())) > 1
    assert "6 of 60 files have no artist in their tags: grouped by folder" in said()


def test_a_grouping_that_decides_nothing_is_refused(tmp_path):
    touch(
        tmp_path,
        *(f"{split}/{genre}/1.mp3" for split in ("train", "val", "test") for genre in "ab"),
    )
    with pytest.raises(
        InputError, match="--group_by=parent decides nothing: folders give the splits"
    ):
        read_folder(tmp_path, group_by="parent")
    (tmp_path / "splits.csv").write_text("path,split\ntrain/a/1.mp3,train\ntrain/b/1.mp3,test\n")
    with pytest.raises(InputError, match="--group_by=file decides nothing: --splits_csv gives the"):
        read_folder(tmp_path, tmp_path / "splits.csv", group_by="file")


def test_names_of_genres_that_would_not_last(tmp_path, said):
    """TFDS keeps them as stripped lines."""
    touch(tmp_path, "Hip Hop/1.mp3", "Hip Hop/2.mp3", "hip hop/1.mp3", " Hip Hop /1.mp3")
    touch(tmp_path, "Drum\n& Bass/1.mp3", "Pop\u2028/1.mp3", " \t/1.mp3", "e\u0301tude/1.mp3")
    listing = read_folder(tmp_path)
    assert genres_of(listing, tmp_path) == {
        " Hip Hop /1.mp3": "Hip Hop",
        "Drum\n& Bass/1.mp3": "Drum & Bass",
        "Hip Hop/1.mp3": "Hip Hop",
        "Hip Hop/2.mp3": "Hip Hop",
        "Pop\u2028/1.mp3": "Pop",
        "e\u0301tude/1.mp3": "\u00e9tude",
        "hip hop/1.mp3": "Hip Hop",
    }
    assert [reason for _, reason in listing.skipped] == ["no genre: its name is blank"]
    (line,) = [line for line in said() if line.startswith("genres made one: ")]
    assert "'hip hop' is 'Hip Hop'" in line and r"'Drum\n& Bass' is 'Drum & Bass'" in line


def test_what_two_genres_link_to_is_left_out(tmp_path):
    root = tmp_path / "music"
    touch(tmp_path, "library/album/1.mp3", "library/2.mp3", "library/3.mp3")
    touch(root, "jazz/a.mp3", "rock/a.mp3")
    for link, target in {
        "jazz/album": "../../library/album",
        "rock/the album": "../../library/album",
        "jazz/2.mp3": "../../library/2.mp3",
        "rock/2.mp3": "../../library/2.mp3",
        "rock/3.mp3": "../../library/3.mp3",
        "rock/three.mp3": "../../library/3.mp3",  # twice in one genre: once
        "rock/b.mp3": "../jazz/a.mp3",  # its real place tells
    }.items():
        (root / link).symlink_to(target)
    listing = read_folder(root)
    assert genres_of(listing, root) == {
        "jazz/a.mp3": "jazz",
        "rock/3.mp3": "rock",
        "rock/a.mp3": "rock",
    }
    assert {os.path.relpath(track.path, root): reason for track, reason in listing.left_out} == {
        "jazz/2.mp3": "linked from another genre's folder too: rock/2.mp3",
        "jazz/album/1.mp3": "linked from another genre's folder too: rock/the album",
    }


def write_tagged(path, genre, **tags):
    """Audio with a genre in its tags, written by libsndfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(path, "w", 44100, 2) as file:
        for name, value in ({"genre": genre} | tags).items():
            setattr(file, name, value)
        file.write([[0.0, 0.1]] * 44100)


def test_genres_from_tags(tmp_path, said):
    for i, ending in enumerate(("mp3", "flac", "ogg", "wav")):
        write_tagged(tmp_path / f"artist {i}/album/1.{ending}", "Jazz")
        write_tagged(tmp_path / f"artist {i}/album/2.{ending}", " hip-hop; Rap" if i else "Hip-Hop")
    write_audio(tmp_path / "artist 9/untagged.flac", 1)
    touch(tmp_path, "artist 9/empty.mp3", "loose.wav")
    os.mkfifo(tmp_path / "pipe.mp3")
    listing = read_folder(tmp_path, labels="tags")
    assert collections.Counter(track.genre for track in listing.tracks) == {"Jazz": 4, "hip-hop": 4}
    assert not listing.skipped
    assert {reason for _, reason in listing.left_out} == {"no genre in its tags"}
    assert any(
        line.startswith("4 of 12 files have no genre in their tags: left out") for line in said()
    )
    albums = {os.path.dirname(track.path): track.split for track in listing.tracks}
    assert all(albums[os.path.dirname(track.path)] == track.split for track in listing.tracks)
    assert listing.source["grouping"] == "by parent"


def test_files_without_any_genre_in_their_tags(tmp_path):
    write_audio(tmp_path / "rock/a.flac", 1)
    write_tagged(tmp_path / "rock/b.flac", "Rock")
    with pytest.raises(InputError, match="one genre only, 'Rock'"):
        read_folder(tmp_path, labels="tags")
    with pytest.raises(InputError, match="both give the genres: choose one"):
        read_folder(tmp_path, labels="tags", labels_csv=tmp_path / "labels.csv")
