"""Real child processes of tests: programs that say when they are ready, and are gone after the test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def child(program: str, *args: object, pass_fds: Sequence[int] = ()) -> Iterator[subprocess.Popen[str]]:
    """A Python program, once it has printed its first line, which `said` gives. Killed at the end."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, args)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, pass_fds=pass_fds, start_new_session=True
    )
    try:
        assert process.stdout is not None
        command.append(process.stdout.readline().strip())
        assert command[-1], "it ended before it was ready"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    """The first line of a `child`."""
    return list(process.args)[-1]  # type: ignore[arg-type]


def stop(process: subprocess.Popen[str]) -> None:
    """SIGSTOP, and wait until it has."""
    process.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
