"""CSV tables: read as people and programs save them, written as the csv module does."""

import contextlib
import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence

from etils import epath

from mgc_jax.errors import InputError

Row = tuple[int, list[str]]  # with the number of its line in the file
_DELIMITERS = ",;\t"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
# What may go wrong while a table is read.
READ_ERRORS = (OSError, ValueError, csv.Error)


def read_table(
    path: str | os.PathLike, flag: str, needed: Sequence[str], optional: Sequence[str] = ()
) -> list[dict[str, str]]:
    """Reads the named columns of a table whose first row names them.

    The delimiter may be a comma, a semicolon or a tab; a byte order mark, blank lines, UTF-16 with
    a mark (Excel's "Unicode text"), capitals and blanks around the columns' names do not matter.

    Args:
        path: of the table.
        flag: the flag that named it, for the message.
        needed: columns that the table must have, with a value in every row.
        optional: columns that it may have.

    Returns:
        A dictionary for each row, with the needed columns and those of the optional ones that the
        table has.

    Raises:
        InputError: there is no such file, it is no such table, or a row has no value.
    """
    try:
        with open_rows(path) as rows:
            return _named_cells(rows, needed, optional)
    except READ_ERRORS as error:
        raise InputError(
            f"{flag}={path} cannot be read: {explain(error)}; it needs the columns "
            f"{' and '.join(needed)}"
        ) from None


@contextlib.contextmanager
def open_rows(path: str | os.PathLike) -> Iterator[Iterator[Row]]:
    """Opens a table of any size, row after row, without the blank ones.

    Raises:
        OSError, ValueError, csv.Error: while the rows are read; see `explain`.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # FMA's biographies outgrow the default
    with epath.Path(path).open("rb") as file:
        encoding = "utf-16" if file.read(2) in _UTF16_MARKS else "utf-8-sig"
        file.seek(0)
        text = io.TextIOWrapper(file, encoding=encoding, newline="")
        reader = csv.reader(text, delimiter=_find_delimiter(text))
        yield ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))


def explain(error: Exception) -> str:
    """Why a table cannot be read, for people."""
    if isinstance(error, UnicodeError):
        return "its text is not UTF-8 (a spreadsheet saves it so as 'CSV UTF-8')"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def write_table(path: epath.Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a table in UTF-8; of a file name that is no Unicode, the bytes as `\\udcff`."""
    with io.TextIOWrapper(
        path.open("wb"), encoding="utf-8", errors="backslashreplace", newline=""
    ) as file:
        csv.writer(file).writerows([header, *rows])


def _find_delimiter(text: io.TextIOWrapper) -> str:
    """The delimiter that occurs most often in the first line that is not blank."""
    line = next((line for line in text if line.strip()), "")
    text.seek(0)
    return max(_DELIMITERS, key=line.count)


def _named_cells(
    rows: Iterator[Row], needed: Sequence[str], optional: Sequence[str]
) -> list[dict[str, str]]:
    """The rows as dictionaries; ValueError if a needed column or cell is missing."""
    _, header = next(rows, (0, []))
    places = {cell.strip().lower(): place for place, cell in reversed(list(enumerate(header)))}
    for name in needed:
        if name not in places:
            raise ValueError(f"no column {name!r} in its first row, {_shown(header)}")
    wanted = {name: places[name] for name in (*needed, *optional) if name in places}
    table = []
    for line, row in rows:
        cells = {name: row[at] if at < len(row) else "" for name, at in wanted.items()}
        for name in needed:
            if not cells[name].strip():
                raise ValueError(f"no {name} in line {line}, {_shown(row)}")
        table.append(cells)
    return table


def _shown(row: Sequence[str]) -> str:
    text = repr(",".join(row))
    return text if len(text) < 80 else f"{text[:77]}...'"
