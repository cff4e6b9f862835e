"""A body that forked and comes to its end in the child, too.

There its thread is the only one, and not the interpreter's main one: when it has no more to run the process would be
gone without a word, or wait for ever for somebody to give it more. So the child ends as if the body had been its
program.
"""

from __future__ import annotations

from _thread import get_ident

from ...exits import end_process
from ..tasks.dtask import Failure
from ..tasks.environment import forked_in

__all__ = ["end_forked"]


def end_forked() -> None:
    """A thread has no more bodies to run: if this is a child that one of them forked, end it."""
    for task, thread in forked_in:
        if thread == get_ident():
            outcome = getattr(task, "_outcome", None)
            error = None
            if isinstance(outcome, Failure):
                outcome.retrieved, error = True, outcome.ex
            end_process(error)
