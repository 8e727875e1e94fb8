"""What is said of files, as rows of CSV or objects of JSON, and a table of them that grows.

The table is a file of its own, `.csv` or `.jsonl`. Each row has, besides the answer, the size and
time that the file had, by which it is known whether it changed, and what answered: a hash of the
network and its settings.
"""

import csv
import fcntl
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mgc_jax.errors import InputError
from mgc_jax.files import cell, replacing, stamp_of

if TYPE_CHECKING:
    from mgc_jax.predictor import Prediction, Predictor

_KEPT = ("size", "mtime_ns", "answered_by")
_JSON_START = b'{"path": '
_LONGEST_TORN = 2**20  # bytes; more is no row that a kill left half written


def csv_columns(predictor: "Predictor") -> list[str]:
    """The names of `csv_cells`."""
    columns = ["path"]
    if not predictor.tagging:
        columns.append("genre")
    prefix = "tag" if predictor.tagging else "prob"
    columns += [f"{prefix}_{genre}" for genre in predictor.genres]
    if predictor.tells_unknown:
        columns += ["unknown", "distance"]
    return [*columns, "silent_clips", "error"]


def csv_cells(result: "Prediction", predictor: "Predictor") -> list[Any]:
    """A row of a table; of a file that cannot be used, nothing but the path and the reason."""
    good = result.error is None
    cells = [cell(result.source, "./")]
    if not predictor.tagging:
        cells.append(cell(result.genre or ""))
    cells += [result.ranking.get(genre) for genre in predictor.genres]
    if predictor.tells_unknown:
        cells += [result.unknown if good else None, result.distance]
    return [*cells, result.silent_clips if good else None, result.error]


def json_object(result: "Prediction", timeline: bool) -> dict[str, Any]:
    """An answer for JSON; of a file that cannot be used, the path and the reason.

    Of tags, `tags` takes the place of `genre` and `probabilities`.

    Args:
        result: the answer.
        timeline: whether to give the clips, too.
    """
    found: dict[str, Any] = {"path": result.source}
    if result.error is not None:
        return found | {"error": result.error}
    values = "tags" if result.tagging else "probabilities"
    found |= {} if result.tagging else {"genre": result.genre}
    if result.distance is not None:
        found |= {"unknown": result.unknown, "distance": result.distance}
    found |= {values: result.ranking, "silent_clips": result.silent_clips}
    if timeline:
        found["timeline"] = [
            {
                "start": round(float(start), 3),
                values: dict(zip(result.genres, row.tolist(), strict=True)),
            }
            for start, row in zip(result.starts, result.timeline, strict=True)
        ]
    return found


