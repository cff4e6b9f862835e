"""The identity of this host for this user: one random uuid, kept in a temporary file.

All processes of a user on a host must agree, also when they start at the same moment, so the file appears
complete or not at all: it is written under another name and then linked to its own. A file that is damaged
or belongs to somebody else is never repaired (two repairers would disagree) but passed over for the next
name, which every process does alike.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import logging
import os
import platform
import stat
import tempfile
import uuid
from pathlib import Path

from ... import forks

__all__ = ["node_uuid", "read_or_create"]

_log = logging.getLogger("otel_timespan")

_NAMES = 8
"""How many names are tried before the temporary folder is given up."""


@functools.lru_cache(maxsize=1)
def node_uuid() -> str:
    """The uuid of this host for this user; the same in all processes. Thread-safe, never raises.

    Where the temporary folder can't be used it is derived from the names of host and user instead.
    """
    try:
        with forks.held_off:
            return read_or_create(Path(tempfile.gettempdir()))
    except OSError as error:
        derived = str(uuid.uuid5(uuid.NAMESPACE_DNS, _owner()))
        _log.warning("no node uuid can be kept (%s); using %s, derived from host and user", error, derived)
        return derived


def read_or_create(folder: Path) -> str:
    """The node uuid kept in `folder`, made now where there is none. Raises `OSError`."""
    # The name carries the host because temporary folders are sometimes shared over a network.
    stem = f"otel-timespan-node-{hashlib.sha256(_owner().encode()).hexdigest()[:16]}"
    for attempt in range(_NAMES):
        path = folder / (f"{stem}-{attempt}" if attempt else stem)
        found = _read(path) if os.path.lexists(path) else _create(path)
        if found is not None:
            return found
    raise OSError(f"{_NAMES} files called {stem}* in {folder} are damaged or not ours")


def _owner() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container without an entry for its user
        user = str(os.geteuid()) if hasattr(os, "geteuid") else "unknown"
    return f"{user}@{platform.node()}"


def _create(path: Path) -> str | None:
    descriptor, temporary = tempfile.mkstemp(prefix=".node-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(str(uuid.uuid4()))
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links: a rename is complete or nothing too
            if not os.path.lexists(path):
                os.replace(temporary, path)
        return _read(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _read(path: Path) -> str | None:
    """The uuid in the file, None where it is damaged or not this user's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, PermissionError):
        return None
    except OSError:  # a symbolic link, planted or not, is not our file
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            return None
        text = file.read(64)
    try:
        return str(uuid.UUID(text.decode("ascii").strip()))
    except ValueError:
        return None
