"""The exceptions that commands turn into one line and an exit code."""

import difflib
import errno
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from outside: the message names the file or value and says what to do about it."""


class Interrupted(BaseException):
    """A request to stop is obeyed; like Python's own, it passes by those that catch any error."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) is at the bottom of an error, whichever library raised it."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(word in str(error) for word in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_peer_lost(error: BaseException | None) -> bool:
    """Whether another process of a job of several is gone, as the devices' library tells it."""
    while error is not None:
        said = str(error)
        if "Gloo" in said or "Connection closed by peer" in said or "Connection reset by" in said:
            return type(error).__name__ in ("XlaRuntimeError", "JaxRuntimeError", "ValueError")
        error = error.__cause__ or error.__context__
    return False


def choices(name: str, known: Iterable[str]) -> str:
    """For a message about an unknown name: the nearest known one, and all of them.

    Examples:
        >>> choices("densent", ["baseline_b", "densenet"])
        "did you mean 'densenet'? There are: baseline_b, densenet"
        >>> choices("x", ["baseline_b", "densenet"])
        'one of baseline_b, densenet'
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if near:
        return f"did you mean {near[0]!r}? There are: {', '.join(known)}"
    return f"one of {', '.join(known)}"
