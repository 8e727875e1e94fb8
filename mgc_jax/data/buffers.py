"""Memory for batches, used again and again."""

import gc
import math
import weakref

import numpy as np

# JAX on a CPU takes memory as it is, without a copy, from such addresses on.
_ALIGNMENT = 64
# A buffer above this size had better be the one that is still in the caches, and one core alone
# does not read as fast as memory gives.
CACHED = 2**22


class BufferPool:
    """Memory for batches, used again as soon as nobody reads it any more, and never before.

    Fresh memory would cost more than the copy into it. A buffer returns to the pool when the last
    array over it is gone, and JAX holds the array that it was given until the transfer has ended
    or, where a device reads the array's memory itself (CPUs do), the last step on it. Who keeps
    batches makes the pool grow; a training loop goes round a few buffers.

    Attributes:
        made: buffers in use and free.
    """

    def __init__(self, size: int):
        self._size = size
        self._free = []
        self.made = 0

    def take(self) -> np.ndarray:
        """`[size] uint8` of any content, aligned."""
        if not self._free and self._size > CACHED:
            # JAX lets arrays go at its next call, or whenever Python looks for garbage.
            gc.collect(0)
        try:
            memory = self._free.pop()
        except IndexError:
            whole = np.empty(self._size + _ALIGNMENT, np.uint8)
            start = -whole.ctypes.data % _ALIGNMENT
            memory = whole.data[start : start + self._size]
            self.made += 1
        # All views of this array hold it, and none of them the memory below it.
        buffer = np.frombuffer(memory, np.uint8)
        weakref.finalize(buffer, self._free.append, memory).atexit = False
        return buffer


def aligned(size: int) -> int:
    """The next size, in bytes, behind which an array is at an address that JAX takes."""
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT
