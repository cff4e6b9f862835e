"""Blocks of data to spill, full and read-only folders, and programs of their own."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.data import caching as module

KIB = 1024

MIB = 1024 * KIB


def block(n: int, size: int = 40 * KIB) -> bytearray:
    """`size` bytes of value n."""
    return bytearray([n]) * size


def first(data: Any) -> int:
    """What the data begins with."""
    return int(data[0])


def forget_settings() -> None:
    """As if nobody had ever called anything."""
    D.disable_disk_caching()
    module._was_chosen = False


def inner(task: D.DTask) -> BaseException:
    """What a task failed with, innermost."""
    D.wait(task)
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(task)
    return D.unwrap_exception(caught.value)


@contextlib.contextmanager
def read_only(folder: Path, aside: Path) -> Iterator[None]:
    """The folder takes no files. For root, whom no permission stops, a file system that takes none stands in."""
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)
        return
    folder.rename(aside)
    folder.symlink_to("/sys")
    yield
    folder.unlink()
    aside.rename(folder)


@contextlib.contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """Within the block the system refuses to let a file grow beyond this: as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def run(script: str) -> str:
    """What a script prints in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    root = Path(__file__).parents[3]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=root, timeout=120).stdout
