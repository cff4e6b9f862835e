"""Files as arguments of tasks: a `File` stands for the contents of a file and is read where it is used.

See docs/data.md.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ...errors import InvalidOptionError, NotCallableError
from ..places.devices import FileFormat
from ..places.processors import OSProc
from ..places.scopes import ProcessScope
from ..tasks.references import Reference

__all__ = ["File", "tofile"]

PathLike = str | os.PathLike[str]


class File(Reference[Any, NoReturn]):
    """A lazy reference to the contents of a file. Immutable; thread-safe; equal when path and format are.

    `path`: relative to the current folder now. `deserialize(source)` gets an open binary file, its path
    where `use_io` is false, or with `mmap` the file mapped into memory; the default is pickle: read only
    files that you trust. `serialize` is kept for `tofile`. Nothing is read until the contents are used, and
    then each time anew. The file stays when the reference dies. Raises `InvalidOptionError` if it is missing.

    As an argument of a task the contents arrive; `scope` is the process that made the reference.
    """

    __slots__ = ("format", "path", "processor", "scope")

    def __init__(
        self,
        path: PathLike,
        *,
        serialize: Callable[[Any, Any], Any] = pickle.dump,
        deserialize: Callable[[Any], Any] = pickle.load,
        use_io: bool = True,
        mmap: bool = False,
    ) -> None:
        self.format = _format(serialize, deserialize, use_io, mmap)
        self.path = _absolute(path)
        if not self.path.is_file():
            raise InvalidOptionError(f"there is no file {self.path}: write it first, for example with tofile")
        self.processor = OSProc()
        self.scope = ProcessScope(self.processor)

    def fetch(self) -> Any:
        """The contents, read now. Raises `StorageError` if the file is gone or can't be deserialized."""
        return self.format.read(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, File) and (self.path, self.format) == (other.path, other.format)

    def __hash__(self) -> int:
        return hash(self.path)

    def __repr__(self) -> str:
        return f"File({str(self.path)!r})"


def tofile(
    data: Any,
    path: PathLike,
    *,
    serialize: Callable[[Any, Any], Any] = pickle.dump,
    deserialize: Callable[[Any], Any] = pickle.load,
    use_io: bool = True,
    mmap: bool = False,
) -> File:
    """Write `data` to a file, replacing it as a whole, and return the `File` for it.

    `serialize(data, target)` gets an open binary file, or a path where `use_io` is false (of another name
    with the same ending). See `File` for the rest. Raises `StorageError` if it can't be written.
    """
    form, target = _format(serialize, deserialize, use_io, mmap), _absolute(path)
    form.write(target, data)
    return File(target, serialize=serialize, deserialize=deserialize, use_io=use_io, mmap=mmap)


def _format(serialize: Any, deserialize: Any, use_io: bool, mmap: bool) -> FileFormat:
    for role, fn in (("serialize", serialize), ("deserialize", deserialize)):
        if not callable(fn):
            raise NotCallableError(f"{role} must be a function, not {fn!r}")
    return FileFormat(serialize, deserialize, use_io, mmap)


def _absolute(path: PathLike) -> Path:
    if not isinstance(path, (str, os.PathLike)) or isinstance(path, bytes):
        raise InvalidOptionError(f"{path!r} is no path")
    return Path(path).absolute()
