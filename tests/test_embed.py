"""Embeddings: the vectors themselves, the index on disk, kills, and similar songs."""

import json
import os
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from child import Python, assert_one_error, call, killed_after
from shared import write_audio

import mgc_jax
from mgc_jax.configs import default
from mgc_jax.data.clips import iter_clips
from mgc_jax.errors import InputError
from mgc_jax.models import MODELS
from mgc_jax.results import song_index
from mgc_jax.results.song_index import GrowingIndex, SongIndex, part_folder, stamp_of
from mgc_jax.training import embedding
from mgc_jax.training.network import Network, load_run


@pytest.fixture(scope="module")
def network(workdir):
    return mgc_jax.load(workdir)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Files of 1, 3 and 2 clips, and one that is no audio."""
    root = tmp_path_factory.mktemp("music")
    write_audio(root / "a" / "one.flac", 12.0, seed=1)
    write_audio(root / "a" / "two.flac", 25.0, 22050, 1, seed=2)
    write_audio(root / "b" / "three.wav", 16.0, 16000, 2, seed=3)
    (root / "bad.mp3").write_text("not music")
    return root


@pytest.fixture(scope="module")
def index(workdir, music, tmp_path_factory):
    """The index of this music, made by the command."""
    file = tmp_path_factory.mktemp("index") / "songs.npz"
    done = call("embed", f"--workdir={workdir}", music, f"--output={file}")
    assert done.returncode == 1
    assert "bad.mp3" in done.stderr and done.stderr.endswith("1 of 4 files could not be used\n")
    return file


def test_classifier_of_the_embedding_gives_the_prediction(workdir, network, music):
    """The classifier is linear: of the mean over clips it gives the mean of the clips' logits."""
    _, variables, *_ = load_run(workdir)
    classifier = variables["params"]["head"]["classifier"]
    for result in network.embed([music]):
        if result.source.endswith("bad.mp3"):
            assert result.vector is None and "cannot be decoded" in result.error
            continue
        logits = by_hand(workdir, result.source)
        assert result.error is None and result.vector.dtype == np.float32
        assert result.vector.shape == (network.embedding_size,) == (150,)
        found = result.vector @ classifier["kernel"] + classifier["bias"]
        np.testing.assert_allclose(found, logits.mean(axis=0), atol=1e-4)


def by_hand(workdir, path):
    """One file's clips through the network, without batches: `[clips, genres]` logits."""
    network, variables, *_ = load_run(workdir)
    mel = np.stack([clip.features["mel"] for clip in iter_clips(path, network.features)])
    return np.asarray(network.module.apply(variables, mel / np.float32(255) * 2 - 1, train=False))


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_an_embedding(name):
    """Of the width that the tables at the heads of the networks' files give."""
    config = default.get_config()
    config.model = name
    made = Network.from_config(config, ["one", "other", "third"])
    stored = {f.name: jnp.zeros((8, *f.shape), f.dtype) for f in made.features}
    found = embedding.compile_embed_step(made).lower(made.shapes, stored).out_info
    assert found.dtype == jnp.float32
    assert found.shape == (8, embedding.size_of(made))
    widths = {"baseline_a_1d": 150, "baseline_a_2d": 150, "baseline_b": 150}
    widths |= {"densenet": 1024, "fusionnet": 1536, "musicnn": 200, "temporal_fusion": 1024}
    widths |= {"probe": 3412}
    if name in widths:
        assert found.shape[1] == widths[name]


def test_a_network_without_a_classifier_is_refused_in_one_line():
    class Odd:
        config = type("config", (), {"model": "odd"})
        shapes = {"params": {"last": {"kernel": np.zeros((3, 2))}}}

    with pytest.raises(InputError, match="'odd' has no embedding"):
        embedding.size_of(Odd)


def test_fingerprint_is_of_the_weights():
    weights = {"params": {"a": {"kernel": jnp.ones((2, 3))}, "b": {"bias": jnp.zeros(3)}}}
    other = {"params": {"b": {"bias": jnp.zeros(3)}, "a": {"kernel": jnp.ones((2, 3))}}}
    moved = {"params": {"a": {"kernel": jnp.ones((3, 2))}, "b": {"bias": jnp.zeros(3)}}}
    assert embedding.fingerprint(weights) == embedding.fingerprint(other)
    assert embedding.fingerprint(weights) != embedding.fingerprint(moved)


