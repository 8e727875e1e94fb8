"""Files that are whole or not there, whatever interrupts their writing; JSON that is checked."""

import datetime
import fcntl
import json
import os
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from mgc_jax.errors import InputError


def user_cache(part: str) -> Path:
    """A folder for what can be made again, which XDG_CACHE_HOME moves."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mgc_jax" / part


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place once the block is left without error.

    The folder is made if it is missing. Until the end, `path` stays as it was.

    Raises:
        OSError: the file cannot be written, be it that the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def take_lock(file: TextIO) -> str:
    """Locks an open file for this process, and writes into it who that is.

    The lock ends with the process, however that ends.

    Args:
        file: opened with "a+".

    Returns:
        Who has the lock; empty if this process does now.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read() or "another process"
    file.truncate(0)
    since = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}")
    file.flush()
    return ""


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a whole file, or leaves the old one."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a whole UTF-8 file, or leaves the old one."""
    write_bytes(path, text.encode())


def stamp_of(path: str) -> tuple[int, int]:
    """Size and time of a file, by which it is known whether it changed; of a missing one zeros."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return (0, 0)
    return (found.st_size, found.st_mtime_ns)


def cell(text: str, before: str = "'") -> str:
    """A text from outside for a CSV file, as a spreadsheet takes some beginnings for a formula.

    Examples:
        >>> cell("=1+1")
        "'=1+1"
    """
    return before + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def read_json(path: str | os.PathLike, form: Any, *, fix: str) -> Any:
    """Reads JSON that may have been damaged, or never was ours.

    Args:
        path: of the file, UTF-8.
        form: what it must hold, as for `misfit`.
        fix: what the user can do about a bad file, for the message.

    Raises:
        InputError: the file is missing, cannot be read, or does not hold this.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is missing: {fix}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {fix}") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or absurdly deep
        raise InputError(f"{path} cannot be read ({error}): {fix}") from None
    if problem := misfit(value, form):
        raise InputError(f"{path} does not hold what it should: {problem}: {fix}")
    return value


def misfit(value: Any, form: Any, name: str = "all") -> str:
    """What keeps a value that was JSON from having a form; empty if nothing does.

    Args:
        value: as `json.loads` gives it.
        form: a type, or types joined by `|`; `[form]`, a list that is not empty of such values;
            `{key: form}`, a dictionary with these keys, among others. No absurdly large integer
            has any of them.
        name: of the value, for the text.

    Examples:
        >>> misfit({"epoch": 3, "loss": None}, {"epoch": int, "loss": float | None})
        ''
        >>> misfit({"clip": {"epoch": "3"}}, {"clip": {"epoch": int}})
        "clip.epoch='3'"
    """
    above = "" if name == "all" else f"{name}."
    if isinstance(form, dict) and isinstance(value, dict):
        lacking = (f"no {above}{key}" for key in form if key not in value)
        inner = (misfit(value[key], part, f"{above}{key}") for key, part in form.items())
        return next(lacking, "") or next(filter(None, inner), "")
    if isinstance(form, list) and isinstance(value, list) and value:
        return next(
            filter(None, (misfit(part, form[0], f"{above}{i}") for i, part in enumerate(value))), ""
        )
    fits = not isinstance(form, dict | list) and isinstance(value, form)
    if isinstance(value, bool):  # which Python counts as an integer
        fits = form is bool
    elif isinstance(value, int):
        fits = fits and abs(value) < 2**63
    return "" if fits else f"{name}={repr(value)[:80]}"


def sealed(content: Mapping) -> dict:
    """A dictionary with the checksum of all else in it: a changed digit would be believed."""
    whole = json.loads(json.dumps(content))
    return {**whole, "checksum": _checksum(whole)}


def check_seal(path: str | os.PathLike, content: dict, fix: str) -> None:
    """Takes a checksum off; raises InputError if it is another. Earlier versions wrote none."""
    if "checksum" in content:
        changed = content.pop("checksum") != _checksum(content)
    else:  # it may be there by a name that has changed
        changed = any(
            value == _checksum({k: v for k, v in content.items() if k != key})
            for key, value in content.items()
            if isinstance(value, int)
        )
    if changed:
        raise InputError(f"{path} has changed since it was written: {fix}")


def _checksum(content: Mapping) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())
