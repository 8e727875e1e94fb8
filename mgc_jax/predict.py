"""Genres of anyone's audio files, from a trained run's workdir alone.

    python -m mgc_jax.predict --workdir=runs/densenet song.mp3 my_music/

A file's genres are the mean of its clips' log-probabilities. Bad files are reported and the rest go
on; the exit code is 1 if any was bad. Files go through the features that the run was trained with.
"""

import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from mgc_jax import cli
from mgc_jax.errors import InputError

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Workdir of the run whose best checkpoint predicts."
)
_FORMAT = flags.DEFINE_enum(
    "format", "table", ["table", "json"], "A table for people, or one JSON object a file."
)
_TOP = flags.DEFINE_integer("top", 3, "Genres that the table lists for each file.", lower_bound=1)

_EXTENSIONS = {".mp3", ".flac", ".ogg", ".oga", ".opus", ".wav", ".aif", ".aiff"}
# Clips a step, or a multiple that all devices share; the last step is filled up, so that nothing
# compiles twice.
_BATCH_SIZE = 8


class Predictor:
    """The best checkpoint of a run, with the features that it was trained on."""

    def __init__(self, workdir: str | os.PathLike):
        """Loads a run.

        Raises:
            InputError: the workdir holds no run, or no finished epoch.
        """
        import jax

        from mgc_jax import parallel, train

        workdir = Path(workdir).absolute()
        parallel.use_compilation_cache(workdir.parent / "jax_cache")
        run = train.load_run(workdir)
        self.genres, self._settings, self._features = run.genres, run.settings, run.model.features
        self._variables = parallel.replicate(run.variables)
        self._predict_step = train.compile_predict_step(run.model)
        self._batch_size = math.lcm(_BATCH_SIZE, jax.device_count())

    def predict(self, path: str | os.PathLike) -> dict[str, float]:
        """Ranks the genres of one file.

        Returns:
            Genre to probability, likeliest first.

        Raises:
            InputError: the file cannot be used; the message is the reason.
        """
        from mgc_jax.datasets.clips import extract_clips

        clips = extract_clips(str(path), self._settings, self._features)
        log_probs = np.concatenate(
            [
                self._predict_clips(clips[i : i + self._batch_size])
                for i in range(0, len(clips), self._batch_size)
            ]
        )
        scores = np.exp(log_probs.mean(axis=0, dtype=np.float64))
        scores /= scores.sum()
        return {self.genres[i]: float(scores[i]) for i in np.argsort(-scores)}

    def _predict_clips(self, clips: list[dict[str, np.ndarray]]) -> np.ndarray:
        padded = [clips[min(i, len(clips) - 1)] for i in range(self._batch_size)]
        batch = {name: np.stack([clip[name] for clip in padded]) for name in self._features}
        return np.asarray(self._predict_step(self._variables, batch))[: len(clips)]


def find_files(paths: Sequence[str]) -> Iterator[str]:
    """Files as given, and the audio files below folders, sorted."""
    for path in paths:
        if os.path.isdir(path):
            found = (
                p for p in Path(path).rglob("*") if p.suffix.lower() in _EXTENSIONS and p.is_file()
            )
            yield from sorted(map(str, found))
        else:
            yield path


def main(argv: list[str]) -> None:
    if not _WORKDIR.value:
        raise InputError("--workdir=... is missing: the folder of a trained run")
    if missing := [path for path in argv[1:] if not os.path.exists(path)]:
        raise InputError(f"no such file or folder: {missing[0]}")
    files = list(find_files(argv[1:]))
    if not files:
        raise InputError("no audio files: name files, or folders that hold some")
    predictor = Predictor(_WORKDIR.value)
    failed = 0
    for path in files:
        try:
            _print_ranking(path, predictor.predict(path))
        except InputError as error:
            failed += 1
            print(f"error: {path}: {error}", file=sys.stderr)
            if _FORMAT.value == "json":
                print(json.dumps({"path": path, "error": str(error)}))
    if failed:
        raise InputError(f"{failed} of {len(files)} files could not be used")


def _print_ranking(path: str, ranking: dict[str, float]) -> None:
    if _FORMAT.value == "json":
        genre = next(iter(ranking))
        print(
            json.dumps({"path": path, "genre": genre, "probabilities": ranking}, ensure_ascii=False)
        )
        return
    print(path)
    for genre, probability in list(ranking.items())[: _TOP.value]:
        print(f"  {probability:6.1%}  {genre}")


if __name__ == "__main__":
    cli.run(main, __doc__)
