"""What the value of each option may be: one check a name, which returns the value as it is kept.

Source: spec/scheduler.md §4.1.
"""

from __future__ import annotations

import difflib
import math
import operator
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ...errors import InvalidOptionError
from ..places.devices import StorageDevice
from ..places.processors import Processor
from ..places.scopes import InvalidScope, Scope

__all__ = ["CHECKS", "REMOVED", "check", "is_option", "unknown_option"]

Check = Callable[[str, Any], Any]

REMOVED = frozenset(("cache", "persist", "procutil"))
"""Names that Dagger's documents still mention and that mean nothing any more."""


def _wrong(name: str, value: object, wanted: str) -> InvalidOptionError:
    return InvalidOptionError(f"option {name}={value!r}: it must be {wanted}")


def _anything(name: str, value: Any) -> Any:
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    return value


def _flag(name: str, value: Any) -> bool:
    # numpy's bools are neither `bool` nor harmful; 0 and "no" more often are mistakes than not.
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise _wrong(name, value, "True or False")


def _whole(name: str, value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise _wrong(name, value, "an integer") from None


def _at_least(lowest: int) -> Check:
    def check_lowest(name: str, value: Any) -> int:
        number = _whole(name, value)
        if number < lowest:
            raise _wrong(name, value, f"an integer of at least {lowest}")
        return number

    return check_lowest


def _max_evals(name: str, value: Any) -> int:
    number = _whole(name, value)
    if number == 0:
        raise _wrong(name, value, "an integer other than 0 (-1: no limit)")
    return number


def _amount(name: str, value: Any, wanted: str) -> float:
    try:
        number = float(value) if not isinstance(value, (bool, str)) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise _wrong(name, value, wanted)
    return number


def _seconds(name: str, value: Any) -> float:
    number = _amount(name, value, "a number of seconds, 0 or more")
    if number < 0 or math.isinf(number):
        raise _wrong(name, value, "a number of seconds, 0 or more")
    return number


def _delay(name: str, value: Any) -> Any:
    if callable(value) and not isinstance(value, type):
        return value
    try:
        return _seconds(name, value)
    except InvalidOptionError:
        raise _wrong(name, value, "a number of seconds, 0 or more, or a function of the attempt that failed") from None


def retry_delay_s(value: Any, attempt: int) -> float:
    """The option `retry_delay` after this attempt failed. Raises `InvalidOptionError` for what a function gives."""
    if not callable(value):
        return float(value or 0.0)
    try:
        return _seconds("retry_delay", value(attempt))
    except InvalidOptionError as error:
        raise InvalidOptionError(f"{error}: it is what the function gave for attempt {attempt}") from None
    except BaseException as error:  # of the user's, in the middle of the scheduler
        text = f"the function of the option retry_delay failed for attempt {attempt}: {error!r}"
        raise InvalidOptionError(text) from error


def _exceptions(name: str, value: Any) -> tuple[type[Exception], ...]:
    kinds = value if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise _wrong(name, value, "a type of exceptions, or a tuple of such")
    return tuple(kinds)


def _limit_s(name: str, value: Any) -> float:
    number = _amount(name, value, "a number of seconds, more than 0")
    if number <= 0:
        raise _wrong(name, value, "a number of seconds, more than 0")
    return number


def _scope(name: str, value: Any) -> Scope:
    if isinstance(value, InvalidScope):
        raise _wrong(name, value, "a scope that some processor can be in")
    if not isinstance(value, Scope):
        raise _wrong(name, value, "a scope, such as ProcessScope(1) or scope(worker=1)")
    return value


def _processor(name: str, value: Any) -> Processor:
    if not isinstance(value, Processor):
        raise _wrong(name, value, "a Processor, such as ThreadProc(1, 1)")
    return value


def _function(name: str, value: Any) -> Any:
    if not callable(value):
        raise _wrong(name, value, "a function")
    return value


def _type(name: str, value: Any) -> Any:
    if isinstance(value, type) or value is Any or typing.get_origin(value) is not None:
        return value
    raise _wrong(name, value, "a type")


def _type_or_function(name: str, value: Any) -> Any:
    if not callable(value):
        raise _wrong(name, value, "a type (or function) that makes buffers")
    return value


_deprecated: set[str] = set()


def _warn_deprecated(name: str) -> None:
    if name not in _deprecated:
        _deprecated.add(name)
        text = f"the option {name!r} is deprecated: use scope, such as scope(worker=1) or scope(threads='all')"
        warnings.warn(text, DeprecationWarning, stacklevel=6)


def _single(name: str, value: Any) -> int:
    worker: int = _at_least(1)(name, value)
    _warn_deprecated(name)
    return worker


def _proclist(name: str, value: Any) -> Any:
    wanted = "a list of processor types, such as [ThreadProc], or a function of a processor"
    if isinstance(value, Iterable) and not isinstance(value, (type, str, bytes, Mapping)):
        kept: Any = tuple(value)
        if not all(isinstance(kind, type) and issubclass(kind, Processor) for kind in kept):
            raise _wrong(name, value, wanted)
    elif callable(value) and not isinstance(value, type):
        kept = value
    else:
        raise _wrong(name, value, wanted)
    _warn_deprecated(name)
    return kept


def _tasks(name: str, value: Any) -> set[Any]:
    # A task is not iterable, but Python would iterate over anything with a `__getitem__`.
    if not hasattr(type(value), "__iter__") or isinstance(value, (str, bytes, Mapping)):
        raise _wrong(name, value, "a set or list of tasks")
    try:
        kept = set(value)
    except TypeError as error:
        raise _wrong(name, value, f"a set of tasks ({error})") from None
    if not all(hasattr(one, "id") for one in kept):
        raise _wrong(name, value, "a set or list of tasks")
    return kept


def _by_type(wanted: str, lowest: float, highest: float, clamp: bool) -> Check:
    """A mapping from types (or `Any`) to numbers between `lowest` and `highest`."""

    def check_mapping(name: str, value: Any) -> dict[Any, float]:
        if not isinstance(value, Mapping):
            raise _wrong(name, value, wanted)
        kept: dict[Any, float] = {}
        for kind, share in value.items():
            if not (isinstance(kind, type) or kind is Any):
                raise _wrong(name, value, wanted)
            number = _amount(name, share, wanted)
            if clamp:
                number = min(max(number, lowest), highest)
            elif not lowest <= number < highest:
                raise _wrong(name, value, wanted)
            kept[kind] = number
        return kept

    return check_mapping


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes)):
        raise _wrong(name, value, "a list of names of options")
    names = tuple(dict.fromkeys(value))
    for one in names:
        if not isinstance(one, str) or one not in CHECKS:
            raise unknown_option(one)
    return names


