"""`TableStorage`: rows of a log in a table that outlives the window.

A row is `{stream: value}`. A list and a pandas DataFrame keep the values themselves. A pyarrow Table, and
a Parquet file, keep them as text of the log's own format (timespans/codec.py), with `core` as a column
of records, so that other tools can read the times.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from typing import Any

from .. import forks
from ..errors import InvalidOptionError, LogFormatError, MissingExtraError
from ..timespans.codec import decode, encode
from .core import CoreRecord

__all__ = ["TableStorage"]

_EXTRA = "viz"
_VERSION = b"1"
_META = b"otel_timespan_table"


class TableStorage:
    """A creation handler of `LogWindow` that appends each row to a table.

    `table`: a list (of dicts; the default is a new one), a pandas DataFrame, or a pyarrow Table or
    Schema whose columns are the streams. A DataFrame without columns takes those of the first row.
    `table` is the attribute for the inner table, `storage[lo:hi]` and `range(lo, hi)` give a table of the
    same kind with the rows whose `core` timestamp (monotonic ns) is between both, *ends included*.

    Raises `InvalidOptionError` for another kind of table and for a row whose streams are not the columns.
    Thread-safe.
    """

    def __init__(self, table: Any = None, core: str = "core") -> None:
        self.core = core
        self._lock = forks.rlock()
        self._kind = _kind_of([] if table is None else table)
        self._table = self._kind.adopt([] if table is None else table)
        self._rows: list[dict[str, Any]] = []  # appended, not yet in a table that is dear to append to

    @property
    def table(self) -> Any:
        """The inner table, with all rows so far."""
        with self._lock:
            if self._rows:
                rows, self._rows = self._rows, []
                self._table = self._kind.extend(self._table, rows)
            return self._table

    @property
    def columns(self) -> list[str] | None:
        """The names of the streams; None where the table does not know them yet."""
        with self._lock:
            return self._kind.columns(self._table) or (list(self._rows[0]) if self._rows else None)

    def creation_hook(self, row: dict[str, Any]) -> None:
        """Append a row. Raises `InvalidOptionError` if its streams are not the table's columns."""
        with self._lock:
            columns = self.columns
            if columns is not None and set(columns) != set(row):
                raise InvalidOptionError(
                    f"the table has the columns {sorted(columns)}, the row {sorted(row)}: "
                    "add all consumers before the first event, or begin a new table"
                )
            if isinstance(self._table, list):
                self._table.append(dict(row))
            else:
                self._rows.append(dict(row))

    def __len__(self) -> int:
        with self._lock:
            return len(self._table) + len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows as dicts of values."""
        return iter(self._kind.rows(self.table))

    def range(self, lo: int | None = None, hi: int | None = None) -> Any:
        """The rows between two times in ns, both ends included; None is open. A table of the same kind."""
        with self._lock:
            table = self.table
            keep = [i for i, time in enumerate(self._kind.times(table, self.core)) if _between(time, lo, hi)]
            return self._kind.take(table, keep)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice):
            raise InvalidOptionError(f"a TableStorage is sliced by times, storage[lo:hi], not {key!r}")
        if key.step is not None:
            raise InvalidOptionError("a TableStorage has no step: storage[lo:hi]")
        return self.range(key.start, key.stop)

    def init_similar(self) -> TableStorage:
        """An empty one of the same kind with the same columns."""
        with self._lock:
            return TableStorage(self._kind.take(self.table, []), self.core)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all rows to a Parquet file. Raises `MissingExtraError` without pyarrow."""
        arrow = _Arrow()
        parquet = _library("pyarrow.parquet")
        with self._lock:
            rows = self._kind.rows(self.table)
            columns = self.columns or []
        parquet.write_table(arrow.from_rows(rows, columns), os.fspath(path))

    @classmethod
    def load(cls, path: str | os.PathLike[str], core: str = "core") -> TableStorage:
        """What `save` wrote, as a list of dicts. Raises `LogFormatError` for any other file."""
        arrow, parquet, library = _Arrow(), _library("pyarrow.parquet"), _library("pyarrow")
        try:
            table = parquet.read_table(os.fspath(path))
        except library.ArrowInvalid as error:
            raise LogFormatError(f"{os.fspath(path)}: no whole Parquet file ({error}); save the table anew") from error
        if (table.schema.metadata or {}).get(_META) != _VERSION:
            raise LogFormatError(f"{os.fspath(path)}: no table of ours; give a file that TableStorage.save wrote")
        return cls(arrow.rows(table), core)


def _between(time: int | None, lo: int | None, hi: int | None) -> bool:
    return time is not None and (lo is None or lo <= time) and (hi is None or time <= hi)


def _time(row: Any) -> int | None:
    if row is None:
        return None
    time: int = row["timestamp"] if isinstance(row, dict) else row.timestamp
    return time