def test_index_is_what_python_gives(index, network, music, workdir):
    """numpy.load reads it; rows are in the order of the search, paths absolute."""
    stored = np.load(index)
    expected = [result for result in network.embed([music]) if result.error is None]
    assert stored["paths"].tolist() == [os.path.abspath(r.source) for r in expected]
    assert stored["vectors"].dtype == np.float32
    np.testing.assert_array_equal(stored["vectors"], [r.vector for r in expected])
    about = json.loads(str(stored["about"]))
    assert about == {"network": network.fingerprint, "workdir": str(workdir)}
    assert not part_folder(index).exists()


def test_a_killed_run_goes_on(workdir, music, index, tmp_path):
    """Killed after its first files, half a line and half a vector more: the same index in the end.

    A file that changed in between is done again, one that was removed is not in it.
    """
    library = tmp_path / "library"
    shutil.copytree(music, library)
    for i in range(4):
        shutil.copy(music / "a" / "two.flac", library / f"more{i}.flac")
    output = tmp_path / "out.npz"
    part = part_folder(output)
    flags = (f"--workdir={workdir}", f"--output={output}", library)
    killed = Python(
        "-c", killed_after(5, "results.song_index.GrowingIndex", "embed"), *flags
    ).finish()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not output.exists()
    assert (part / "songs.jsonl").read_bytes().count(b"\n") - 1 == 5
    with open(part / "songs.jsonl", "ab") as file:
        file.write(b'{"path": "/half')
    with open(part / "vectors.f32", "ab") as file:
        file.write(b"\0\0\0\0\0")
    changed = library / "a" / "one.flac"
    write_audio(changed, 12.0, seed=9)
    (library / "a" / "two.flac").unlink()

    done = call("embed", *flags)
    assert "3 of 7 files are done already" in done.stderr
    assert not part.exists()
    stored = np.load(output)
    expected = [r for r in mgc_jax.load(workdir).embed(library) if r.error is None]
    assert stored["paths"].tolist() == [r.source for r in expected] and len(expected) == 6
    np.testing.assert_allclose(stored["vectors"], [r.vector for r in expected], atol=1e-5)


def filled(output, paths, vectors, network="n"):
    """An index in the making, with these files, and one that could not be used."""
    growing = GrowingIndex(output, network, vectors.shape[1])
    for path, vector in zip(paths, vectors, strict=True):
        growing.add(path, stamp_of(path), vector, None)
    growing.add("/bad", (0, 0), None, "no audio")
    return growing


def test_damage_of_a_growing_index_is_cut_off(tmp_path):
    """Whatever byte it was cut at: the rows that are whole are kept, and stand with their vectors.

    Not what follows a line that is none: its vectors cannot be told.
    """
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    paths = [f"/{name}\udcff" for name in "abcd"]
    output = tmp_path / "x.npz"
    filled(output, paths, vectors).__exit__()
    whole = {path.name: path.read_bytes() for path in part_folder(output).iterdir()}
    for name, content in whole.items():
        for cut in range(len(content)):
            for other, bytes_ in whole.items():
                (part_folder(output) / other).write_bytes(bytes_)
            (part_folder(output) / name).write_bytes(content[:cut])
            with GrowingIndex(output, "n", 3) as growing:
                kept = [path for path in paths if growing.has(path)]
                assert kept == paths[: len(kept)]
                for path, vector in zip(paths[len(kept) :], vectors[len(kept) :], strict=True):
                    growing.add(path, stamp_of(path), vector, None)
                if cut == len(content) // 2:
                    assert 0 < len(kept) < 4
            with GrowingIndex(output, "n", 3) as growing:  # what was added stands in whole lines
                assert growing.finish(paths, {"network": "n"}) == 4
            np.testing.assert_array_equal(np.load(output)["vectors"], vectors)
            part_folder(output).mkdir()


def test_two_processes_or_two_networks_do_not_share_an_index(tmp_path):
    output = tmp_path / "x.npz"
    with filled(output, ["/a"], np.ones((1, 3), np.float32)):
        with pytest.raises(InputError, match="x.part is written by another process"):
            GrowingIndex(output, "n", 3)
    with pytest.raises(InputError, match="begun with another network"):
        GrowingIndex(output, "other", 3)
    with GrowingIndex(output, "n", 3) as growing:
        assert growing.errors(["/a", "/bad", "/new"]) == {"/bad": "no audio"}
        with pytest.raises(InputError, match="none of the files could be used"):
            growing.finish(["/bad"], {"network": "n"})


