"""From what a network says of clips to what it says of tracks.

A track's answer is the mean of its clips' log-probabilities, with one exception: a probe's head
reads the mean and the deviation over patches, and for a track it reads those over all patches of
the track at once. Of its clips, as for a timeline, it reads each clip's own.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mgc_jax import parallel
from mgc_jax.models.probe import Probe
from mgc_jax.results.metrics import SplitPredictions
from mgc_jax.training.inference import over_clips
from mgc_jax.training.network import Network


def compile_rows_step(network: Network) -> Callable:
    """What is to be known of each clip, over all devices: `(variables, batch) -> rows`.

    Rows are `[batch, classes] float32`, as of `network.predict_step`; a probe's are
    `[batch, classes + width]`, its statistics besides.
    """
    if not reads_tracks(network):
        return network.predict_step

    def rows(variables, stored):
        statistics = statistics_of(network, variables, stored)
        return jnp.concatenate([_decide(network, variables, statistics), statistics], axis=-1)

    return parallel.data_parallel(
        lambda variables, batch: over_clips(partial(rows, variables), batch, network)
    )


def compile_statistics_step(network: Network) -> Callable:
    """A probe's statistics alone, over all devices: `(variables, batch) -> [batch, width]`."""
    return parallel.data_parallel(
        lambda variables, batch: over_clips(
            partial(statistics_of, network, variables), batch, network
        )
    )


def statistics_of(network: Network, variables: Mapping, stored: Mapping) -> jax.Array:
    """A probe's statistics of stored clips, `[clips, width] float32`."""
    inputs = network.inputs(stored).values()
    return network.module.apply(variables, *inputs, method="statistics")


def join_statistics(clips: np.ndarray) -> np.ndarray:
    """The statistics of a track: the mean and the deviation over all patches of its clips.

    Args:
        clips: `[clips, width]`, means and deviations over as many patches in each.

    Returns:
        `[width] float64`.

    Examples:
        >>> join_statistics(np.array([[1.0, 0.0], [3.0, 0.0]])).tolist()  # 1, 1, 1, 3, 3, 3
        [2.0, 1.0]
    """
    means, deviations = np.split(clips.astype(np.float64), 2, axis=1)
    variance = np.square(deviations).mean(axis=0) + means.var(axis=0)
    return np.concatenate([means.mean(axis=0), np.sqrt(variance)])


class TrackHead:
    """A probe's head on whole tracks."""

    def __init__(self, network: Network, variables: Mapping):
        """Takes the probe's variables, on whatever devices."""
        self._classes = len(network.genres)
        self._log_probs = partial(jax.jit(partial(_decide, network)), variables)

    def of_track(self, rows: np.ndarray) -> np.ndarray:
        """Log-probabilities `[1, classes] float32` of a track, from `compile_rows_step`'s rows."""
        statistics = join_statistics(rows[:, self._classes :])
        return np.asarray(self._log_probs(statistics[None].astype(np.float32)))

    def of_split(self, clips: SplitPredictions, rows: np.ndarray) -> SplitPredictions:
        """Of all tracks, in the order of track ids, from `rows` of the clips."""
        ids, groups = by_track(clips.track_id)
        log_probs = np.concatenate([self.of_track(rows[group]) for group in groups])
        labels = np.array([clips.label[group[0]] for group in groups])
        return SplitPredictions(ids, np.zeros_like(ids), labels, log_probs)


def track_head(network: Network, variables: Mapping) -> TrackHead | None:
    """The head of a probe; None where a track's answer is the mean of its clips'."""
    return TrackHead(network, variables) if reads_tracks(network) else None


def reads_tracks(network: Network) -> bool:
    """Whether a network is a probe, the one exception."""
    return isinstance(network.module, Probe)


def by_track(track_id: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The ids of tracks, sorted, and the places of each one's clips."""
    order = np.argsort(track_id, kind="stable")
    ids, first = np.unique(track_id[order], return_index=True)
    return ids, np.split(order, first[1:])


def _decide(network: Network, variables: Mapping, statistics: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(network.module.apply(variables, statistics, method="decide"))
