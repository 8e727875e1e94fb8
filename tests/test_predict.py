"""Prediction of anyone's audio: the Python API, and what the command prints."""

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import termios
import tracemalloc

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile
from child import ROOT, assert_one_error, call
from matplotlib.text import Text
from shared import write_audio

import mgc_jax
from mgc_jax.data.clips import iter_clips
from mgc_jax.errors import InputError
from mgc_jax.timeline import plot_timeline
from mgc_jax.training.network import load_run


@pytest.fixture(scope="module")
def network(workdir):
    return mgc_jax.load(workdir)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """Files of 1, 2, 1 (repeated), and 9 clips, in folders, and a file that is no audio."""
    root = tmp_path_factory.mktemp("music")
    write_audio(root / "a" / "one.mp3", 12.0, seed=1)
    write_audio(root / "a" / "two.flac", 25.0, 22050, 1, seed=2)
    write_audio(root / "b" / "deep" / "long.ogg", 93.0, 16000, 2, seed=3)
    write_audio(root / "b" / "short.wav", 2.5, 8000, 3, seed=4)
    (root / "bad.mp3").write_text("not music")
    (root / "notes.txt").write_text("not asked for")
    return root


def by_hand(workdir, path):
    """One file's clips through the network, without batches; log-probabilities."""
    network, variables, _, temperature = load_run(workdir)
    mel = np.stack([clip.features["mel"] for clip in iter_clips(str(path), network.features)])
    logits = network.module.apply(variables, mel / np.float32(255) * 2 - 1, train=False)
    return np.asarray(jax.nn.log_softmax(logits / temperature))


@pytest.mark.parametrize("batch_size", [3, 8])
def test_files_share_batches_and_get_their_own_clips(workdir, music, batch_size):
    found = mgc_jax.load(workdir, batch_size).predict([music])
    names = [os.path.relpath(result.source, music) for result in found]
    assert names == ["a/one.mp3", "a/two.flac", "b/deep/long.ogg", "b/short.wav", "bad.mp3"]
    assert [len(result.timeline) for result in found] == [1, 3, 9, 1, 0]
    for result in found[:-1]:
        expected = by_hand(workdir, result.source)
        np.testing.assert_allclose(result.timeline, np.exp(expected), atol=1e-5)
        mean = np.exp(expected.mean(axis=0, dtype=np.float64))
        for genre, share in zip(result.genres, mean / mean.sum(), strict=True):
            assert result.ranking[genre] == pytest.approx(share, abs=1e-5)
        assert list(result.ranking.values()) == sorted(result.ranking.values(), reverse=True)
        assert result.genre == result.genres[mean.argmax()] and result.error is None
    assert "cannot be decoded" in found[-1].error
    assert found[-1].genre is None and found[-1].ranking == {}


def test_arrays_are_as_files(network, tmp_path):
    write_audio(tmp_path / "x.flac", 21.0)
    array, rate = soundfile.read(tmp_path / "x.flac", dtype="float32")
    of_file, of_array = network.predict([tmp_path / "x.flac", array], sample_rate=rate)
    np.testing.assert_allclose(of_array.timeline, of_file.timeline, atol=1e-4)
    assert of_array.source == "array 0" and len(of_array.timeline) == 2
    (of_mono,) = network.predict(array.mean(axis=1), sample_rate=rate)
    np.testing.assert_allclose(of_mono.timeline, of_file.timeline, atol=1e-4)
    np.testing.assert_allclose(of_file.starts, [0, 10])


def test_arrays_as_people_have_them(network):
    """Channels first or last, integers, JAX's, with their rate; what is none has an error."""
    rng = np.random.default_rng(0)
    sound = (rng.normal(size=(2, 12 * 22050)) * 0.1).clip(-1, 1).astype(np.float32)
    same = [
        (22050, sound.T),
        (22050, sound),
        (22050, jnp.asarray(sound.mean(axis=0))),
        (22050, np.round(sound * 32768).clip(-32768, 32767).astype(np.int16)),
        (22050, np.round(sound.T * 2.0**31).clip(-(2**31), 2**31 - 1).astype(np.int32)),
    ]
    timelines = [result.timeline for result in network.predict(same)]
    for timeline in timelines:
        np.testing.assert_allclose(timeline, timelines[0], atol=2e-3)
    (pair,) = network.predict((22050, sound))  # one source, not two
    np.testing.assert_array_equal(pair.timeline, timelines[1])

    bad = {
        "too short": np.full(100, 0.1),
        "not finite": np.full(16000, np.nan),
        "uint8 of shape": np.zeros(16000, np.uint8),
        "which axis is time": np.zeros((40, 40)),
        "40 channels: 32 at most": np.zeros((40, 16000)),
        "no signal": np.zeros(16000),
        "divide by 32768": rng.normal(size=16000) * 9000,
        "float: need a path, an array": 0.5,
        "NoneType: need a path": None,
        "http:// cannot be opened": "http://example.org/song.mp3",
        "cannot be opened": "a\0b.mp3",
        "sample_rate=0": (0, sound),
    }
    results = network.predict([*bad.values(), (22050, sound)], sample_rate=16000)
    for result, says in zip(results, bad, strict=False):
        assert result.error and says in result.error, (result.error, says)
    assert results[-1].error is None
    assert "sample_rate is missing" in network.predict(sound)[0].error
    for rate in (0, -1, 1.5):
        with pytest.raises(InputError, match="need a whole number above 0"):
            network.predict(sound, sample_rate=rate)
    with pytest.raises(InputError, match="no spectrogram to draw"):
        plot_timeline(pair)


