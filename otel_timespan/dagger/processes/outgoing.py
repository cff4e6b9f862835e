"""From a task to the message that gives it to a worker.

See docs/workers.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..bodies.results import as_chunk
from ..core.placement import share_on
from ..data.chunks import Chunk, DRef
from ..data.read import read
from ..options.options import DEFAULT, Options
from ..options.scoped import propagated
from ..records.sizes import approx_size
from ..service import surroundings
from ..tasks.dtask import DTask, Result
from .handles import PackedDRef, RemoteDRef
from .values import LARGE
from .wire import PLAIN, TASK, dumps, is_plain, pack, packed

if TYPE_CHECKING:
    from .remote import Remote

__all__ = ["argument_item", "outcome_item", "task_message"]

TAKEN_ALONG = frozenset(("get_result", "meta", "name", "result_scope", "return_type", "timeout"))
"""Options that mean something where a body runs; the others are the head's."""


def task_message(remote: Remote, task: DTask, attempt: int, pinned: Any, messages: list[Any]) -> Any:
    """The TASK message of a task; what must come before it goes into `messages`. Raises what pickling raises.

    What other workers have of its inputs is exported (values.py). `pinned`: None, or (slot, its share, the slots where
    it may run), by thread ids.
    """
    remote.values.begin_message()
    try:
        return _task_message(remote, task, attempt, pinned, messages)
    except BaseException:
        remote.values.undo_message()
        raise


def _task_message(remote: Remote, task: DTask, attempt: int, pinned: Any, messages: list[Any]) -> Any:
    f = task._f
    function: Any = remote.functions.number_of(f, messages.append)
    if function is None:
        function = (argument_item(remote, f),)
    options, take = None, argument_item
    if task._options is not DEFAULT:
        options = _options_item(remote, task._options)
        if task._options.meta:
            take = _meta_item
    args = task._args
    if args:
        args = tuple([value if type(value) in PLAIN else take(remote, value) for value in args])
    kwargs = None
    if task._kwargs:
        kwargs = {name: take(remote, value) for name, value in task._kwargs.items()}
    around = None
    if surroundings.travel() and task._context is not None:
        around = task._context.run(surroundings.written, lambda value: dumps(value, remote.handles)[0])
    return (TASK, task.id, attempt, pinned, function, args, kwargs, options, around)


def argument_item(remote: Remote, value: Any) -> Any:
    """What stands in a message for an argument: for a task its result, for a chunk its content, else the value."""
    kind = type(value)
    if kind is DTask:
        outcome = value._outcome
        if type(outcome) is DRef and type(outcome.value) in PLAIN:  # as below, without two calls
            return outcome.value
        return outcome_item(remote, outcome)
    if kind is Chunk:
        return outcome_item(remote, value.handle)
    if is_plain(value):
        return value
    nbytes = approx_size(value)
    if nbytes is not None and nbytes >= LARGE:
        item = remote.values.given_item(remote, value, nbytes)
        if item is not None:
            return item
    return packed(value, remote.handles, nbytes)


def _meta_item(remote: Remote, value: Any) -> Any:
    """With the option `meta` a body gets chunks as they are, and for tasks the chunks of their results."""
    return pack(as_chunk(value), remote.handles)


def outcome_item(remote: Remote, outcome: DRef | Result) -> Any:
    """What stands in a message for the result of a task."""
    kind = type(outcome)
    if kind is PackedDRef:
        return outcome.item  # type: ignore[union-attr]
    item = None
    if kind is RemoteDRef:
        item = remote.values.item_of(remote, outcome)  # type: ignore[arg-type]
    elif kind is not Result and (outcome.nbytes or 0) >= LARGE:  # type: ignore[union-attr]
        item = remote.values.our_item(remote, outcome)  # type: ignore[arg-type]
    if item is not None:
        return item
    return pack(read(outcome), remote.handles)


def _options_item(remote: Remote, options: Options) -> Any:
    """(what holds for the body, what it hands down), as bytes; None where there is nothing."""
    kept = {name: value for name, value in options.__dict__.items() if name in TAKEN_ALONG}
    handed_down = propagated(options)
    return dumps((kept, handed_down), remote.handles)[0] if kept or handed_down else None


def pinned_to(task: DTask, slot: Any, slots: Any) -> Any:
    """See `task_message`."""
    return slot.number, share_on(task._options, slot.processor), tuple([one.number for one in slots])