def _kind_of(table: Any) -> Any:
    """How to treat this table, known by the name of its class so that no library is loaded for it."""
    if isinstance(table, list):
        return _List()
    home, name = type(table).__module__.partition(".")[0], type(table).__name__
    if home == "pandas" and name == "DataFrame":
        return _Pandas()
    if home == "pyarrow" and name in ("Table", "Schema"):
        return _Arrow()
    raise InvalidOptionError(
        f"TableStorage takes a list, a pandas DataFrame, or a pyarrow Table or Schema, not {type(table).__name__}"
    )


class _List:
    """A list of dicts."""

    def adopt(self, table: list[Any]) -> list[Any]:
        return table

    def columns(self, table: list[Any]) -> list[str]:
        return list(table[0]) if table else []

    def extend(self, table: list[Any], rows: list[Any]) -> list[Any]:
        return [*table, *rows]

    def rows(self, table: list[Any]) -> list[Any]:
        return list(table)

    def times(self, table: list[Any], core: str) -> list[int | None]:
        return [_time(row.get(core)) for row in table]

    def take(self, table: list[Any], keep: list[int]) -> list[Any]:
        return [table[i] for i in keep]


class _Pandas:
    """A DataFrame with one column of objects a stream."""

    def adopt(self, table: Any) -> Any:
        return table.astype(object)

    def columns(self, table: Any) -> list[str]:
        return [str(name) for name in table.columns]

    def extend(self, table: Any, rows: list[Any]) -> Any:
        pandas = _library("pandas")
        names = self.columns(table) or list(rows[0])
        # Cell by cell into object columns: a DataFrame takes records and lists apart if it may.
        new = {name: pandas.Series([row[name] for row in rows], dtype=object) for name in names}
        if len(table) == 0:
            return pandas.DataFrame(new, columns=names)
        return pandas.concat([table, pandas.DataFrame(new, columns=names)], ignore_index=True)

    def rows(self, table: Any) -> list[Any]:
        names = self.columns(table)
        return [dict(zip(names, cells, strict=True)) for cells in table.itertuples(index=False, name=None)]

    def times(self, table: Any, core: str) -> list[int | None]:
        return [_time(row) for row in table[core]] if core in table.columns else []

    def take(self, table: Any, keep: list[int]) -> Any:
        return table.iloc[keep].reset_index(drop=True)


class _Arrow:
    """A pyarrow Table: the column of core records as structs, all others as text."""

    def __init__(self) -> None:
        self._pyarrow = _library("pyarrow")

    def adopt(self, table: Any) -> Any:
        if type(table).__name__ == "Schema":
            return self.from_rows([], table.names)
        if table.schema != self._schema(table.schema.names):
            if len(table):
                raise InvalidOptionError("this pyarrow Table has rows of another kind; give an empty one or a Schema")
            return self.from_rows([], table.schema.names)
        return table

    def _schema(self, names: list[str]) -> Any:
        pa = self._pyarrow
        record = pa.struct([("timestamp", pa.int64()), ("category", pa.string()), ("kind", pa.string())])
        fields = [(name, record if name == "core" else pa.string()) for name in names]
        return pa.schema(fields, metadata={_META: _VERSION})

    def from_rows(self, rows: list[Any], names: list[str]) -> Any:
        schema = self._schema(names)
        columns = {name: [_cell(row.get(name), name == "core") for row in rows] for name in names}
        return self._pyarrow.table(columns, schema=schema)

    def columns(self, table: Any) -> list[str]:
        return list(table.schema.names)

    def extend(self, table: Any, rows: list[Any]) -> Any:
        names = self.columns(table) or list(rows[0])
        new = self.from_rows(rows, names)
        return self._pyarrow.concat_tables([table, new]) if len(table) else new

    def rows(self, table: Any) -> list[Any]:
        names = self.columns(table)
        cells = [[_value(cell, name == "core") for cell in table[name].to_pylist()] for name in names]
        return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]

    def times(self, table: Any, core: str) -> list[int | None]:
        if core not in table.schema.names:
            return []
        return [None if cell is None else cell["timestamp"] for cell in table[core].to_pylist()]

    def take(self, table: Any, keep: list[int]) -> Any:
        return table.take(self._pyarrow.array(keep, self._pyarrow.int64()))


def _cell(value: Any, is_core: bool) -> Any:
    if is_core:
        return None if value is None else {**dict(value), "category": _utf8(value["category"])}
    return None if value is None else json.dumps(encode(value))


def _utf8(text: str) -> str:
    """Arrow holds UTF-8: a lone surrogate is kept as `\\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()


def _value(cell: Any, is_core: bool) -> Any:
    if cell is None:
        return None
    return CoreRecord(**cell) if is_core else decode(json.loads(cell))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name.partition(".")[0], _EXTRA) from error