def test_silence_has_no_vote(network, tmp_path):
    """Music with an hour's quarter of silence after it is told by the music alone."""
    rng = np.random.default_rng(0)
    music = rng.normal(size=20 * 16000) * 0.1
    soundfile.write(tmp_path / "music.flac", music, 16000)
    long = np.concatenate([music, np.zeros(60 * 16000), music])
    soundfile.write(tmp_path / "long.flac", long, 16000)
    short, padded = network.predict([tmp_path], spectrograms=True)[::-1]
    assert [short.source[-10:], padded.source[-9:]] == ["music.flac", "long.flac"]
    np.testing.assert_array_equal(padded.starts, [0, 10, 80, 90])
    assert (short.silent_clips, padded.silent_clips) == (0, 6)
    (of_array,) = network.predict((16000, long))
    assert of_array.silent_clips == 6
    np.testing.assert_allclose(padded.timeline[:2], short.timeline, atol=1e-5)
    for genre, share in short.ranking.items():
        assert padded.ranking[genre] == pytest.approx(share, abs=1e-4)
    # The picture has the silence in it: 100 s, of which 60 s are at the lowest level.
    quiet = (padded.spectrogram == padded.spectrogram.min()).all(axis=1).mean()
    assert quiet == pytest.approx(0.6, abs=0.02)
    figure = plot_timeline(padded)
    assert figure.axes[0].get_xlim() == (0, 100) and figure.axes[0].get_ylabel() == "Hz"
    assert figure.axes[0].get_title().startswith("long.flac\n")


def test_a_picture_is_as_long_as_the_sound(network, tmp_path):
    """4 s are repeated to fill a clip, which the picture does not show."""
    soundfile.write(tmp_path / "short.wav", np.random.default_rng(0).normal(size=64000) / 9, 16000)
    (result,) = network.predict(tmp_path / "short.wav", spectrograms=True)
    assert result.seconds == 4.0
    for page in (False, True):
        figure = plot_timeline(result, page=page)
        assert figure.axes[0].get_xlim() == (0, 4)
        (mesh,) = figure.axes[0].collections
        assert mesh.get_array().shape[-1] == round(0.4 * len(result.spectrogram))
    # On a page, nothing is white or black.
    assert figure.patch.get_alpha() == 0
    assert {text.get_color() for text in figure.findobj(Text)} == {"#888888"}


def test_listening_can_end_a_source(network, music):
    """Its error is that of the listener; the others go on."""
    heard = []

    def hear(name, seconds):
        heard.append((name, seconds))
        if "one" in name and seconds > 5:
            raise InputError("too long")

    results = list(network.stream([music], hear=hear))
    errors = {os.path.basename(r.source): r.error for r in results if r.error}
    assert errors.keys() == {"one.mp3", "bad.mp3"} and errors["one.mp3"] == "too long"
    for result in results:
        if not result.error:
            assert result.seconds == max(s for name, s in heard if name == result.source)


def test_picture_has_no_seams(network, tmp_path):
    """It is librosa's log-mel of the whole signal, whatever clips it came in."""
    rng = np.random.default_rng(0)
    sound = rng.normal(size=256_123) * np.linspace(0.001, 0.3, 256_123)  # 16 s, which grow louder
    (result,) = network.predict((16000, sound.astype(np.float32)), spectrograms=True)
    assert len(result.starts) == 2 and 0 < result.starts[1] < 10  # the clips overlap
    power = librosa.feature.melspectrogram(
        y=sound, sr=16000, n_fft=2048, hop_length=1250, n_mels=513
    )
    expected = librosa.power_to_db(power, ref=np.max, top_db=80).T
    assert len(result.spectrogram) == 205  # frames that begin before the end
    np.testing.assert_allclose(result.spectrogram, expected[:205], atol=0.01)


