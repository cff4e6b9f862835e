"""Memory that processes share by a descriptor: it has no name, so nothing is left of it whoever dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile

from ... import forks

__all__ = ["nameless_file"]


def nameless_file(label: str, nbytes: int) -> int:
    """The descriptor of a file of zeros, of this size for ever, that is in no folder; close it.

    `label` is what Linux shows of it. A child inherits it only if told to. Raises `OSError` where it can't be had.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with forks.held_off, tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, nbytes)
    except OSError:
        os.close(fd)
        raise
    # Cut off by another process, it would kill whoever reads it. Systems that know no seals do without.
    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
