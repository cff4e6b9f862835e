"""How large values are said to be: near the truth, at bounded cost, without calling anybody's code."""

from __future__ import annotations

import ast
import collections
import dataclasses
import functools
import gc
import inspect
import random
import threading
import tracemalloc
import typing
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.records import layout, sampling


@dataclasses.dataclass
class Point:
    """An object with fields."""

    x: float
    name: str


class Slotted:
    """An object with slots."""

    __slots__ = ("left", "right")

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


class Pair(NamedTuple):
    """A tuple with names."""

    left: float
    right: str


class Listed(list[Any]):
    """A list with a field."""

    note = ""


class Node:
    """A tree whose nodes know their parent and root."""

    def __init__(self, depth: int, parent: Node | None = None) -> None:
        self.parent, self.root = parent, parent.root if parent else self
        self.data = [depth * 1.5 + n for n in range(20)]
        self.below = [Node(depth - 1, self) for _ in range(4)] if depth else []


def ragged(depth: int, pick: random.Random) -> Any:
    """A tree of dictionaries of any width."""
    if not depth:
        return [pick.random() for _ in range(3)]
    return {str(pick.random()): ragged(depth - 1, pick) for _ in range(pick.randint(1, 5))}


def listed(note: str) -> Listed:
    """A list with a text in a field."""
    made = Listed()
    made.note = note
    return made


