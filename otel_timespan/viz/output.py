"""Opening files for pictures, with errors that say what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from ..errors import InvalidOptionError
from ..timespans.texts import for_file

__all__ = ["open_output", "write_output"]


@contextmanager
def open_output(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Open a text file for writing. Raises `InvalidOptionError` (with the path) when that is not possible."""
    try:
        # What a registered mode makes may hold what is no UTF-8; ours don't.
        file = open(path, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115 - closed below, by `with`
    except OSError as error:
        raise InvalidOptionError(
            f"can't write {os.fspath(path)!r}: {error.strerror or error}. Give a path in a folder that exists "
            "and that you may write to"
        ) from error
    with file:
        yield file


def write_output(io: Any, text: str) -> None:
    """Write text to an open file, or to a path. Raises `InvalidOptionError` for anything else."""
    if isinstance(io, (str, os.PathLike)):
        with open_output(io) as file:
            file.write(text)
    elif callable(getattr(io, "write", None)):
        io.write(for_file(text, io))
    else:
        raise InvalidOptionError(f"io is an open text file or a path, not {io!r}")
