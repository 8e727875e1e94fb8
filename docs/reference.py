"""Writes docs/reference.md: commands and config keys, as the code has them.

    python docs/reference.py

A test compares the page with the code.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
HEAD = """<!-- Made by docs/reference.py: change the code, then run it again. -->
# Reference

## Commands

In an environment that has the package; `mgc_jax COMMAND --help` says the same.
"""


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([HEAD, *_commands(), "## Config keys\n", *_config_keys()])


def _commands() -> Iterator[str]:
    """A part for each command: its docstring, and its flags."""
    from mgc_jax import cli

    for word, name in cli.COMMANDS.items():
        module = importlib.import_module(f"mgc_jax.{name}")
        first, _, rest = module.__doc__.partition("\n")
        yield f"### mgc_jax {word}\n\n{first}\n"
        yield f"```text\n{rest.strip(chr(10)).rstrip()}\n```\n"
        before = set(flags.FLAGS)
        module.define_flags()
        rows = []
        for flag in sorted(set(flags.FLAGS) - before):
            rows.append(_flag_row(flags.FLAGS[flag]))
            delattr(flags.FLAGS, flag)  # another command may have one of this name
        yield _table(("Flag", "Default", ""), rows)


def _flag_row(flag: flags.Flag) -> tuple[str, str, str]:
    text = flag.help
    if isinstance(flag, flags.EnumFlag):
        text = f"{', '.join(flag.parser.enum_values)}: {text.partition('>: ')[2]}"
    return f"`--{flag.name}`", "" if flag.default in (None, "") else f"`{flag.default}`", text


def _config_keys() -> Iterator[str]:
    """A table for each part of the config, from the source of configs/default.py."""
    source = (ROOT / "configs" / "default.py").read_text()
    parts: dict[str, list[tuple[str, str, str]]] = {"": []}
    for comment, keys in re.findall(r"((?: *#.*\n)*)((?: *config\.\S+ = .*\n)+)", source):
        text = " ".join(line.strip().removeprefix("# ") for line in comment.splitlines())
        for key, value in re.findall(r"config\.(\S+) = (.*)", keys):
            if value == "ConfigDict()" and f"config.{key}." in source:
                parts[key] = []
            else:
                value = "{}" if value == "ConfigDict()" else value
                part = key.rpartition(".")[0]
                parts[part].append((f"`config.{key}`", f"`{value}`", text))
    for part, rows in parts.items():
        if part:
            yield f"### config.{part}\n"
        yield _table(("Key", "Default", ""), rows)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown; what would be marks in it is escaped."""
    lines = [head, ("---",) * len(head)]
    for *names, text in rows:
        text = re.sub(r"([*|<])", r"\\\1", " ".join(text.split()))
        lines.append((*names, text))
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), ""])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page())
