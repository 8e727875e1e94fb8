"""`mgc_jax COMMAND ...`, the same as `python -m mgc_jax COMMAND ...`."""

import importlib
import signal
import sys

from mgc_jax import __version__


def main() -> None:
    """Runs the command that the first word names; without a word, lists the commands."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback, until the command listens
    # Not at the top: they take a moment.
    from mgc_jax import cli
    from mgc_jax.errors import choices

    word = sys.argv[1] if len(sys.argv) > 1 else "help"
    if word in ("help", "-h", "--help"):
        print(_overview())
    elif word == "--version":
        print(__version__)
    elif word not in cli.COMMANDS:
        sys.exit(f"error: no command {word!r}: {choices(word, cli.COMMANDS)}")
    else:
        del sys.argv[1]
        cli.run(word)


def _overview() -> str:
    """A line for each command, the first of its docstring."""
    from mgc_jax import cli

    lines = ["usage: mgc_jax COMMAND [--help] ...", ""]
    for word, name in cli.COMMANDS.items():
        module = importlib.import_module(f"mgc_jax.{name}")
        first_line = (module.__doc__ or "").partition("\n")[0]
        lines.append(f"  {word:9} {first_line}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
