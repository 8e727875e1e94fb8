"""What every command shares: how it starts, logs, shows progress and reports bad input."""

import itertools
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from mgc_jax.console import log
from mgc_jax.errors import InputError, Interrupted, is_disk_full

flags.disclaim_key_flags()  # --config belongs to the command that asks for it, and to its --help
# The exit code of a command that was told to stop, and goes on if it is called again.
RESUME = os.EX_TEMPFAIL
_CONFIGS = Path(__file__).parents[1] / "configs"


def define_config() -> flags.FlagHolder:
    """The flag `--config`, with `--config.key=value` for each key of the config."""
    return config_flags.DEFINE_config_file(
        "config", None, "Config file, default configs/demo.py; --config.KEY=VALUE changes a key."
    )


def run(main: Callable[[list[str]], None], usage: str) -> None:
    """Runs a command: parses flags, sets up logging, and ends as `exit_codes` does.

    Args:
        main: takes the arguments that are no flags, the program's name first.
        usage: shown at the head of `--help`.
    """
    set_up_logging()
    sys.modules["__main__"].__doc__ = usage
    with exit_codes():
        app.run(main, flags_parser=_parse_flags)


@contextmanager
def exit_codes() -> Iterator[None]:
    """Ends the process with one line on stderr where the user can put right what went wrong.

    The exit code is 1 for bad input and a full disk, and 75 (`EX_TEMPFAIL`) after a request to stop
    that the same command goes on from.
    """
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except Interrupted as error:
        log.info("%s; the same command goes on", error)
        sys.exit(RESUME)
    except Exception as error:
        if not is_disk_full(error):
            raise
        sys.exit(
            "error: no space is left on the disk: make room, and the same command goes on from "
            "what is saved"
        )


def reject_arguments(argv: list[str]) -> None:
    """Raises InputError for arguments that are no flags, in a command that takes none."""
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r} (flags are written --name=value)")


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses flags, the demo's config being the default."""
    if "config" in flags.FLAGS:
        config = _config_argument(argv)
        if config is None:
            # Not the flag's own default, which ml_collections would load at import.
            argv = [argv[0], f"--config={_CONFIGS / 'demo.py'}", *argv[1:]]
        elif not os.path.isfile(path := config.partition(":")[0]):
            known = ", ".join(sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem != "__init__"))
            raise InputError(f"no config file {path!r}; in {_CONFIGS} there are: {known}")
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        raise InputError(
            f"no such config key: {_one_line(error)}; see configs/default.py"
        ) from None
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise InputError(f"{_one_line(error)} (see --help)") from None


def _config_argument(argv: list[str]) -> str | None:
    for argument, following in itertools.pairwise([*argv, ""]):
        if match := re.fullmatch("--?config(?:=(.*))?", argument):
            return following if match[1] is None else match[1]
    return None


def _one_line(error: Exception) -> str:
    """An error of ml_collections, which may hold a whole traceback, for people."""
    lines = [line.strip() for line in str(error).strip('"').splitlines() if line.strip()]
    return lines[-1] if "Traceback" in str(error) else " ".join(lines)


def _show_thread_error(thread: threading.ExceptHookArgs) -> None:
    """Python's own way, but for a full disk, of which orbax tells the main thread too."""
    if not is_disk_full(thread.exc_value):
        threading.__excepthook__(thread)


def set_up_logging() -> None:
    """Our own lines, with the time, on stderr; the libraries' errors only (--verbosity=0: all)."""
    flags.FLAGS.verbosity = absl_logging.ERROR  # its default is INFO, as soon as flags are parsed
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and announced at every start
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    log.handlers = [handler]
    threading.excepthook = _show_thread_error
    log.propagate = False
    log.setLevel(logging.INFO)
