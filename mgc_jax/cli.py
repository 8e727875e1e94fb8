"""What every command shares: how it starts, parses flags, logs and reports bad input.

A command is a module with a docstring, `define_flags()` and `main(argv)`. Its flags are defined
when it runs, so that several commands can be imported side by side.
"""

import importlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from mgc_jax import process, signals
from mgc_jax.configs import default
from mgc_jax.console import log
from mgc_jax.errors import InputError, Interrupted, choices, is_disk_full, is_peer_lost

# The word of `mgc_jax WORD` to the module of `python -m MODULE`, without the package's name.
COMMANDS = {
    "prepare": "prepare",
    "train": "main",
    "probe": "probe",
    "predict": "predict",
    "tag": "tag",
    "embed": "embed",
    "similar": "similar",
    "compare": "compare",
    "reproduce": "reproduce",
    "export": "export",
    "app": "app",
    "weights": "weights",
    "models": "models.__main__",
}
# The exit code of a command that was told to stop: of one that goes on if it is called again, and
# of the others.
RESUME = 75  # EX_TEMPFAIL of sysexits.h
STOPPED = 130  # as a shell says of what Ctrl-C ended
_GO_ON = {"prepare", "train", "probe", "embed"}  # and predict with this flag:
_OUTPUT = re.compile("--?output\\b")
_CONFIGS = Path(__file__).parent / "configs"
_HELP = ("-h", "-help", "--help", "--helpshort")
flags.disclaim_key_flags()  # --config belongs to the command that asks for it, and to its --help


