"""How well "unknown" is told: by the distance of the embedding, and by the probability alone.

    python benchmarks/unknown.py --data=styles8 --epochs=20

Trains on six of eight genres of a folder in FMA's layout (`fma_small/`, `fma_metadata/`), four
times, so that each genre is held out once. What is to be told from the test tracks of the six: the
tracks of the two others, speech (espeak-ng, where it is installed), noise, and tones.

Prints one JSON object: of each kind the area under the ROC curve (1 is a perfect measure, 0.5 a
useless one) of both measures, and the share that --unknown=0.05 calls unknown, means over the four
networks. `known` is that share of the test tracks of the trained genres.

distance      Mahalanobis distance from the nearest genre: `Prediction.distance`
probability   1 - the calibrated probability of the likeliest genre
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# Runs from a clone, whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import soundfile
from absl import flags

import mgc_jax
from mgc_jax import cli
from mgc_jax.configs import baseline_a_2d
from mgc_jax.data import preparation
from mgc_jax.data.fma import read_fma
from mgc_jax.data.tracks import Track
from mgc_jax.models import inputs_of
from mgc_jax.training.train import train_and_evaluate

_DATA = flags.DEFINE_string("data", None, "Folder of fma_small/ and fma_metadata/.", required=True)
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Epochs of each network.", 1)
_FOLDER = flags.DEFINE_string("folder", None, "Keep all here; default: a temporary folder.")
_SECONDS = 30
_RATE = 16000
_SENTENCES = (
    "The train to the coast leaves at seven, and the last one back at ten in the evening. "
    "Mind the gap between the platform and the door, and keep your bags with you at all times. "
    "Tomorrow there will be rain in the north, and a strong wind along the whole of the shore. "
)


def main(argv: list[str]) -> None:
    cli.reject_arguments(argv)
    data = Path(_DATA.value)
    tracks = list(read_fma(data / "fma_small", data / "fma_metadata", "small").tracks)
    genres = sorted({track.genre for track in tracks})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_FOLDER.value or temporary).absolute()
        sounds = other_sounds(folder / "sounds")
        found = [measure(tracks, genres[i::4], sounds, folder / f"without_{i}") for i in range(4)]
    kinds = {kind: [one[kind] for one in found] for kind in found[0]}
    print(
        json.dumps(
            {
                kind: {key: round(float(np.mean([r[key] for r in rows])), 3) for key in rows[0]}
                for kind, rows in kinds.items()
            },
            indent=1,
        )
    )


def measure(
    tracks: list[Track], held_out: list[str], sounds: dict[str, list[Path]], folder: Path
) -> dict[str, dict[str, float]]:
    """Trains without two genres, and measures how well they and other sounds are told apart."""
    music = folder / "music"
    for track in tracks:
        if track.genre not in held_out:
            link = music / track.split / track.genre / os.path.basename(track.path)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(os.path.abspath(track.path))
    config = baseline_a_2d.get_config()
    config.dataset = "audio_folder"
    config.data_dir = str(folder / "tfrecords")
    config.num_epochs = _EPOCHS.value
    preparation.prepare(config, inputs_of(config.model), audio_dir=music, workers=2)
    train_and_evaluate(config, folder / "run", training=True, command="")

    network = mgc_jax.load(folder / "run", unknown=0.05)
    test = [t.path for t in tracks if t.split == "test" and t.genre not in held_out]
    kinds = {"known": test, "held out": [t.path for t in tracks if t.genre in held_out], **sounds}
    scores = {}
    unknown = {}
    for kind, paths in kinds.items():
        results = [result for result in network.stream(paths) if result.error is None]
        unknown[kind] = np.mean([result.unknown for result in results])
        scores[kind] = {
            "distance": np.array([result.distance for result in results]),
            "probability": np.array([1 - max(result.ranking.values()) for result in results]),
        }
    return {
        kind: {name: area(scores["known"][name], values) for name, values in of_kind.items()}
        | {"called unknown": unknown[kind]}
        for kind, of_kind in scores.items()
    }


def area(known: np.ndarray, unknown: np.ndarray) -> float:
    """The area under the ROC curve: how often an unknown one has the higher score."""
    return np.mean(unknown[:, None] > known) + 0.5 * np.mean(unknown[:, None] == known)


def other_sounds(folder: Path) -> dict[str, list[Path]]:
    """Writes speech, noise and tones, 20 files of each."""
    rng = np.random.default_rng(0)
    time = np.arange(_SECONDS * _RATE) / _RATE
    made = {"speech": [], "noise": [], "tones": []}
    for kind in made:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for i in range(20):
        # Noise from white to brown; chords of one to four sine tones.
        spectrum = np.fft.rfft(rng.normal(size=len(time)))
        spectrum[1:] /= np.arange(1, len(spectrum)) ** (i / 20)
        sounds = {
            "noise": np.fft.irfft(spectrum, len(time)),
            "tones": sum(np.sin(2 * np.pi * f * time) for f in rng.uniform(80, 4000, 1 + i % 4)),
        }
        for kind, sound in sounds.items():
            path = folder / kind / f"{i}.flac"
            soundfile.write(path, 0.3 * sound / np.abs(sound).max(), _RATE)
            made[kind].append(path)
        if shutil.which("espeak-ng"):
            path = folder / "speech" / f"{i}.wav"
            flags = ["-w", path, "-s", str(130 + 5 * i), "-p", str(10 + 4 * i)]
            subprocess.run(["espeak-ng", *flags, 2 * _SENTENCES], check=True)
            made["speech"].append(path)
    return {kind: paths for kind, paths in made.items() if paths}


if __name__ == "__main__":
    cli.run_main(main)
