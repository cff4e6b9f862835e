"""A value that ends the worker that reads it: the task that it was given to is to blame, and workers are not spent."""

from __future__ import annotations

import os
import signal
import warnings
from typing import Any

import pytest

from otel_timespan import dagger as D


def die() -> None:
    """End this process, unless it is the one that made the value."""
    if D.myid() != 1:
        os.kill(os.getpid(), signal.SIGSEGV)


class Deadly:
    """Ends who reads it."""

    def __reduce__(self) -> Any:
        return die, ()


def test_a_value_that_ends_its_readers_is_given_up() -> None:
    """After as many workers as the option `worker_losses` says; others' tasks are done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with D.Context(procs=[], workers=2):
            bad = D.spawn(len, D.Options(worker_losses=1), Deadly())
            good = [D.spawn(abs, -n) for n in range(20)]
            with pytest.raises(D.WorkerLostError, match="len"):
                D.fetch(bad, timeout=60)
            assert [D.fetch(task, timeout=60) for task in good] == list(range(20))
