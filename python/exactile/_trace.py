"""Trace files: one column of a CSV file, read row by row. Its contents are untrusted."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MAX_ROWS = 1 << 24
"""Of a file that is read to its end."""

_MAX_ROW = 1 << 16
"""Characters of a row."""

_INT32_MAX = 2**31 - 1


def read_column(path: str | Path, column: str, start: int, batch: int | None) -> array[int]:
    """Lengths in rows start ... start + batch - 1, or to the end; raises as `workloads.trace`."""
    wanted = start + (MAX_ROWS if batch is None else batch)
    lengths = array("i")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = _rows(file, path)
            at = _position(column, next(rows, ("", []))[1], path)
            while len(lengths) < wanted and (row := next(rows, None)):
                lengths.append(_length(row[1][at : at + 1], row[0]))
            if batch is None and (row := next(rows, None)):
                raise ValueError(
                    f"trace: expected at most {wanted} rows without a batch, got more at {row[0]}"
                )
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"trace: expected a readable CSV file, got {path}: {error}") from error
    expected = start if batch is None else wanted
    if len(lengths) < expected:
        raise ValueError(f"trace: expected at least {expected} rows in {path}, got {len(lengths)}")
    return lengths[start:]


def _rows(file: IO[str], path: str | Path) -> Iterator[tuple[str, list[str]]]:
    """(``file:line``, fields) of every row that is not empty; never holds more than one."""
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        while line := file.readline(_MAX_ROW):
            size += len(line)
            if size >= _MAX_ROW:
                raise ValueError(
                    f"trace: expected rows of fewer than {_MAX_ROW} characters, got a longer one "
                    f"at {path}:{reader.line_num + 1}"
                )
            yield line

    reader = csv.reader(lines(), strict=True)
    for row in reader:
        if row:  # empty lines count for the next row: they may be endless too
            size = 0
            yield f"{path}:{reader.line_num}", row


def _position(column: str, names: list[str], path: str | Path) -> int:
    if not names:
        raise ValueError(f"trace: expected a CSV file with a header, got the empty file {path}")
    if column not in names:
        some = ", ".join(map(_quoted, names[:8])) + ", ..." * (len(names) > 8)
        raise ValueError(f"trace: expected a column {column!r} in {path}, got {some}")
    return names.index(column)


def _length(cells: list[str], where: str) -> int:
    """The one cell as a number of tokens; none where the row is too short."""
    try:
        length = int(cells[0])
    except (IndexError, ValueError):
        length = -1
    if not 0 <= length <= _INT32_MAX:
        got = _quoted(cells[0]) if cells else "a row that is too short"
        raise ValueError(f"trace: expected a length in tokens at {where}, got {got}")
    return length


def _quoted(text: str) -> str:
    """What a file holds as a message may show it: short, and without control characters."""
    return repr(text if len(text) <= 40 else text[:40] + "...")