def define_config() -> None:
    """The flag `--config`, with `--config.key=value` for each key of the config."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Config: a file, or the name of a built-in one such as densenet; default demo. "
        "--config.KEY=VALUE changes a key.",
        # model_overrides takes the fields of any network: see `_check_config_keys`.
        lock_config=False,
        accept_new_attributes=True,
    )


class _PathParser(flags.ArgumentParser):
    """A path, whose `~` no shell expands after a `=`."""

    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


def define_path(name: str, default: str | None, help_text: str) -> None:
    """A flag that takes a path."""
    flags.DEFINE(_PathParser(), name, default, help_text)


def define_network(use: str) -> None:
    """The flags `--workdir` and `--pretrained`, of which `named_network` takes one."""
    define_path("workdir", None, f"Workdir of the run whose best checkpoint {use}.")
    flags.DEFINE_string(
        "pretrained",
        None,
        "Instead: public weights, such as msd_musicnn, whose tags are no genres but need no "
        "training; `mgc_jax weights` lists them.",
    )


def define_shard() -> None:
    """The flag `--shard`, which `library.find_songs` takes."""
    flags.DEFINE_string(
        "shard",
        None,
        "3/8: the third of eight shares of the files, by a hash of each path as it is named: the "
        "same command with 1/8 to 8/8 on eight machines does them all.",
    )


def define_unknown() -> None:
    """The flag `--unknown`, which `mgc_jax.load` takes."""
    flags.DEFINE_float(
        "unknown",
        None,
        "Say unknown of music that is like none of the training's, by its distance from all "
        "genres; this share of the validation tracks (0.05) is wrongly called so.",
        lower_bound=0,
        upper_bound=0.999,
    )


def named_network() -> str:
    """The folder or the name that `mgc_jax.load` takes; raises InputError for none or two."""
    workdir, pretrained = flags.FLAGS.workdir, flags.FLAGS.pretrained
    if workdir and pretrained:
        raise InputError("--workdir and --pretrained do not go together: give one")
    if not workdir and not pretrained:
        raise InputError(
            "--workdir=... is missing: the folder of a trained run (or --pretrained=msd_musicnn)"
        )
    return workdir or pretrained


def run(word: str) -> None:
    """Runs a command: parses flags, sets up logging, and ends as `exit_codes` does.

    Args:
        word: a key of `COMMANDS`; its arguments are those of this process.
    """
    if sys.platform == "win32":
        sys.exit("error: mgc_jax runs on Linux and macOS; on Windows, use WSL")
    process.collect_rarely()
    # By its own name, be it that this process began with the same file.
    module = importlib.import_module(f"mgc_jax.{COMMANDS[word]}")
    module.define_flags()
    sys.argv[0] = f"mgc_jax {word}"
    if any(argument in _HELP for argument in sys.argv[1:]):
        sys.stdout.write(f"{module.__doc__}\n{flags.FLAGS.module_help(module.__name__)}\n")
        sys.exit(0)
    goes_on = word in _GO_ON or any(map(_OUTPUT.match, sys.argv)) and word == "predict"
    run_main(module.main, RESUME if goes_on else STOPPED)


def run_main(main: Callable[[list[str]], None], stopped: int = STOPPED) -> None:
    """Runs a function of the arguments that are no flags, the program's name first.

    Args:
        main: the function.
        stopped: the exit code after a request to stop.
    """
    signals.listen(stopped)
    process.set_up_logging()
    with exit_codes(stopped):
        app.run(main, flags_parser=_parse_flags)


@contextmanager
def exit_codes(stopped: int) -> Iterator[None]:
    """Ends the process with one line on stderr where the user can put right what went wrong.

    The exit code is 1 for bad input and a full disk.

    Args:
        stopped: the exit code after a request to stop, `RESUME` or `STOPPED`.
    """
    try:
        yield
    except InputError as error:
        process.leave(f"error: {error}")
    except BrokenPipeError:
        # Who read the output wants no more of it; Python would complain when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as a process that SIGPIPE ends
    except Interrupted as error:
        log.info("%s%s", error, "; the same command goes on" if stopped == RESUME else "")
        sys.exit(stopped)
    except Exception as error:
        if is_peer_lost(error):
            log.info("another process of this job is gone; the same command on all of them goes on")
            os._exit(RESUME)  # an orderly end would wait for it
        if not is_disk_full(error):
            raise
        process.leave(
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
        argv = _with_config_file(argv)
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"{_one_line(error)} (see --help)") from None
    if "config" in flags.FLAGS:
        _check_config_keys(flags.FLAGS.config, default.get_config())
        for key in ("data_dir", "init_from"):
            flags.FLAGS.config[key] = os.path.expanduser(flags.FLAGS.config[key])
        flags.FLAGS.config.lock()
    return rest


def _check_config_keys(config: ConfigDict, known: ConfigDict, above: str = "") -> None:
    """Raises InputError for a key that configs/default.py does not have.

    What is below `model_overrides` is checked when the network is made.
    """
    for key, value in config.items():
        if key not in known:
            near = choices(key, known.keys())
            hint = near.partition("?")[0] + "?" if near.startswith("did") else "none is like it."
            raise InputError(f"no such config key: {above}{key}; {hint} See configs/default.py")
        if isinstance(value, ConfigDict) and key != "model_overrides":
            _check_config_keys(value, known[key], f"{above}{key}.")


def _with_config_file(argv: list[str]) -> list[str]:
    """The arguments with `--config` naming a file: `densenet` is the built-in config of that name.

    Raises:
        InputError: there is no such config.
    """
    for place, (argument, following) in enumerate(itertools.pairwise([*argv, ""])):
        match = re.fullmatch("--?config(?:=(.*))?", argument)
        if not match:
            continue
        used = 2 if match[1] is None else 1  # `--config densenet` is two arguments
        path, colon, rest = (following if match[1] is None else match[1]).partition(":")
        path = os.path.expanduser(path)
        built_in = _CONFIGS / f"{path}.py"
        if not os.path.isfile(path) and built_in.is_file() and "/" not in path:
            path = str(built_in)
        if not os.path.isfile(path):
            known = sorted(p.stem for p in _CONFIGS.glob("*.py") if p.stem != "__init__")
            raise InputError(f"no config file {path!r}: {choices(Path(path).stem, known)}")
        return [*argv[:place], f"--config={path}{colon}{rest}", *argv[place + used :]]
    # Not the flag's own default, which ml_collections would load when it is defined.
    return [argv[0], f"--config={_CONFIGS / 'demo.py'}", *argv[1:]]


def _one_line(error: Exception) -> str:
    """An error of ml_collections, which may hold a whole traceback, for people."""
    lines = [line.strip() for line in str(error).strip('"').splitlines() if line.strip()]
    return lines[-1] if "Traceback" in str(error) else " ".join(lines)
