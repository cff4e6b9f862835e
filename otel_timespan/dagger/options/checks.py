"""What the values of options may be: one `Check` a kind of value, which says what is wanted and how it is kept.

A check knows no option's name: `refusal` makes the one text of all errors from the name, the value and what was
wanted.
"""

from __future__ import annotations

import math
import operator
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ...errors import InvalidOptionError
from ...timespans.durations import as_number
from ..places.devices import StorageDevice
from ..places.processors import Processor
from ..places.scopes import InvalidScope, Scope

__all__ = ["Check", "RefusedError", "refusal", "retry_delay_s"]


class RefusedError(Exception):
    """A check refuses a value. `wanted`: what it must be, where the check's own text does not fit."""

    def __init__(self, wanted: str | None = None) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class Check(NamedTuple):
    """What a value must be, to be read after "it must be", and a function that gives it as it is kept.

    `keep(value)` is never asked about None, and raises `RefusedError`. It may be called on any thread.
    """

    wanted: str
    keep: Callable[[Any], Any]


def refusal(name: str, value: object, wanted: str) -> InvalidOptionError:
    """The error for a value that an option can't have."""
    return InvalidOptionError(f"option {name}={value!r}: it must be {wanted}")


def _refuse_unless(fits: Callable[[Any], bool]) -> Callable[[Any], Any]:
    """Keeps the value itself."""

    def keep(value: Any) -> Any:
        if not fits(value):
            raise RefusedError
        return value

    return keep


def _instance_of(kind: type) -> Callable[[Any], Any]:
    """Keeps the value itself."""

    def keep(value: Any) -> Any:
        if not isinstance(value, kind):
            raise RefusedError
        return value

    return keep


def listed(value: Any) -> tuple[Any, ...]:
    """What is in a list, set or the like; a text or mapping is none. Raises `RefusedError`."""
    if not isinstance(value, Iterable) or isinstance(value, (type, str, bytes, Mapping)):
        raise RefusedError
    return tuple(value)


# --- plain values ------------------------------------------------------------------------------------


def _flag(value: Any) -> bool:
    # numpy's bools are neither `bool` nor harmful; 0 and "no" more often are mistakes than not.
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise RefusedError


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise RefusedError from None


def at_least(lowest: int) -> Check:
    """An integer of at least `lowest`."""

    def keep(value: Any) -> int:
        number = value if type(value) is int else _whole(value)
        if number < lowest:
            raise RefusedError
        return number

    return Check(f"an integer of at least {lowest}", keep)


def _not_zero(value: Any) -> int:
    number = _whole(value)
    if number == 0:
        raise RefusedError
    return number


def _number(value: Any) -> float:
    number = as_number(value)
    if number is None:
        raise RefusedError
    return number


def _seconds(value: Any) -> float:
    number = _number(value)
    if number < 0 or math.isinf(number):
        raise RefusedError
    return number


def _positive_seconds(value: Any) -> float:
    number = _number(value)
    if number <= 0:
        raise RefusedError
    return number


def _delay(value: Any) -> Any:
    return value if callable(value) and not isinstance(value, type) else _seconds(value)


ANYTHING = Check("anything", lambda value: value)
TEXT = Check("a string", _instance_of(str))
FLAG = Check("True or False", _flag)
INTEGER = Check("an integer", _whole)
EVALUATIONS = Check("an integer other than 0 (-1: no limit)", _not_zero)
SECONDS = Check("a number of seconds, 0 or more", _seconds)
POSITIVE_SECONDS = Check("a number of seconds, more than 0", _positive_seconds)
DELAY = Check("a number of seconds, 0 or more, or a function of the attempt that failed", _delay)


