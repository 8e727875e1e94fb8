"""The clips of tracks as an Apache Beam transform, for TFDS's own Beam writing.

The extra `beam` installs what this module imports.
"""

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from mgc_jax.data.tracks import Track
from mgc_jax.errors import InputError

_SKIPPED = "skipped"


class ExtractTracks(beam.PTransform):
    """Tracks to keyed examples; those that cannot be used go to a file.

    Args:
        tracks: of one split.
        extract: a track to its keyed examples; a picklable function.
        skipped_file: where the numbers of the tracks that cannot be used are put, with the reasons.
    """

    def __init__(
        self,
        tracks: Sequence[Track],
        extract: Callable[[Track], Iterable[tuple[str, dict]]],
        skipped_file: epath.Path,
    ):
        super().__init__()
        self._tracks, self._extract, self._skipped_file = tracks, extract, skipped_file

    def expand(self, pipeline):
        results = (
            pipeline
            | beam.Create(list(enumerate(self._tracks)))
            | beam.Reshuffle()
            | beam.FlatMap(functools.partial(_extract, extract=self._extract)).with_outputs(
                _SKIPPED, main="examples"
            )
        )
        _ = (
            results[_SKIPPED]
            | beam.combiners.ToList()
            | beam.Map(functools.partial(_write, path=str(self._skipped_file)))
        )
        return results.examples


def make_runner(name: str, options: str):
    """A runner by name, and its options, as `key=value,...`.

    Raises:
        InputError: Beam knows no such runner, or cannot start its processes here.
    """
    if "multi_processing" in options and " " in sys.executable:
        # Beam hands the path to a shell unquoted, and then waits for ever.
        raise InputError(
            f"--beam_options={options}: Beam cannot start {sys.executable!r}, whose path has a "
            "space: install into a folder without one"
        )
    try:
        runner = beam.runners.create_runner(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise InputError(f"--beam_runner={name}: {error}") from None
    return runner, PipelineOptions([f"--{option}" for option in options.split(",") if option])


def read_skipped(path: epath.Path) -> dict[int, str]:
    """What `ExtractTracks` put there: the track's number to the reason."""
    return dict(json.loads(path.read_text()))


def _extract(item: tuple[int, Track], extract) -> Iterator:
    number, track = item
    try:
        yield from list(extract(track))  # all clips of a track or none
    except InputError as error:
        yield beam.pvalue.TaggedOutput(_SKIPPED, (number, str(error)))


def _write(skipped: list[tuple[int, str]], path: str) -> None:
    epath.Path(path).write_text(json.dumps(skipped))
