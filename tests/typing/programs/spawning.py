"""`spawn` knows the parameters and the result of what it is given."""

import asyncio
import functools
import json
import math
import operator
from collections.abc import Callable
from typing import Any

from typing_extensions import assert_type

from otel_timespan import Chunk, DTask, Options, spawn, tochunk
from otel_timespan.dagger import File, Shard, mutable, shard


def f(x: int) -> str:
    return str(x)


def g(x: int, y: str = "a", *, k: float = 0.0) -> list[int]:
    return [x, len(y), int(k)]


def two(a: int, b: str) -> float:
    return len(b) / a


def none() -> bytes:
    return b""


def merge(*parts: int, flag: bool = False) -> int:
    return sum(parts) + flag


def seven(a: int, b: int, c: int, d: int, e: int, x: int, z: int) -> bytes:
    return bytes([a, b, c, d, e, x, z])


def either(x: int) -> str | int | list[bytes]:
    return x


def perhaps(x: int) -> str | None:
    return str(x) if x else None


def takes_perhaps(x: str | None) -> int:
    return len(x or "")


def untyped_table(path: str, sep: str = ",") -> dict[str, Any]:
    return {path: sep}


async def co(x: int) -> str | None:
    return str(x)


def piece() -> Chunk[int]:
    return tochunk(1)


def of_chunks(c: Chunk[int], n: int) -> float:
    return c.fetch() / n


class Model:
    def __init__(self, n: int, name: str = "") -> None:
        self.n, self.name = n, name

    def predict(self, x: float) -> float:
        return self.n * x

    @classmethod
    def of(cls, text: str) -> "Model":
        return cls(len(text))


text = spawn(f, 1)
number = spawn(merge, 1, 2)
truth = spawn(bool, 1)
items = spawn(list[int], (1, 2))
anything: Any = json.loads("1")

# By position, values and what stands for one.
assert_type(text, DTask[str])
assert_type(number, DTask[int])
assert_type(spawn(none), DTask[bytes])
assert_type(spawn(f, number), DTask[str])
assert_type(spawn(f, truth), DTask[str])
assert_type(spawn(f, tochunk(1)), DTask[str])
assert_type(spawn(f, mutable(lambda: 3)), DTask[str])
assert_type(spawn(f, shard(lambda: 3)), DTask[str])
assert_type(spawn(f, File("x")), DTask[str])
assert_type(spawn(f, spawn(piece)), DTask[str])
assert_type(spawn(two, number, text), DTask[float])
assert_type(spawn(g, number, "b"), DTask[list[int]])
assert_type(spawn(takes_perhaps, spawn(perhaps, 1)), DTask[int])
assert_type(spawn(merge, *[number, number]), DTask[int])
assert_type(spawn(merge, *[1, 2], flag=True), DTask[int])
assert_type(spawn(seven, 1, number, 3, 4, 5, 6, number), DTask[bytes])
spawn(f, "wrong", 3)  # error
spawn(f, "wrong")  # error
spawn(f, text)  # error
spawn(f, tochunk("a"))  # error
spawn(f, 1, 2)  # error
spawn(f)  # error
missing = spawn(f)  # error
spawn(two, 1)  # error
spawn(two, "a", text)  # error
spawn(merge, "a")  # error
spawn(seven, "a", number, 3, 4, 5, 6, number)  # error
spawn(seven, 1, 2, 3, 4, 5, 6)  # error

# By keyword.
assert_type(spawn(f, x=1), DTask[str])
assert_type(spawn(f, x=number), DTask[str])
assert_type(spawn(two, a=number, b=text), DTask[float])
assert_type(spawn(two, 1, b="a"), DTask[float])
assert_type(spawn(two, number, b="a"), DTask[float])
assert_type(spawn(g, number, text, k=2.0), DTask[list[int]])
assert_type(spawn(g, 1, k=number), DTask[list[int]])
assert_type(spawn(g, **{"x": anything}), DTask[list[int]])
spawn(f, x="wrong")  # error
spawn(f, y=3)  # error
spawn(g, 1, k="a")  # error
spawn(two, 1, b=3)  # error
spawn(two, b="a")  # error

