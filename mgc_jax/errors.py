"""The exceptions that commands turn into one line and an exit code."""

import errno


class InputError(ValueError):
    """Bad input from outside: the message names the file or value and says what to do about it."""


class Interrupted(Exception):
    """A request to stop was obeyed, after saving; the same command goes on."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) is at the bottom of an error, whichever library raised it."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(word in str(error) for word in ("No space left on device", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False
