"""The one exception for what a user can put right; commands print it as a single line."""


class InputError(ValueError):
    """Bad input from outside: the message names the file or value and says what to do about it."""