# Options go first.
assert_type(spawn(f, Options(retries=3), 1), DTask[str])
assert_type(spawn(f, Options(), number), DTask[str])
assert_type(spawn(f, Options(), x=1), DTask[str])
assert_type(spawn(f, Options(), x=number), DTask[str])
assert_type(spawn(none, Options()), DTask[bytes])
assert_type(spawn(of_chunks, Options(meta=True), number, 2), DTask[float])
assert_type(spawn.opts(retries=3, name="f")(f, number), DTask[str])
spawn(f, Options(retires=3), 1)  # error
spawn(f, Options(), "wrong")  # error
spawn(f, 1, Options())  # error
spawn(Options(), f, 1)  # error
spawn.opts(retires=3)  # error
spawn.opts(retries="a")  # error
spawn.opts(retries=3)(f, "wrong")  # error

# What it is given: lambdas, partials, classes, methods, builtins, coroutine functions, what gives a chunk.
assert_type(spawn(lambda: 3), DTask[int])
assert_type(spawn(lambda x: x + 1, 3), DTask[int])
assert_type(spawn(lambda x: x + 1, number), DTask[int])
assert_type(spawn(functools.partial(two, 1), text), DTask[float])
assert_type(spawn(functools.partial(g, 1)), DTask[list[int]])
assert_type(spawn(int, "3"), DTask[int])
assert_type(spawn(int, text), DTask[int])
assert_type(spawn(Model, 3), DTask[Model])
assert_type(spawn(Model, number, "x"), DTask[Model])
assert_type(spawn(Model(1).predict, 0.5), DTask[float])
assert_type(spawn(Model.of, text), DTask[Model])
assert_type(spawn(str.upper, text), DTask[str])
assert_type(spawn(len, [1]), DTask[int])
assert_type(spawn(math.sqrt, number), DTask[float])
assert_type(spawn(sorted, [3, 1]), DTask[list[int]])
assert_type(spawn(sorted, items), DTask[list[int]])
assert_type(spawn(max, number, number), DTask[int])
assert_type(spawn(print, number, "x", sep=""), DTask[None])
assert_type(spawn(dict[str, int], a=1), DTask[dict[str, int]])
assert_type(spawn(getattr, number, "real"), DTask[Any])
assert_type(spawn(either, 1), DTask[str | int | list[bytes]])
assert_type(spawn(perhaps, 1), DTask[str | None])
assert_type(spawn(untyped_table, "a"), DTask[dict[str, Any]])
assert_type(spawn(co, 1), DTask[str | None])
assert_type(spawn(co, number), DTask[str | None])
assert_type(spawn(co, x=1), DTask[str | None])
assert_type(spawn(asyncio.sleep, 0), DTask[None])
assert_type(spawn(asyncio.sleep, 0, 3), DTask[int])
assert_type(spawn(piece), DTask[int])
spawn(Model, "a")  # error
spawn(int, object())  # error
spawn(str.upper, number)  # error
spawn(len, 3)  # error
spawn(co, "wrong")  # error
spawn(3)  # error
spawn(f(1))  # error
total: int = spawn(sum, items).fetch()
sums: float = spawn(operator.add, number, 1).fetch()

# What is not known gives what is.
given: Callable[..., int] = merge
assert_type(spawn(given, 1, x=text), DTask[int])
assert_type(spawn(f, anything), DTask[str])
assert_type(spawn(g, anything), DTask[list[int]])
assert_type(spawn(f, x=anything), DTask[str])
assert_type(spawn(either, anything), DTask[str | int | list[bytes]])
assert_type(spawn(untyped_table, anything), DTask[dict[str, Any]])
assert_type(spawn(anything, 1), DTask[Any])
assert_type(spawn(anything, x=1), DTask[Any])
assert_type(spawn(text, 1), DTask[Any])
assert_type(spawn(tochunk(f), 1), DTask[Any])
untyped: DTask = text
assert_type(spawn(f, untyped), DTask[str])
assert_type(spawn(f, x=untyped), DTask[str])
assert_type(spawn(two, untyped, untyped["name"]), DTask[float])
assert_type(spawn(co, untyped), DTask[str | None])
assert_type(spawn(sorted, untyped), DTask[list[Any]])
assert_type(spawn(lambda x: x, untyped), DTask[Any])
pieces: Shard[int] = shard(lambda: 3)