class GrowingTable:
    """A table of answers. Every one that is added is in the file when `add` returns."""

    def __init__(self, path: str | os.PathLike, predictor: "Predictor", timeline: bool = False):
        """Opens what an earlier run left, or begins anew.

        What a kill left half written is cut off, and rows of files that have changed since are left
        out. Rows of files that are not there now stay.

        Args:
            path: of the table, which ends in `.csv` or `.jsonl`.
            predictor: that answers.
            timeline: whether rows have the clips, too; of `.jsonl` alone.

        Raises:
            InputError: another process is at work on it, it is of another network or of other
                settings, or no such table at all.
            OSError: it cannot be read or written.
        """
        self._path = Path(os.path.realpath(path))
        self._predictor = predictor
        self._timeline = timeline
        self._by = predictor.identity + ("+timeline" if timeline else "")
        self._is_csv = self._path.suffix == ".csv"
        self._columns = [*csv_columns(predictor), *_KEPT]
        self._head = _csv_row(self._columns) if self._is_csv else b""
        # Of each file that is answered: why it could not be used, or None.
        self._done: dict[str, str | None] = {}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _open_locked(self._path)
        try:
            self._begin()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "GrowingTable":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def answered(self) -> Iterable[str]:
        """The files that are answered, in the order of the table."""
        return self._done.keys()

    def has(self, path: str) -> bool:
        """Whether a file is answered, and has not changed between then and when this was opened."""
        return path in self._done

    def error(self, path: str) -> str | None:
        """Why a file that is answered could not be used, or None."""
        return self._done[path]

    def add(self, result: "Prediction", stamp: tuple[int, int]) -> None:
        """Appends an answer.

        Args:
            result: whose source is an absolute path.
            stamp: `stamp_of` the file, from before it was read.
        """
        kept = dict(zip(_KEPT, (*stamp, self._by), strict=True))
        if self._is_csv:
            row = _csv_row([*csv_cells(result, self._predictor), *kept.values()])
        else:
            found = json_object(result, self._timeline) | kept
            row = _encoded(json.dumps(found, ensure_ascii=False) + "\n")
        self._append(row)
        self._done[result.source] = result.error

    def _append(self, row: bytes) -> None:
        self._file.write(row)
        self._file.flush()

    def _begin(self) -> None:
        """Takes in what is there, and makes it whole."""
        stale = 0
        end = 0
        for row, _, whole in self._rows():
            end = whole
            if row and _is_stale(row):
                stale += 1
            elif row:
                self._done[row["path"]] = row.get("error") or None
        self._file.truncate(end)
        if stale:
            self._leave_out_stale()
        if end == 0:
            self._append(self._head)

    def _leave_out_stale(self) -> None:
        """Writes the table anew, without the rows of files that changed."""
        old = self._file
        with replacing(self._path) as part, open(part, "wb") as new:
            for row, start, end in self._rows():
                if not row or not _is_stale(row):
                    new.write(os.pread(old.fileno(), end - start, start))
        self._file = _open_locked(self._path)
        old.close()

    def _rows(self) -> Iterator[tuple[dict[str, Any], int, int]]:
        """The whole rows, and where in bytes each begins and ends; a table's head is an empty row.

        A last row that is torn is passed over.

        Raises:
            InputError: a row is none that this command and network write.
        """
        start = 0
        record = bytearray()
        quotes = 0
        number = 1
        with open(self._path, "rb") as file:
            for line in file:
                record += line
                quotes += line.count(b'"')
                # An odd number of quotes: the line ends within a name or a reason.
                if not line.endswith(b"\n") or (self._is_csv and quotes % 2):
                    continue
                yield self._parsed(bytes(record), number), start, start + len(record)
                start += len(record)
                record.clear()
                number += 1
        expected = self._head if number == 1 else b""
        if not self._is_csv:
            expected = _JSON_START
        ours = record.startswith(expected) or expected.startswith(record)
        if not ours or (self._is_csv and len(record) > _LONGEST_TORN):
            raise self._foreign(number)

    def _parsed(self, record: bytes, number: int) -> dict[str, Any]:
        """A row by column, empty for the head; errors as `_rows` has them."""
        if self._is_csv and number == 1:
            if record == self._head:
                return {}
            other = record.rstrip().endswith(_KEPT[-1].encode())
            raise self._of_another() if other else self._foreign(number)
        try:
            row = self._by_column(record.decode())
            row["path"] = _named(row["path"])
            row |= {"size": int(row["size"]), "mtime_ns": int(row["mtime_ns"])}
            by = row["answered_by"]
        except (ValueError, KeyError, TypeError, RecursionError, csv.Error):
            raise self._foreign(number) from None
        if by != self._by:
            raise self._of_another()
        return row

    def _by_column(self, text: str) -> dict[str, Any]:
        if not self._is_csv:
            return dict(json.loads(text))
        (cells,) = csv.reader(io.StringIO(text, newline=""))
        return dict(zip(self._columns, cells, strict=True))

    def _of_another(self) -> InputError:
        return InputError(
            f"--output={self._path} holds answers of another network or of other settings "
            "(--unknown, --timeline): name another --output"
        )

    def _foreign(self, number: int) -> InputError:
        return InputError(
            f"--output={self._path}: row {number} is none that this command wrote: name another "
            "--output"
        )


def _open_locked(path: Path) -> BinaryIO:
    """Opens a table for this process alone, which ends with it."""
    file = open(path, "a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another process may just have put another file in its place.
        if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
            return file
    except BlockingIOError:
        pass
    file.close()
    raise InputError(f"--output={path} is written by another process")


def _is_stale(row: Mapping[str, Any]) -> bool:
    """Whether a row's file is there, and not as it was."""
    stamp = stamp_of(row["path"])
    return stamp != (0, 0) and stamp != (row["size"], row["mtime_ns"])


def _csv_row(cells: Iterable[Any]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(cells)
    return _encoded(text.getvalue())


def _encoded(text: str) -> bytes:
    """Names of files need not be UTF-8, but tables should be: other bytes become `\\udcff`."""
    return text.encode(errors="backslashreplace")


def _named(path: str) -> str:
    """The file's name that `_encoded` wrote."""
    return re.sub(r"\\udc([89a-f][0-9a-f])", lambda found: chr(0xDC00 + int(found[1], 16)), path)
