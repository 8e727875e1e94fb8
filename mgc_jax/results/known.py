"""How far a track is from all that a network was trained on, so that it can say "unknown".

A network names one of its genres whatever it hears. The embedding (see `training.embedding`) tells
more: music that is like no genre of the training lies far from the means of all of them.
"""

from typing import NamedTuple

import numpy as np


class Known(NamedTuple):
    """What is kept of a run's training and validation split.

    Attributes:
        means: `[genres, channels] float32`, of each genre's embeddings; of trained genres only.
        whitening: `[channels, channels] float32`, a matrix W for which W W^T is the inverse of the
            covariance that all genres share.
        distances: `[tracks] float32`, how far the tracks of the validation split are.
    """

    means: np.ndarray
    whitening: np.ndarray
    distances: np.ndarray

    def distance(self, vectors: np.ndarray) -> np.ndarray:
        """Mahalanobis distance of embeddings from the nearest genre's mean.

        This is the measure of Lee et al. 2018 (A Simple Unified Framework for Detecting
        Out-of-Distribution Samples and Adversarial Attacks), of the last layer's input.

        Args:
            vectors: `[n, channels]`.

        Returns:
            `[n] float64`.
        """
        white = np.asarray(vectors, np.float64) @ self.whitening
        means = self.means.astype(np.float64) @ self.whitening
        return np.array([np.linalg.norm(means - vector, axis=1).min() for vector in white])

    def limit(self, share: float) -> float:
        """The distance beyond which a share of the validation tracks lies, rounded down to tracks.

        It is halfway between two of them, as a file is not quite where its rounded records are.

        Examples:
            >>> known = Known(np.zeros((1, 1)), np.eye(1), np.arange(10.0))
            >>> known.limit(0.25)  # 8 and 9 are beyond it: two of ten
            7.5
        """
        beyond = int(len(self.distances) * share + 1e-9)  # 100 times 0.29 is 28.999...
        farthest = len(self.distances) - 1 - beyond  # of those that are known
        ordered = np.sort(self.distances)
        ordered = np.append(ordered, 1.02 * ordered[-1])  # where none is beyond
        return float(ordered[farthest : farthest + 2].mean())


def fit_known(vectors: np.ndarray, labels: np.ndarray, validation: np.ndarray) -> Known:
    """The genres' means and their covariance, and the distances of validation tracks.

    The covariance is that of all clips around the means of their genres, shrunk by Ledoit and Wolf
    2004 (A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices): a small training
    split has less clips than the embedding has channels.

    Args:
        vectors: `[clips, channels]`, embeddings of the training split.
        labels: `[clips] int`, their genres.
        validation: `[tracks, channels]`, embeddings of the validation tracks.
    """
    vectors = np.asarray(vectors, np.float64)
    genres, members = np.unique(labels, return_inverse=True)
    means = np.stack([vectors[members == i].mean(axis=0) for i in range(len(genres))])
    covariance = shrunk_covariance(vectors - means[members])
    # The inverse of the Cholesky factor L of L L^T, transposed, whitens.
    whitening = np.linalg.inv(np.linalg.cholesky(covariance)).T
    known = Known(means.astype(np.float32), whitening.astype(np.float32), np.zeros(0, np.float32))
    return known._replace(distances=known.distance(validation).astype(np.float32))


def shrunk_covariance(residuals: np.ndarray) -> np.ndarray:
    """The covariance of vectors around 0, drawn towards that of a ball: `[channels, channels]`.

    Args:
        residuals: `[n, channels] float64`; of nothing but zeros it is the unit ball's.
    """
    count, channels = residuals.shape
    sample = residuals.T @ residuals / count
    scale = np.trace(sample) / channels
    if scale == 0:
        return np.eye(channels)
    away = np.square(sample - scale * np.eye(channels)).sum()
    fourth = np.square(np.square(residuals).sum(axis=1)).sum()
    noise = (fourth / count - np.square(sample).sum()) / count
    share = min(1.0, max(0.0, noise / away)) if away > 0 else 1.0
    # Whatever rounding does: a ball's part keeps every direction apart from 0.
    share = max(share, 1e-6)
    return (1 - share) * sample + share * scale * np.eye(channels)
