"""What every command shares: how it starts, logs, shows progress and reports bad input."""

import logging
import os
import sys
from collections.abc import Callable

from absl import app, flags
from absl import logging as absl_logging
from tqdm import tqdm

from mgc_jax.errors import InputError

log = logging.getLogger("mgc_jax")


def run(main: Callable[[list[str]], None], usage: str) -> None:
    """Runs a command: parses flags, and turns bad input into one line on stderr and exit code 1.

    Args:
        main: takes the arguments that are no flags, the program's name first.
        usage: shown at the head of `--help`.
    """
    _set_up_logging()
    sys.modules["__main__"].__doc__ = usage
    try:
        app.run(main, flags_parser=_parse_flags)
    except InputError as error:
        sys.exit(f"error: {error}")


def progress_bar(*, total: int, description: str, unit: str, leave: bool = True) -> tqdm:
    """A bar with rate and ETA: live on a terminal, a line every half minute in a log file."""
    live = sys.stderr.isatty()
    interval = 0.2 if live else 30
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        leave=leave or not live,
        delay=0 if live else interval,
        mininterval=interval,
        maxinterval=interval,
        dynamic_ncols=True,
    )


def reject_arguments(argv: list[str]) -> None:
    """Raises InputError for arguments that are no flags, in a command that takes none."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r} (flags are written --name=value)")


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections answers an unknown key or a missing config file with all of these.
        raise InputError(_first_line(error) + " (see --help)") from None


def _first_line(error: Exception) -> str:
    lines = [
        line.strip()
        for line in str(error).strip("'\"").replace("\\n", "\n").splitlines()
        if line.strip()
    ]
    return lines[0] if lines else repr(error)


def _set_up_logging() -> None:
    """Our own lines, dated, on stderr; the libraries' only from warnings up."""
    flags.FLAGS.verbosity = absl_logging.WARNING  # absl would raise it to INFO after parsing
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and announced at every start
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
