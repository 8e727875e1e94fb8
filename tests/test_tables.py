"""Tables as people and programs save them, and as the tables of splits, labels and tracks."""

import os

import pytest
from test_datasets import touch, write_metadata

from mgc_jax.data.audio_folder import read_folder
from mgc_jax.data.fma import read_fma
from mgc_jax.data.tables import read_table
from mgc_jax.errors import InputError

ROWS = ["path,split", "rock/ä.wav,train", "rock/b.wav,validation", "jazz/c.wav,test"]
TEXT = "\n".join(ROWS) + "\n"


def splits_of(listing):
    return {track.path[-10:]: track.split for track in listing.tracks}


@pytest.fixture
def music(tmp_path):
    touch(tmp_path / "music", "rock/ä.wav", "rock/b.wav", "jazz/c.wav")
    return tmp_path / "music"


@pytest.mark.parametrize(
    "content",
    {
        "plain": TEXT.encode(),
        "byte order mark": TEXT.encode("utf-8-sig"),
        "semicolons": TEXT.replace(",", ";").encode(),
        "semicolons after a mark": TEXT.replace(",", ";").encode("utf-8-sig"),
        "tabs": TEXT.replace(",", "\t").encode(),
        "Excel's Unicode text": TEXT.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
        "blank lines": ("\n" + TEXT.replace("\n", "\n\n \n,\n")).encode(),
        "old line ends": TEXT.replace("\n", "\r").encode(),
        "quoted": "\n".join(f'"{row}"'.replace(",", '","') for row in ROWS).encode(),
        "capitals": TEXT.replace("path,split", " Path , SPLIT").encode(),
        "Train, valid": TEXT.replace("train", "Train").replace("validation", "valid").encode(),
        "TRAINING, dev": TEXT.replace("train", " TRAINING ").replace("validation", "dev").encode(),
        "Testing, val": TEXT.replace(",test", ",Testing").replace("validation", "val").encode(),
        "backslashes": TEXT.replace("/", "\\").encode(),
        "another order": "x,split,y,path\n1,train,2,rock/ä.wav\n1,validation,,rock/b.wav\n"
        ',"test",,jazz/c.wav\n'.encode(),
        "blanks around": TEXT.replace(",", " , ").encode(),
    }.items(),
    ids=lambda item: item[0],
)
def test_tables_of_splits_as_people_save_them(music, tmp_path, content):
    (tmp_path / "splits.csv").write_bytes(content[1])
    listing = read_folder(music, tmp_path / "splits.csv")
    assert not listing.skipped
    assert {os.path.relpath(track.path, music): track.split for track in listing.tracks} == {
        "jazz/c.wav": "test",
        "rock/b.wav": "validation",
        "rock/ä.wav": "train",
    }


@pytest.mark.parametrize(
    "content,reason",
    {
        TEXT.encode("latin-1"): "its text is not UTF-8 (a spreadsheet saves it so as 'CSV UTF-8')",
        b"rock/b.wav,train\n": "no column 'path' in its first row, 'rock/b.wav,train'",
        b"path,set\nrock/b.wav,train\n": "no column 'split' in its first row, 'path,set'",
        b"path,split\nrock/b.wav,train\njazz/c.wav\n": "no split in line 3, 'jazz/c.wav'",
        b"path,split\nrock/b.wav,train\n ,train\n": "no path in line 3, ' ,train'",
        b"path|split\nrock/b.wav|train\n": "no column 'path' in its first row, 'path|split'",
        b"": "no column 'path' in its first row, ''",
    }.items(),
)
def test_other_tables_are_refused_in_a_line_that_is_true(music, tmp_path, content, reason):
    (tmp_path / "splits.csv").write_bytes(content)
    with pytest.raises(InputError) as refusal:
        read_folder(music, tmp_path / "splits.csv")
    assert str(refusal.value) == (
        f"--splits_csv={tmp_path}/splits.csv cannot be read: {reason}; it needs the columns path "
        "and split"
    )


def test_a_table_that_is_not_there_or_no_file(music, tmp_path):
    with pytest.raises(InputError, match="nowhere.csv cannot be read: No such file or directory;"):
        read_folder(music, tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="music cannot be read: Is a directory;"):
        read_folder(music, music)