def _limit_names(name: str, value: Any) -> tuple[str, ...]:
    wanted = "the name of a limit (see set_limit), or a tuple of names"
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        raise _wrong(name, value, wanted)
    names = tuple(dict.fromkeys(value))
    if not names or not all(isinstance(one, str) and one for one in names):
        raise _wrong(name, value, wanted)
    return names


def _storage(name: str, value: Any) -> Any:
    if not isinstance(value, StorageDevice):
        raise _wrong(name, value, "a storage device, such as storage.RAMDevice()")
    return value


def _task_queue(name: str, value: Any) -> Any:
    if not callable(getattr(value, "enqueue", None)):
        raise _wrong(name, value, "a TaskQueue (it needs a method enqueue)")
    return value


CHECKS: dict[str, Check] = {
    "propagates": _names,
    "processor": _processor,
    "scope": _scope,
    "compute_scope": _scope,
    "result_scope": _scope,
    "exec_scope": _scope,
    "single": _single,
    "proclist": _proclist,
    "get_result": _flag,
    "meta": _flag,
    "syncdeps": _tasks,
    "time_util": _by_type("seconds (0 or more) by processor type: {ThreadProc: 0.5}", 0, math.inf, False),
    "alloc_util": _by_type("bytes (0 or more) by processor type: {ThreadProc: 1e6}", 0, math.inf, False),
    "occupancy": _by_type("shares from 0 to 1 by processor type or Any: {ThreadProc: 0.5}", 0, 1, True),
    "checkpoint": _function,
    "restore": _function,
    "storage": _storage,
    "storage_root_tag": _anything,
    "storage_leaf_tag": _anything,
    "storage_retain": _flag,
    "name": _text,
    "tag": _whole,
    "stream_input_buffer_amount": _at_least(1),
    "stream_output_buffer_amount": _at_least(1),
    "stream_buffer_type": _type_or_function,
    "stream_max_evals": _max_evals,
    "acceleration": _anything,
    "return_type": _type,
    "retries": _at_least(0),
    "retry_delay": _delay,
    "retry_on": _exceptions,
    "timeout": _limit_s,
    "limit": _limit_names,
}
"""The options of a task, in the order of the spec's table."""

_SCOPED_ONLY: dict[str, Check] = {"task_queue": _task_queue}


def is_option(name: object, scoped: bool = False) -> bool:
    """Whether there is an option of this name; `scoped`: `with_options` takes a few more."""
    return name in CHECKS or (scoped and name in _SCOPED_ONLY)


def check(name: str, value: Any, scoped: bool = False) -> Any:
    """The value as an option keeps it. Raises `InvalidOptionError` for a wrong name or value."""
    found = CHECKS.get(name) or (_SCOPED_ONLY.get(name) if scoped else None)
    if found is None:
        raise unknown_option(name)
    return found(name, value)


def unknown_option(name: object) -> InvalidOptionError:
    """The error for a name that is no option, with the one that was perhaps meant."""
    if name in _SCOPED_ONLY:
        return InvalidOptionError(f"{name!r} is no option of a task: use with_options({name}=...) around the spawn")
    if name in REMOVED:
        return InvalidOptionError(f"the option {name!r} does not exist any more: leave it out")
    near = difflib.get_close_matches(str(name), CHECKS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(CHECKS)}"
    return InvalidOptionError(f"there is no option {name!r}: {hint}")
