"""Music genre classification in JAX/Flax: from a folder of MP3s to a network and its report.

`mgc_jax.load(workdir).predict(["song.mp3"])` gives the genres of audio files: see
`mgc_jax.predictor`.
"""

import signal
import sys

if sys.argv[0] == "-m":  # `python -m mgc_jax.COMMAND` is being loaded
    # Until it listens, Ctrl-C ends it as it ends any program: without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__version__ = "0.2.0"

TYPE_CHECKING = False  # as typing's, which takes a moment to import
if TYPE_CHECKING:
    from mgc_jax.predictor import Predictor


def load(workdir, batch_size: int = 8, unknown: float | None = None) -> "Predictor":
    """Loads a trained run: `mgc_jax.predictor.load`, imported only when it is called."""
    from mgc_jax import predictor

    return predictor.load(workdir, batch_size, unknown)