def test_a_table_about_other_files_is_refused(music, tmp_path):
    (tmp_path / "splits.csv").write_text("path,split\nmusic/rock/b.wav,train\n")
    with pytest.raises(InputError) as refusal:
        read_folder(music, tmp_path / "splits.csv")
    assert str(refusal.value) == (
        f"--splits_csv={tmp_path}/splits.csv names no file that is below --audio_dir={music}: its "
        "first path is 'music/rock/b.wav', that of the first file 'jazz/c.wav'"
    )


def test_long_rows_are_cut_in_messages(tmp_path):
    (tmp_path / "table.csv").write_text("x" * 10_000 + "\n")
    with pytest.raises(InputError) as refusal:
        read_table(tmp_path / "table.csv", "--table", ["path"])
    assert len(str(refusal.value)) < 300


def test_a_name_with_blanks_and_backslashes_is_itself_first(tmp_path):
    touch(tmp_path / "music", "rock/a\\b.wav", "rock/a/b.wav", "jazz/ c.wav ")
    (tmp_path / "splits.csv").write_text(
        "path,split\nrock/a\\b.wav,train\nrock/a/b.wav,test\njazz/ c.wav ,test\n"
    )
    listing = read_folder(tmp_path / "music", tmp_path / "splits.csv")
    assert not listing.skipped and len(listing.tracks) == 3


def test_genres_from_a_table(tmp_path):
    touch(tmp_path / "music", *(f"all/{i}.wav" for i in range(6)), "all/unlisted.wav")
    (tmp_path / "labels.csv").write_text(
        "Genre;Path;Note\nJazz;all\\0.wav;\nRock;all/1.wav;x\njazz ;all/2.wav;\nJazz;all/3.wav;\n"
        "Rock;all/4.wav;\nJazz;all/4.wav;\nRock;all/gone.wav;\n Rock;../5.wav;\n"
    )
    listing = read_folder(tmp_path / "music", labels_csv=tmp_path / "labels.csv")
    found = {os.path.basename(track.path): track.genre for track in listing.tracks}
    assert found == {"0.wav": "Jazz", "1.wav": "Rock", "2.wav": "Jazz", "3.wav": "Jazz"} | {
        "gone.wav": "Rock"  # found missing when it is decoded
    }
    assert {os.path.basename(track.path): reason for track, reason in listing.skipped} == {
        "4.wav": "listed twice in the labels' CSV",
        "5.wav": "not below --audio_dir",
    }
    assert {os.path.basename(track.path): reason for track, reason in listing.left_out} == {
        "5.wav": "not in the labels' CSV",
        "unlisted.wav": "not in the labels' CSV",
    }
    assert listing.source["genres"] == f"by {tmp_path}/labels.csv"


def test_genres_and_splits_from_one_table(tmp_path):
    touch(tmp_path / "music", *(f"{i}.wav" for i in range(5)))
    (tmp_path / "labels.csv").write_text(
        "path,genre,split\n0.wav,Jazz,Train\n1.wav,Rock,train\n2.wav,Jazz,dev\n3.wav,Rock,TEST\n"
        "4.wav,Rock,later\n"
    )
    listing = read_folder(tmp_path / "music", labels_csv=tmp_path / "labels.csv")
    assert [(track.genre, track.split) for track in listing.tracks] == [
        ("Jazz", "train"),
        ("Rock", "train"),
        ("Jazz", "validation"),
        ("Rock", "test"),
    ]
    assert [reason for _, reason in listing.skipped] == ["unknown split 'later'"]


def test_a_folder_of_everything_is_no_album(tmp_path):
    """With labels from a table the one folder's files must not share one split."""
    names = [f"all/{i}.wav" for i in range(100)] + [f"a/album/{i}.wav" for i in range(10)]
    touch(tmp_path / "music", *names)
    rows = (f"{name},{'Jazz' if i % 2 else 'Rock'}\n" for i, name in enumerate(names))
    (tmp_path / "labels.csv").write_text("path,genre\n" + "".join(rows))
    listing = read_folder(tmp_path / "music", labels_csv=tmp_path / "labels.csv")
    splits = {
        os.path.relpath(track.path, tmp_path / "music"): track.split for track in listing.tracks
    }
    assert {splits[f"all/{i}.wav"] for i in range(100)} == {"train", "validation", "test"}
    assert len({splits[f"a/album/{i}.wav"] for i in range(10)}) == 1
    both = read_folder(
        tmp_path / "music", labels_csv=tmp_path / "labels.csv", group_by="parent"
    ).tracks
    assert len({track.split for track in both if "/all/" in track.path}) == 1


