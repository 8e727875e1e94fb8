"""The log-mel picture of a whole signal, made of its clips as they pass by."""

from collections.abc import Generator

import numpy as np

from mgc_jax.data.audio import AudioClip
from mgc_jax.data.features import Mel

_MAX_FRAMES = 4096


class Picture:
    """A log-mel over all clips of a track, without seams where they meet.

    Frames at the edge of a clip see the samples on both sides of it, and the maximum that the
    values are relative to is the whole signal's. Long signals have frames left out, so that memory
    does not grow with their length.
    """

    def __init__(self, mel: Mel):
        """Begins before the first sample."""
        self._mel = mel
        # Samples of frames not made yet, and where they begin; there are zeros before the signal.
        self._pending = np.zeros(mel.n_fft // 2, np.float32)
        self._pending_at = 0
        self._heard = 0  # samples
        self._frames = 0  # made, those left out included
        self._step = 1  # one frame of so many is kept
        self._power = np.zeros((0, mel.n_mels), np.float32)

    def follow(self, clips: Generator[AudioClip, None, int]) -> Generator[AudioClip, None, int]:
        """Passes the clips of a track on, in order, and takes in what is new in each.

        What lies between two clips had no signal.
        """
        while True:
            try:
                clip = next(clips)
            except StopIteration as end:
                return end.value
            while self._heard < clip.start:
                self._add(np.zeros(min(clip.start - self._heard, len(clip.samples)), np.float32))
            self._add(clip.samples[self._heard - clip.start :])
            yield clip

    def values(self) -> np.ndarray:
        """The picture, once all clips have passed: `[frames, mels] float32`, in the log-mel's unit.

        Frames whose centre is the end of the signal, or beyond it, are no part of it.
        """
        self._make_frames(np.zeros(self._mel.n_fft // 2, np.float32))
        count = -(-self._heard // (self._mel.hop_length * self._step))
        return self._mel.compress(self._power[:count], np)

    def _add(self, samples: np.ndarray) -> None:
        self._heard += len(samples)
        self._make_frames(samples)

    def _make_frames(self, samples: np.ndarray) -> None:
        """Makes the frames whose windows are complete now."""
        n_fft = self._mel.n_fft
        hop_length = self._mel.hop_length
        pending = np.concatenate([self._pending, samples])
        first = self._frames * hop_length - self._pending_at
        count = max(0, (len(pending) - first - n_fft) // hop_length + 1)
        if count:
            power = self._mel.power(pending[first : first + (count - 1) * hop_length + n_fft])
            kept = power[-self._frames % self._step :: self._step]
            self._power = np.concatenate([self._power, kept])
            self._frames += count
        done = min(first + count * hop_length, len(pending))
        self._pending = pending[done:]
        self._pending_at += done
        while len(self._power) > _MAX_FRAMES:
            self._power = self._power[::2]
            self._step *= 2