MADE: dict[str, Callable[[], Any]] = {
    "syntax": lambda: ast.parse(inspect.getsource(typing)),
    "numbers": lambda: [n * 1.5 for n in range(20_000)],
    "integers": lambda: list(range(20_000)),
    "small integers": lambda: [n % 200 for n in range(20_000)],
    "texts": lambda: {str(n) * 5 for n in range(5_000)},
    "bytes": lambda: [bytes([n % 256, 3]) for n in range(5_000)],
    "dictionaries": lambda: [{"a": n, "b": "x" * 100} for n in range(20_000)],
    "lists in a dictionary": lambda: {n: list(range(50)) for n in range(5_000)},
    "every other one is large": lambda: [str(n) * 300 if n % 2 else n for n in range(4_000)],
    "small ones first": lambda: {n: n if n < 2_000 else str(n) * 300 for n in range(4_000)},
    "of a power law": lambda: [list(map(str, range(1000 // (n % 100 + 1)))) for n in range(1_000)],
    "dataclasses": lambda: [Point(n * 1.5, str(n) * 10) for n in range(5_000)],
    "slots": lambda: [Slotted(n * 1.5, str(n) * 10) for n in range(5_000)],
    "named tuples": lambda: [Pair(n * 1.5, str(n) * 10) for n in range(5_000)],
    "fields of lists": lambda: [listed(str(n) * 100) for n in range(3_000)],
    "ordered": lambda: collections.OrderedDict((n, str(n) * 10) for n in range(5_000)),
    "defaults": lambda: collections.defaultdict(list, {n: [n * 1.5] for n in range(5_000)}),
    "a queue": lambda: collections.deque(str(n) * 10 for n in range(5_000)),
    "errors": lambda: [ValueError(str(n) * 20) for n in range(3_000)],
    "partials": lambda: [functools.partial(len, str(n) * 20) for n in range(3_000)],
    "deep": lambda: functools.reduce(lambda inner, n: [inner, n * 1.5], range(1_000), []),
    "a chain": lambda: functools.reduce(lambda link, n: Slotted(link, n * 1.5), range(1_000), None),
    "a wide tree": lambda: [[[[float(i + j + k)] for i in range(10)] for j in range(30)] for k in range(10)],
    "a ragged tree": lambda: ragged(7, random.Random(1)),
    "parents": lambda: Node(5),
    "one object many times": lambda: [[n * 1.5 for n in range(5_000)]] * 1_000,
    "one object in many": lambda: list(map(Slotted, range(3_000), [[n * 1.5 for n in range(50_000)]] * 3_000)),
    "twice in each": lambda: [Slotted(text, text) for text in (str(n) * 50 for n in range(3_000))],
    "a mixture": lambda: {"a": [n * 1.5 for n in range(9_000)], "b": "q", "c": {n: [n] for n in range(500)}},
}


@pytest.mark.parametrize("name", MADE)
def test_near_the_truth(name: str) -> None:
    """The estimate is within a factor of three of what the allocator says, and the same each time."""
    MADE[name]()  # what is made once a process is there
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        value = MADE[name]()
        gc.collect()
        real = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    estimate = D.approx_size(value)
    assert estimate is not None and real / 3 < estimate < real * 3, (real, estimate)
    assert D.approx_size(value) == estimate


@pytest.mark.parametrize("name", [*MADE, "endless"])
def test_a_bounded_number_is_looked_at(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many objects a value holds, some thousands of them are looked at."""
    looked_at = 0
    add_all = sampling._Sample.add_all

    def counted(self: Any, taken: Any, share: float, above: int) -> Any:
        nonlocal looked_at
        looked_at += len(taken)
        return add_all(self, taken, share, above)

    monkeypatch.setattr(sampling._Sample, "add_all", counted)
    value = MADE[name]() if name in MADE else functools.reduce(lambda link, n: [link], range(100_000), [])
    assert D.approx_size(value)
    assert looked_at < 8_000
    while name == "endless" and value:  # else the interpreter's stack goes as deep when it is let go
        value = value.pop()


def test_no_code_of_a_user_runs() -> None:
    """Neither `__sizeof__` nor length, iteration, attributes, hash, equality nor a metaclass are asked."""
    called: list[str] = []

    def method(name: str) -> Any:
        def called_by_us(*args: Any) -> Any:
            called.append(name)
            raise RuntimeError(name)

        return called_by_us

    names = ["sizeof", "len", "iter", "getitem", "getattr", "getattribute", "hash", "eq", "bool", "contains"]
    namespace = {f"__{name}__": method(name) for name in names}
    namespace |= {name: method(name) for name in ("keys", "values", "items")}
    namespace["__class__"] = property(method("class"))
    meta = type("Meta", (type,), {f"__{name}__": method(f"meta {name}") for name in ("getattribute", "instancecheck")})
    queue, ordered = collections.deque, collections.OrderedDict
    for base in (object, list, dict, set, tuple, frozenset, queue, ordered, str, int, Exception):
        kind = meta("Hostile", (base,), dict(namespace))
        value = type.__call__(kind)
        estimates = (
            D.approx_size(value),
            D.approx_size([value] * 3),
            D.approx_size({"a": value}),
            D.approx_size((value,)),
        )
        assert all(estimates), base
    assert called == []


def test_what_a_class_or_object_says() -> None:
    """`nbytes`, of a class, a property or a field, is believed, in containers too; what is no number is unknown."""

    class Said:
        def __init__(self, nbytes: Any) -> None:
            self.nbytes = nbytes

    class Asked:
        @property
        def nbytes(self) -> int:
            return 70_000

    class Method:
        def nbytes(self) -> int:
            raise AssertionError

    assert D.approx_size(Said(50_000)) == 50_000 and D.approx_size(Asked()) == 70_000
    assert 500_000 <= D.approx_size([Said(50_000) for _ in range(10)]) <= 510_000  # type: ignore[operator]
    assert 700_000 <= D.approx_size({n: Asked() for n in range(10)}) <= 710_000  # type: ignore[operator]
    for odd in (Said(None), Said("many"), Said(-5), Method()):
        assert 0 < D.approx_size(odd) < 1_000  # type: ignore[operator]


@pytest.fixture
def matrix() -> Iterator[type]:
    """A class whose size nobody could guess; nothing of it stays registered."""

    class Matrix:
        def __init__(self, cells: Any) -> None:
            self.cells = cells

    before = dict(layout.registered)
    yield Matrix
    for key in set(layout.registered) - set(before):
        D.unregister_size(key)


def test_what_is_registered(matrix: Any) -> None:
    """A registered function holds for its class and what derives from it, from then on and until it is undone."""

    class Special(matrix):
        pass

    before = D.approx_size(Special(3))
    D.register_size(matrix)(lambda value: value.cells * 8)
    assert D.approx_size(matrix(1000)) == 8000 and D.approx_size(Special(1000)) == 8000
    assert 80_000 <= D.approx_size([matrix(1000) for _ in range(10)]) <= 82_000  # type: ignore[operator]
    D.register_size(Special)(lambda value: None)
    assert D.approx_size(Special(3)) is None and D.approx_size(matrix(3)) == 24
    D.register_size(matrix)(lambda value: value.nothing)
    assert D.approx_size(matrix(3)) is None
    D.unregister_size(Special)
    D.unregister_size(matrix)
    assert D.approx_size(Special(3)) == before


def test_what_is_registered_by_name() -> None:
    """A class can be named before its library is there: by the library's first name and its own."""
    D.register_size("somelibrary.Matrix")(lambda value: 4321)
    try:
        kind = type("Matrix", (), {"__module__": "somelibrary.core.matrix"})
        assert D.approx_size(kind()) == 4321
        assert D.approx_size(type("Matrix", (), {"__module__": "other"})()) != 4321
    finally:
        D.unregister_size("somelibrary.Matrix")


def test_what_cannot_be_registered() -> None:
    """What is no class or no function is an error at once."""
    for wrong in (5, "Matrix", ".Matrix", "somelibrary.", None):
        with pytest.raises(D.InvalidOptionError):
            D.register_size(wrong)  # type: ignore[arg-type]
    with pytest.raises(D.NotCallableError):
        D.register_size(Point)(5)  # type: ignore[type-var]
    with pytest.raises(KeyError):
        D.unregister_size(Point)


def test_what_refers_to_the_whole_program() -> None:
    """Tasks, threads, loggers, modules and functions count little, whatever they lead to."""
    import logging

    with D.Context(threads=1) as context:
        task = D.spawn(int)
        held = [task, context, threading.current_thread(), logging.getLogger("a"), logging, test_near_the_truth, Point]
        D.wait(task)
        assert 0 < D.approx_size(held) < 5_000  # type: ignore[operator]
        assert 0 < D.approx_size(Slotted(held, MappingProxyType({}))) < 5_000  # type: ignore[operator]


def test_a_class_can_go() -> None:
    """What was learned of a class goes with it."""

    def measure() -> int:
        kind = type("Passing", (), {})
        D.approx_size(kind())
        return id(kind)

    number = measure()
    gc.collect()
    assert number not in layout.layouts


def small(pick: random.Random, made: list[Any], depth: int = 4) -> Any:
    """A value of few objects, some of which are met several times."""
    if depth == 0 or pick.random() < 0.2:
        return pick.choice([pick.random(), "x" * pick.randrange(90), pick.randrange(10**6), None, b"bytes", small])
    if made and pick.random() < 0.2:
        return pick.choice(made)
    held = [small(pick, made, depth - 1) for _ in range(pick.randrange(1, 4))]
    makes: list[Callable[[], Any]] = [
        lambda: held,
        lambda: tuple(held),
        lambda: {f"key {n} of {depth}": value for n, value in enumerate(held)},
        lambda: dict(enumerate(held)),
        lambda: {n * 1.5 for n in range(len(held))},
        lambda: collections.deque(held),
        lambda: Slotted(held[0], held[-1]),
        lambda: Point(held[0], "a name"),
        lambda: functools.partial(small, *held),
        lambda: Pair(held[0], "right"),
    ]
    made.append(pick.choice(makes)())
    return made[-1]


def test_what_is_small_is_counted_as_it_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing has to stand for anything else both give the same, to the byte."""
    pick, counted = random.Random(5), 0
    values = [small(pick, []) for _ in range(500)]
    sizes = [D.approx_size(value) for value in values]
    for value in values:
        kind = layout.layout_of(type(value))
        counted += kind.inside is not None and sampling._size_of_all(value, kind) is not None
    assert counted > 250
    monkeypatch.setattr(sampling, "_size_of_all", lambda value, layout: None)
    assert sizes == [D.approx_size(value) for value in values]


def test_while_others_change_it() -> None:
    """A value that another thread changes meanwhile has some size, and nothing is raised."""
    value: list[Any] = [{n: [n] for n in range(200)}]
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            value[0].pop(next(iter(value[0])), None)
            value[0][random.random()] = [1]
            value.append([1.5] * 100)
            del value[2:]

    thread = threading.Thread(target=change)
    thread.start()
    try:
        assert all(D.approx_size(value) for _ in range(300))
    finally:
        stop.set()
        thread.join()


def test_a_plain_argument_is_measured_once() -> None:
    """However many records tell of it: at the submission, when it is moved, and again for each attempt."""
    measured: list[Any] = []
    D.register_size(Slotted)(lambda value: measured.append(value) or 5_000)
    tries: list[int] = []

    def body(value: Any, *, other: Any) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("again")

    try:
        log: list[Any] = []
        with D.Context(threads=1, log_sink=log):
            first, second = Slotted(1, 2), Slotted(3, 4)
            D.fetch(D.spawn(body, D.Options(retries=3), first, other=second))
    finally:
        D.unregister_size(Slotted)
    assert len(measured) == 2 and {id(each) for each in measured} == {id(first), id(second)}
    told = [e.timeline.data.nbytes for e in log if (e.category, e.phase) == ("move", "start")]
    assert told.count(5_000) == 6


def test_libraries() -> None:
    """Arrays, frames and columns: objects in them count, what is only repeated does not."""
    np, pd = pytest.importorskip("numpy"), pytest.importorskip("pandas")
    assert D.approx_size(np.zeros((100, 10))) == 8_000
    assert D.approx_size(np.broadcast_to(np.float64(1), (10**6, 10**6))) == 8
    texts = np.array([str(n) * 100 for n in range(1_000)], object)
    assert 300_000 < D.approx_size(texts) < 500_000  # type: ignore[operator]
    assert 800_000 < D.approx_size([np.zeros(10_000) for _ in range(10)]) < 810_000  # type: ignore[operator]
    numbers = pd.DataFrame({"a": np.zeros(1_000), "b": np.zeros(1_000)})
    assert 16_000 <= D.approx_size(numbers) < 17_000  # type: ignore[operator]
    for held in (
        pd.DataFrame({"a": texts}, dtype=object),
        pd.Series(texts, dtype=object),
        pd.Index(texts, dtype=object),
    ):
        assert 300_000 < D.approx_size(held) < 500_000  # type: ignore[operator]
    pa = pytest.importorskip("pyarrow")
    assert 8_000 <= D.approx_size(pa.table({"a": np.zeros(1_000)})) < 9_000  # type: ignore[operator]
