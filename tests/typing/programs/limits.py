"""What can't be said: a call that is right and refused, one that is wrong and not seen. See docs/typing.md."""

import json
from typing import Any

from typing_extensions import assert_type

from otel_timespan import DTask, Options, spawn


def two(a: int, b: str) -> float:
    return len(b) / a


def named(a: int, *, k: str) -> float:
    return len(k) / a


def by_name(*, k: str) -> float:
    return len(k)


def merge(*parts: int) -> int:
    return sum(parts)


def table(path: str = "") -> dict[str, Any]:
    return {path: 1}


async def co(x: int) -> str:
    return str(x)


number = spawn(len, "a")
text = spawn(str, 1)
anything: Any = json.loads("1")

# Refused: a task by keyword for what must be given, beside arguments by position or other keywords.
spawn(two, 1, b=text)  # error
spawn(named, number, k=text)  # error
spawn(two, a=1, b=text)  # error

# Not seen: names, values and number of what is given by keyword if all of that are tasks (it may be nothing, beside
# options or for a function that takes keywords only), inputs beyond the sixth, tasks behind a star.
spawn(two, b=text)
spawn(two, c=text)
spawn(two, 1, "a", c=text)
spawn(by_name)
spawn(two, Options())
spawn(merge, 1, 2, 3, 4, 5, 6, "wrong")
spawn(merge, *[text])

# Known as Any only.
assert_type(spawn(table), DTask[dict[str, Any]])  # error: mypy
assert_type(spawn(co, anything), DTask[str])  # error
assert_type(spawn(lambda x, y: (x, y), number, text), DTask[tuple[int, str]])  # error: mypy