def retry_delay_s(value: Any, attempt: int) -> float:
    """The option `retry_delay` after this attempt failed. Raises `InvalidOptionError` for what a function gives."""
    if not callable(value):
        return float(value or 0.0)
    try:
        given = value(attempt)
    except BaseException as error:  # of the user's, in the middle of the scheduler
        raise InvalidOptionError(
            f"the function of the option retry_delay failed for attempt {attempt}: {error!r}"
        ) from error
    try:
        return _seconds(given)
    except RefusedError:
        text = refusal("retry_delay", given, SECONDS.wanted)
        raise InvalidOptionError(f"{text}: it is what the function gave for attempt {attempt}") from None


# --- places ------------------------------------------------------------------------------------------


def _scope(value: Any) -> Scope:
    if isinstance(value, InvalidScope):
        raise RefusedError("a scope that some processor can be in")
    if not isinstance(value, Scope):
        raise RefusedError
    return value


def _processors(value: Any) -> Any:
    if callable(value) and not isinstance(value, (type, Iterable)):
        return value
    kinds = listed(value)
    if not all(isinstance(kind, type) and issubclass(kind, Processor) for kind in kinds):
        raise RefusedError
    return kinds


SCOPE = Check("a scope, such as ProcessScope(1) or scope(worker=1)", _scope)
PROCESSOR = Check("a Processor, such as ThreadProc(1, 1)", _instance_of(Processor))
PROCESSORS = Check("a list of processor types, such as [ThreadProc], or a function of a processor", _processors)
STORAGE = Check("a storage device, such as storage.RAMDevice()", _instance_of(StorageDevice))

# --- functions, types and tasks ----------------------------------------------------------------------


def _is_type(value: Any) -> bool:
    return isinstance(value, type) or value is Any or typing.get_origin(value) is not None


def _exceptions(value: Any) -> tuple[type[Exception], ...]:
    kinds = value if isinstance(value, (tuple, list, set, frozenset)) else (value,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise RefusedError
    return tuple(kinds)


def _tasks(value: Any) -> set[Any]:
    # A task is not iterable, but Python would iterate over anything with a `__getitem__`.
    if not hasattr(type(value), "__iter__") or isinstance(value, (str, bytes, Mapping)):
        raise RefusedError
    try:
        kept = set(value)
    except TypeError as error:
        raise RefusedError(f"a set of tasks ({error})") from None
    if not all(hasattr(one, "id") for one in kept):
        raise RefusedError
    return kept


FUNCTION = Check("a function", _refuse_unless(callable))
TYPE = Check("a type", _refuse_unless(_is_type))
BUFFER_TYPE = Check("a type (or function) that makes buffers", _refuse_unless(callable))
EXCEPTIONS = Check("a type of exceptions, or a tuple of such", _exceptions)
TASKS = Check("a set or list of tasks", _tasks)
QUEUE = Check(
    "a TaskQueue (it needs a method enqueue)",
    _refuse_unless(lambda value: callable(getattr(value, "enqueue", None))),
)

# --- mappings and names ------------------------------------------------------------------------------


def _by_type(wanted: str, number_of: Callable[[Any], float]) -> Check:
    """A mapping from types (or `Any`) to numbers, as `number_of` keeps them."""

    def keep(value: Any) -> dict[Any, float]:
        if not isinstance(value, Mapping) or not all(isinstance(kind, type) or kind is Any for kind in value):
            raise RefusedError
        return {kind: number_of(share) for kind, share in value.items()}

    return Check(wanted, keep)


def _share(value: Any) -> float:
    return min(max(_number(value), 0.0), 1.0)


def _limits(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else listed(value)
    if not names or not all(isinstance(one, str) and one for one in names):
        raise RefusedError
    return tuple(dict.fromkeys(names))


SECONDS_BY_TYPE = _by_type("seconds (0 or more) by processor type: {ThreadProc: 0.5}", _seconds)
BYTES_BY_TYPE = _by_type("bytes (0 or more) by processor type: {ThreadProc: 1e6}", _seconds)
SHARES_BY_TYPE = _by_type("shares from 0 to 1 by processor type or Any: {ThreadProc: 0.5}", _share)
LIMITS = Check("the name of a limit (see set_limit), or a tuple of names", _limits)