def test_cosines_in_blocks_are_those_of_scipy(tmp_path, monkeypatch):
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 6)).astype(np.float32)
    vectors[7] = vectors[3] * 2  # the same angle
    vectors[20] = 0
    monkeypatch.setattr(song_index, "_BLOCK", 8)
    paths = [f"/{i}" for i in range(50)]
    with filled(tmp_path / "x.npz", paths, vectors) as growing:
        growing.finish(paths[::-1], {"network": "n"})
    index = SongIndex.open(tmp_path / "x.npz")
    assert index.paths == paths[::-1]
    np.testing.assert_array_equal(index.vector(49 - 33), vectors[33])
    angles = 1 - cdist(vectors[3:4].astype(np.float64), vectors.astype(np.float64), "cosine")[0]
    angles[20] = 0
    np.testing.assert_allclose(index.cosines(vectors[3]), angles[::-1], atol=1e-12)
    names = [path for path, _ in index.nearest(vectors[3], 4, without=["/3"])]
    expected = [f"/{i}" for i in np.argsort(-angles) if i != 3][:4]
    assert names == expected and names[0] == "/7"
    assert len(index.nearest(vectors[3], 99)) == 50
    with pytest.raises(InputError, match="vectors of 6 numbers, not 5"):
        index.cosines(np.ones(5))


def test_what_is_no_index_is_one_line(index, tmp_path):
    content = index.read_bytes()
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, paths=np.array([{}], object), vectors=np.ones((1, 2)), about="{}")
    np.savez(tmp_path / "foreign.npz", features=np.ones(3))
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    place = content.index(np.load(index)["vectors"][1].tobytes())
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    (tmp_path / "flipped.npz").write_bytes(flipped)
    for name in ("pickled", "foreign", "cut", "empty", "flipped"):
        with pytest.raises(InputError, match=f"{name}.npz is no index .* made, or damaged") as said:
            SongIndex.open(tmp_path / f"{name}.npz").cosines(np.ones(150))
        assert "\n" not in str(said.value)
    with pytest.raises(InputError, match=r"no index .*nowhere.npz"):
        SongIndex.open(tmp_path / "nowhere.npz")


def test_similar_ranks_and_writes_a_playlist(index, music, tmp_path):
    song = music / "a" / "two.flac"
    twin = shutil.copy(song, tmp_path / "twin\n.flac")  # not in the index
    stored = np.load(index)
    unit = stored["vectors"] / np.linalg.norm(stored["vectors"], axis=1, keepdims=True)
    place = stored["paths"].tolist().index(str(song))
    order = np.argsort(-(unit @ unit[place]))
    done = call("similar", f"--index={index}", song, f"--m3u={tmp_path}/p.m3u")
    assert done.returncode == 0, done.stderr
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert [path for _, path in rows] == stored["paths"][order[order != place]].tolist()
    for (cosine, _), expected in zip(rows, np.sort(unit @ unit[place])[-2::-1], strict=True):
        assert float(cosine) == pytest.approx(expected, abs=1e-4)
    playlist = (tmp_path / "p.m3u").read_text().splitlines()
    assert playlist == ["#EXTM3U", str(song), *(path for _, path in rows)]

    # A song that is not in the index; its twin in it is nearest.
    done = call("similar", f"--index={index}", "--top=1", twin, f"--m3u={tmp_path}/q.m3u")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f" 1.0000  {song}\n" and "has a line end" in done.stderr
    assert (tmp_path / "q.m3u").read_text() == f"#EXTM3U\n{song}\n"


def test_bad_use_is_one_line(index, workdir, music, tmp_path):
    song = tmp_path / "new.flac"
    write_audio(song, 12.0)
    other = tmp_path / "other.npz"
    paths = np.load(index)["paths"].tolist()
    with filled(other, paths, np.load(index)["vectors"], "other weights") as growing:
        growing.finish(paths, {"network": "other weights", "workdir": str(workdir)})
    uses = [
        ("embed", [music], "--workdir=... is missing"),
        ("embed", [f"--workdir={workdir}"], "no audio files"),
        ("embed", [f"--workdir={workdir}", music, "--output=x.csv"], "should end in .npz"),
        ("similar", [song], "--index=... is missing"),
        ("similar", [f"--index={index}"], "give one song"),
        ("similar", [f"--index={index}", music / "x.mp3"], "no such file"),
        ("similar", [f"--index={index}", music / "bad.mp3"], "bad.mp3: cannot be decoded"),
        ("similar", [f"--index={other}", song], "made with other weights"),
    ]
    for word, arguments, says in uses:
        done = call(word, *arguments)
        assert_one_error(done, says)