def test_network_says_what_it_is(network):
    said = repr(network)
    assert "baseline_a_2d" in said and "661,058 parameters" in said and "Hip-Hop" in said


def test_nothing_compiles_after_the_first_batch(workdir, music):
    network = mgc_jax.load(workdir)
    network.predict(music / "a" / "one.mp3")
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "compile" in event else None
    )
    try:
        network.predict([music, music / "a"])
        assert compiled == []
        mgc_jax.load(workdir, batch_size=5).predict(music / "a" / "one.mp3")
        assert compiled  # the listener does hear
    finally:
        jax.monitoring.clear_event_listeners()


def test_memory_does_not_grow_with_the_file(network, tmp_path):
    noise = np.random.default_rng(0).normal(scale=0.1, size=16000 * 60).astype(np.float32)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 16000, 1) as file:
        for _ in range(30):
            file.write(noise)
    tracemalloc.start()
    (result,) = network.predict(tmp_path / "long.wav", spectrograms=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(result.timeline) == 180
    assert len(result.spectrogram) <= 4096 and result.spectrogram.min() >= -80
    assert peak < 50e6 < 30 * noise.nbytes


def test_features_come_from_the_run_and_not_from_defaults(workdir, music, tmp_path):
    config = json.loads((workdir / "config.json").read_text())
    config["mel"]["top_db"] = 40.0
    other = with_config(workdir, tmp_path, config)
    path = music / "a" / "one.mp3"
    (found,) = mgc_jax.load(other).predict(path)
    np.testing.assert_allclose(found.timeline, np.exp(by_hand(other, path)), atol=1e-5)
    assert np.abs(found.timeline - mgc_jax.load(workdir).predict(path)[0].timeline).max() > 1e-3


# orbax leaves its other reads open after an error.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "part,changes,says",
    [
        ("mel", {"n_mels": 128}, "128, 128"),
        ("mel", {"frames": 130}, "mel.frames=130"),
        ("mel", {"fmin": 20}, "the setting mel.fmin is unknown"),
        ("mel", {"top_db": None}, "top_db=None"),
        ("audio", {"sample_rate": 0}, "sample_rate=0"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(workdir, tmp_path, part, changes, says):
    config = json.loads((workdir / "config.json").read_text())
    config[part] |= changes
    with pytest.raises(InputError, match=says):
        mgc_jax.load(with_config(workdir, tmp_path, config))


def with_config(workdir, folder, config):
    """A copy of a run with another config."""
    shutil.copytree(workdir / "checkpoints" / "best", folder / "run" / "checkpoints" / "best")
    shutil.copy(workdir / "genres.json", folder / "run")
    (folder / "run" / "config.json").write_text(json.dumps(config))
    return folder / "run"


def test_imports_only_what_it_needs(workdir, music):
    """In a notebook: no flags of ours, and nothing heavy that predicting does without."""
    code = """
import sys
import mgc_jax
assert "jax" not in sys.modules  # importing the package costs nothing
assert mgc_jax.load(sys.argv[1]).predict(sys.argv[2])[0].genre
for name in ("tensorflow", "tensorflow_datasets", "matplotlib", "librosa", "gradio",
             "scipy.signal", "scipy.fft", "optax", "mgc_jax.training.augment",
             "mgc_jax.results.report", "mgc_jax.predict"):
    assert name not in sys.modules, name
from absl import flags
assert not flags.FLAGS.is_parsed()
ours = [m for m in flags.FLAGS.flags_by_module_dict() if "mgc_jax" in m or m == sys.argv[0]]
assert not ours, ours
"""
    arguments = [sys.executable, "-c", code, str(workdir), str(music / "a" / "one.mp3")]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_json_with_timeline_and_plots(workdir, music, tmp_path):
    odd = os.fsencode(tmp_path) + b"/m\xfcsik.mp3"  # Latin-1
    shutil.copy(os.fsencode(music / "a" / "one.mp3"), odd)
    flags = ("--format=json", "--timeline", f"--plot={tmp_path / 'plots'}")
    again = music / "a" / ".." / "a" / "one.mp3"
    done = call("predict", f"--workdir={workdir}", *flags, music, again, os.fsdecode(odd))
    assert done.returncode == 1
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    long, bad = rows[2], rows[4]
    assert [step["start"] for step in long["timeline"]] == [10.0 * i for i in range(9)]
    assert long["genre"] == max(long["probabilities"], key=long["probabilities"].get)
    for step in long["timeline"]:
        assert sum(step["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert set(bad) == {"path", "error"} and "cannot be decoded" in bad["error"]
    assert os.fsencode(rows[-1]["path"]) == odd and rows[-1]["genre"]
    # On a slow machine, lines of how far it is.
    said = [line for line in done.stderr.splitlines() if "predicting: " not in line]
    assert said[0].endswith("1 other files: 1 .txt")
    assert said[1].endswith(f"bad.mp3: {bad['error']}")
    assert len(said) == 3  # no bar, where there is no terminal
    plots = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert len(plots) == 6 and {"one.mp3.png", "one.mp3-2.png", "long.ogg.png"} < set(plots)
    for path in (tmp_path / "plots").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")


def test_csv_has_one_row_a_file(workdir, music, tmp_path):
    half = np.random.default_rng(0).normal(size=30 * 8000) * 0.1
    half[: 12 * 8000] = 0
    soundfile.write(tmp_path / "half.wav", half, 8000)
    done = call("predict", f"--workdir={workdir}", "--format=csv", tmp_path / "half.wav", music)
    assert done.returncode == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    genres = json.loads((workdir / "genres.json").read_text())
    assert len(rows) == 6
    assert [row["silent_clips"] for row in rows] == ["1", "0", "0", "0", "0", ""]
    for row in rows[:-1]:
        shares = {genre: float(row[f"prob_{genre}"]) for genre in genres}
        assert row["genre"] == max(shares, key=shares.get) and row["error"] == ""
    assert rows[-1]["genre"] == "" and "cannot be decoded" in rows[-1]["error"]


def test_table_with_timeline_and_a_bar_on_a_terminal(workdir, music):
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(other_end, (24, 80))
    command = [sys.executable, "-m", "mgc_jax.predict", f"--workdir={workdir}", "--timeline"]
    command += [str(music / "a" / "two.flac")]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=other_end, text=True, check=True
    )
    os.set_blocking(terminal, False)
    assert b"1/1 files" in os.read(terminal, 100_000)
    os.close(other_end)
    os.close(terminal)
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 3 + 3
    # The last clip of the file's 25 s ends with it.
    assert [line.split()[0] for line in lines[4:]] == ["0:00", "0:10", "0:15"]


@pytest.mark.parametrize(
    "arguments,says",
    [
        (("--format=csv", "--timeline", "README.md"), "--timeline does not fit"),
        (("--plot=README.md/x", "README.md"), "cannot write to --plot=README.md/x"),
    ],
)
def test_bad_use_is_one_line(workdir, arguments, says):
    done = call("predict", f"--workdir={workdir}", *arguments)
    assert_one_error(done, says)


@pytest.fixture
def odd_names(music, tmp_path):
    """Files whose names are formulas, codes of a terminal, and signs that matplotlib lacks."""
    names = ["=1+1.mp3", "\x1b[31mred\nline.mp3", "$x_1$ <b>.mp3", "日本語.mp3"]
    for name in names:
        shutil.copy(music / "a" / "one.mp3", tmp_path / name)
    return tmp_path


def test_odd_names_are_shown_as_text(workdir, odd_names):
    flags = (f"--workdir={workdir}", "--plot=plots")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(odd_names)}
    names = ["--", *sorted(path.name for path in odd_names.glob("*.mp3"))]
    table = call("predict", *flags, *names, cwd=odd_names, env=environment)
    assert table.returncode == 0, table.stderr
    assert "\x1b" not in table.stdout and "\\x1b[31mred\\nline.mp3\n" in table.stdout
    assert table.stderr == "" or "Glyph" not in table.stderr
    assert len(list((odd_names / "plots").iterdir())) == 4
    found = call("predict", flags[0], "--format=csv", *names, cwd=odd_names, env=environment)
    rows = list(csv.reader(io.StringIO(found.stdout)))
    paths = {row[0] for row in rows[1:]}
    assert "./=1+1.mp3" in paths and "日本語.mp3" in paths and len(paths) == 4


def test_home_is_expanded_and_a_closed_pipe_is_quiet(workdir, music, tmp_path):
    (tmp_path / "run").symlink_to(workdir)
    environment = os.environ | {"HOME": str(tmp_path)}
    command = (
        f"{sys.executable} -m mgc_jax.predict --workdir=~/run '{music}/a' '{music}/b' | head -1"
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.endswith("one.mp3\n")
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
