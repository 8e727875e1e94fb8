"""A decoder that crashes, in a module that a worker process imports in no time."""

import os
import signal

from mgc_jax.data.clips import iter_clips


def crashing(path, **settings):
    """As the decoder, but for one file, after whose first clip it crashes."""
    clips = iter_clips(path, **settings)
    if path.endswith("three.flac"):
        yield next(clips)
        os.kill(os.getpid(), signal.SIGSEGV)
    return (yield from clips)
