"""What changes for the whole process: all of it is here, and none of it happens at an import."""

import atexit
import gc
import logging
import os
import sys
import threading
from typing import Any, NoReturn

from absl import flags
from absl import logging as absl_logging

from mgc_jax.console import log
from mgc_jax.errors import is_disk_full


def set_up_logging() -> None:
    """Our own lines, with the time, on stderr; the libraries' errors only (--verbosity=0: all).

    For commands; who uses the package from Python keeps his own logging.
    """
    flags.FLAGS.verbosity = absl_logging.ERROR  # its default is INFO, as soon as flags are parsed
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and announced at every start
    # TensorFlow imports Keras, a fifth of all that a command waits for at first, unless it should
    # use the old one, which is not installed; neither is used here.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers = [handler]
    threading.excepthook = _show_thread_error
    log.propagate = False
    log.setLevel(logging.INFO)


def collect_rarely() -> None:
    """Has Python look for cycles of garbage more rarely, and not at all at the end of the process.

    There are next to none, and what the libraries bring with them is looked through again and again
    as they are imported, and once more before they go: a quarter of what one song's genres take.
    """
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)


def quiet_orbax() -> None:
    """Keeps orbax from showing tracebacks of what it then raises; before checkpoints are opened."""
    sys.unraisablehook = _show_error
    logging.getLogger("absl").addFilter(_is_not_orbax)
    logging.getLogger("asyncio").addFilter(_is_retrieved)


def hide_gpus_from_tensorflow() -> None:
    """TensorFlow only moves bytes here: no GPU memory may go to it; before it is used at all."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


def leave(said: str) -> NoReturn:
    """Ends the process with a line on stderr and exit code 1.

    After a save that failed, threads of orbax may wait for five minutes for what never comes; an
    orderly end would wait for them.
    """
    if any(type(thread).__module__.startswith("orbax.") for thread in threading.enumerate()):
        print(said, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    sys.exit(said)


def _show_thread_error(thread: threading.ExceptHookArgs) -> None:
    """Python's own way, but for a full disk, of which orbax tells the main thread too."""
    if not is_disk_full(thread.exc_value):
        threading.__excepthook__(thread)


def _is_not_orbax(record: logging.LogRecord) -> bool:
    """orbax logs with a traceback what it then raises."""
    return "orbax" not in record.pathname


def _is_retrieved(record: logging.LogRecord) -> bool:
    """Of several reads that fail in one checkpoint, orbax raises one and forgets the others."""
    return "exception was never retrieved" not in record.getMessage()


def _show_error(unraisable: Any) -> None:
    """Python's own way, but quiet about the reads and writes that orbax gives up after an error."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