FMA = """,album,set,set,track,track
,title,split,subset,genre_top,title
track_id,,,,,
2,a,training,small,Rock,x
140,b,test,small,Folk,y
"""
# As pandas 3.1 wrote the table above back, after reading it with other header and index options.
WRITTEN_BACK = {
    "as it was": FMA,
    "by a spreadsheet": "\ufeff" + FMA.replace(",", ";").replace("\n", "\r\n"),
    "header=[0,1]": """,Unnamed: 0_level_0,album,set,set,track,track
,Unnamed: 0_level_1,title,split,subset,genre_top,title
0,track_id,,,,,
1,2,a,training,small,Rock,x
2,140,b,test,small,Folk,y
""",
    "header=[0,1], index=False": """Unnamed: 0_level_0,album,set,set,track,track
Unnamed: 0_level_1,title,split,subset,genre_top,title
track_id,,,,,
2,a,training,small,Rock,x
140,b,test,small,Folk,y
""",
    "header=0": """,Unnamed: 0,album,set,set.1,track,track.1
0,,title,split,subset,genre_top,title
1,track_id,,,,,
2,2,a,training,small,Rock,x
3,140,b,test,small,Folk,y
""",
    "header=0, index=False": """Unnamed: 0,album,set,set.1,track,track.1
,title,split,subset,genre_top,title
track_id,,,,,
2,a,training,small,Rock,x
140,b,test,small,Folk,y
""",
    "reset_index": """,track_id,album,set,set,track,track
,,title,split,subset,genre_top,title
0,2,a,training,small,Rock,x
1,140,b,test,small,Folk,y
""",
    "reset_index, index=False": """track_id,album,set,set,track,track
,title,split,subset,genre_top,title
2,a,training,small,Rock,x
140,b,test,small,Folk,y
""",
    "to_flat_index": """track_id,"('album', 'title')","('set', 'split')","('set', 'subset')",\
"('track', 'genre_top')","('track', 'title')"
2,a,training,small,Rock,x
140,b,test,small,Folk,y
""",
    "joined": """track_id,album_title,set_split,set_subset,track_genre_top,track_title
2,a,training,small,Rock,x
140.0,b,test,small,Folk,y
""",
    "header=[0,1,2]": """Unnamed: 0_level_0,album,set,set,track,track
Unnamed: 0_level_1,title,split,subset,genre_top,title
track_id,Unnamed: 1_level_2,Unnamed: 2_level_2,Unnamed: 3_level_2,Unnamed: 4_level_2,Unnamed: 5
2,a,training,small,Rock,x
140,b,test,small,Folk,y
""",
}


@pytest.mark.parametrize("table", WRITTEN_BACK.values(), ids=WRITTEN_BACK.keys())
def test_fmas_table_written_back_by_pandas(tmp_path, table):
    write_metadata(tmp_path, "", genres=["Rock", "Folk"])
    (tmp_path / "fma_metadata/tracks.csv").write_text(table, encoding="utf-8")
    listing = read_fma(tmp_path / "fma_small", tmp_path / "fma_metadata", "small")
    assert not listing.skipped
    assert [track[::3] + (track.genre,) for track in listing.tracks] == [
        (2, "train", "Rock"),
        (140, "test", "Folk"),
    ]


@pytest.mark.parametrize(
    "table,reason",
    {
        FMA.replace("track_id", ""): "no column of it is named track_id",
        FMA.replace("genre_top", "genre"): "it has no column (track, genre_top)",
        "track_id,genre_top,title\n2,Rock,x\n140,Folk,y\n": "it has no column (set, split)",
        FMA + "141,c,test": "it ends in the middle of a row",
        FMA + "x,c,test,small,Rock,y\n": "invalid literal for int() with base 10: 'x'",
    }.items(),
)
def test_another_table_of_tracks_is_refused(tmp_path, table, reason):
    write_metadata(tmp_path, "")
    (tmp_path / "fma_metadata/tracks.csv").write_text(table)
    with pytest.raises(InputError) as refusal:
        read_fma(tmp_path / "fma_small", tmp_path / "fma_metadata", "small")
    assert str(refusal.value).endswith(f"is not FMA's tracks.csv, or is cut off: {reason}")
