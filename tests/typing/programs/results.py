"""What is waited for, fetched, awaited and looped over is what the body gave."""

import asyncio
from concurrent.futures import Future
from typing import Any

from typing_extensions import assert_type

import otel_timespan as ts
from otel_timespan import dagger


def f(x: int) -> str:
    return str(x)


def add(a: int, b: int = 1) -> int:
    return a + b


async def co(x: int) -> str:
    return str(x)


t = ts.spawn(f, 1)
n = ts.spawn(add, 1)
untyped: ts.DTask = t
wider: ts.DTask[object] = t
wrong: ts.DTask[int] = t  # error

assert_type(ts.fetch(t), str)
assert_type(ts.fetch(t, timeout=1), str)
assert_type(ts.fetch(t, raw=True), ts.Chunk[str])
assert_type(ts.fetch(untyped), Any)
assert_type(ts.fetch(ts.tochunk(3)), int)
assert_type(ts.fetch(dagger.File("x")), Any)
assert_type(t.fetch(), str)
assert_type(t.fetch(1.0), str)
assert_type(t.fetch(raw=True), ts.Chunk[str])
assert_type(t.future(), Future[str])
assert_type(t["a"], ts.DTask[Any])
assert_type(t.getattr("a"), ts.DTask[Any])
assert_type(ts.wait(t), None)
assert_type(ts.waitall([t, n]), None)
ts.fetch(3)  # error
ts.wait(3)  # error
ts.waitany([1])  # error
ts.cancel("t")  # error
t.fetchh()  # error
for _ in t:  # error
    pass

assert_type(ts.fetch_all(t), str)
assert_type(ts.fetch_all([t, t]), list[str])
assert_type(ts.fetch_all([ts.spawn(f, i) for i in range(3)]), list[str])
assert_type(ts.fetch_all([ts.tochunk(1)]), list[int])
assert_type(ts.fetch_all([[t]]), list[list[str]])
assert_type(ts.fetch_all((t, n)), tuple[str, int])
assert_type(ts.fetch_all((t, n, t)), tuple[str, int, str])
assert_type(ts.fetch_all(tuple([t])), tuple[str, ...])
assert_type(ts.fetch_all({"a": t}), dict[str, str])
assert_type(ts.fetch_all({"a": [t]}), dict[str, list[str]])
assert_type(ts.fetch_all({t}), set[str])
assert_type(ts.fetch_all((1, t)), Any)

for done in ts.as_completed([t, t]):
    assert_type(done, ts.DTask[str])
for done in ts.progress([t, t], description="loading"):
    assert_type(done, ts.DTask[str])
ts.progress([t]).wait()
for value in ts.map(f, [1]):
    assert_type(value, str)
for value in ts.map(co, [1]):
    assert_type(value, str)
for value in ts.map(f, [n, n], max_pending=3, ordered=False, retries=3):
    assert_type(value, str)
for number in ts.map(add, [1], [2]):
    assert_type(number, int)
for number in ts.map(lambda x: x * 2, range(3)):
    assert_type(number, int)
ts.as_completed(t)  # error
ts.as_completed([1])  # error
ts.map(f)  # error
ts.map(f, ["a"])  # error
ts.map(f, [t])  # error
ts.map(f, [1], [2])  # error
ts.map(f, [1], retires=3)  # error
ts.map(f, [1], max_pending="a")  # error


async def main() -> None:
    assert_type(await t, str)
    assert_type(await asyncio.gather(t, n), tuple[str, int])
    async for done in ts.as_completed([t]):
        assert_type(done, ts.DTask[str])
    async for value in ts.map(f, [1]):
        assert_type(value, str)


with ts.Executor(2, retries=3) as executor:
    assert_type(executor.submit(f, 1).result(), str)
    assert_type(executor.submit(f, x=1).result(), str)
    assert_type(executor.submit(f, n).result(), str)
    assert_type(executor.submit(co, 1).result(), str)
    assert_type(executor.submit(f, 1).task, ts.DTask[str] | None)
    assert_type(list(executor.map(f, [1], timeout=3)), list[str])
    assert_type(list(executor.map(add, [1], [n])), list[int])
    plain: Future[str] = executor.submit(f, 1)
    executor.submit(f, "wrong")  # error
    executor.submit(f)  # error
    executor.submit(f, 1, 2)  # error
    executor.submit(f, y=1)  # error
    executor.map(f, ["wrong"])  # error
ts.Executor("2")  # error
ts.Executor(2, retires=3)  # error

assert_type(ts.tochunk([1]), ts.Chunk[list[int]])
assert_type(ts.tochunk(ts.tochunk([1])), ts.Chunk[list[int]])
assert_type(ts.tochunk([1]).fetch(), list[int])
assert_type(dagger.mutable(list[int]), ts.Chunk[list[int]])
assert_type(dagger.shard(lambda: 3).map(ts.fetch), list[int])
assert_type(dagger.setitem([1], 0, n), ts.DTask[int])
assert_type(dagger.wait_all(lambda: ts.spawn(f, 1)), ts.DTask[str])
ts.tochunk(3, 4)  # error

assert_type(ts.delayed(f)(1), dagger.Thunk[str])
assert_type(ts.delayed(co, retries=3)(1), dagger.Thunk[str])
assert_type(ts.compute(ts.delayed(f)(1)), ts.Chunk[str])
assert_type(ts.collect(ts.eager_context(), ts.delayed(f)(1)), str)
ts.delayed(f, retires=3)  # error
ts.collect(3)  # error
