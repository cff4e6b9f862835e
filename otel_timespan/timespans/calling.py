"""Consumers and aggregators: what they may say of themselves, whom an event concerns, and how they are called.

Most consumers care for one category in ten, so calling all of them for each event would cost more than the
scheduler itself. Here it is worked out once per (category, phase) who is to be called: for the streams of a
`MultiEventLog` (streams.py) and for those who want the newest values only (otel/metrics/gauges.py).
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from operator import itemgetter
from typing import Any, Protocol

from ..errors import NotCallableError
from .model import Event
from .warn import warn_once

__all__ = [
    "Aggregator",
    "Caller",
    "Consumer",
    "Plans",
    "attach",
    "copy_for",
    "detach",
    "init_similar",
    "is_sampler",
    "isolate",
    "kind_of",
    "same_home",
    "tell",
]

_MAX_PLANS = 4096
"""Distinct (category, phase) pairs whose plan is remembered; a program that invents more pays for it."""


class Consumer(Protocol):
    """What a consumer is: anything that can be called with an event. The rest is optional.

    `categories`: a frozenset of the categories that it wants; not called, and None, for others.
    `phase`: "start" or "finish", if it wants only those.
    `carries`: with `categories`, the stream's value between two calls is not None but `consumer.value`.
    `fields` and `of(*fields) -> value`, with `categories`: the names of the fields of an event's id and
    timeline (and "phase") that it reads, and what it makes of them; called instead of the consumer where that
    spares making the event. Nobody else may notice the calls.
    `columns(columns) -> values`: of a consumer without `categories` for which times, categories, phases and
    ids will do (`rows.Columns`): where all do with that, no event objects are made.
    `lazy`, with one of these two: it is told when somebody reads its stream, maybe never, maybe again, by any thread;
    for those whose values depend on nothing but the event. Of a function it then sees the name, of a result what
    identifies it (the handle of a chunk, the number of an object). `of_phase`: `of` then says something of this half of
    a span only. `says`: the names of the columns that its rows are made of, where they are made of nothing else.
    `batch(events) -> values`: of a consumer without `categories`, many events at once instead of one by one,
    for those whose calls nobody else can notice. `record_batch(events, values)` likewise.
    `last(kinds) -> value`: of a consumer without `categories` that reads no more of an event than its kind: takes the
    (category, phase) of many events and gives the value for the last one, where nobody looks at the others'.
    `sample() -> value`: called at once on the thread that emits; `record(event, value)` is then called
    off its path instead of the consumer itself. `init_similar() -> consumer`: a fresh copy for one more
    worker. `close()`: called by `MultiEventLog.close`.

    Never called by two threads at once for one worker. What it raises is logged once and the value is None.
    """

    def __call__(self, event: Event) -> Any:
        """The stream's value for this event."""


class Aggregator(Protocol):
    """What an aggregator is: anything that can be called with the dict of a worker's lists. The rest is optional.

    `attach(log, worker)`: here is the log that will call you, for that worker; the thread that does
    `log.aggregators[name] = aggregator` calls it (with worker 1) before it is in place, and gets what it raises:
    then nothing was changed. The copies for other workers (`init_similar`) are attached when they are made, by
    the thread that drains the log. `detach(log, worker)`: called once it was taken out or replaced, and when the log
    is closed. Neither may fetch the log. Who keeps the log should do so by a weak reference.
    `batch(streams, new) -> int`: where all aggregators of a log have it, it is called instead, once for many events:
    with the streams, to be looked at only, whose last `new` entries are new (0: they are about to be handed out); it
    gives the number of entries at the front that the log shall give up.
    `settle(lists)`: called before lists are handed out. `dropped(n)`: the log itself gave up the first n entries of
    all lists (a fetch, `max_events`). `init_similar() -> aggregator`: a fresh copy for one more worker.
    `close()`: called by `MultiEventLog.close`.

    Never called by two threads at once for one worker. What it raises elsewhere is logged once.
    """

    def __call__(self, lists: dict[str, list[Any]]) -> object:
        """Called after all consumers, for each event. It may change the lists."""


@functools.singledispatch
def init_similar(obj: Any) -> Any:
    """A fresh twin with the same configuration, for one more worker; by default the same object.

    Asks the method `init_similar` where there is one. Register other types here.
    """
    own = getattr(obj, "init_similar", None)
    return own() if callable(own) and not isinstance(obj, type) else obj


def copy_for(worker: int, original: Any) -> Any:
    """The consumer or aggregator of a worker: worker 1 uses what the user gave, all others `init_similar` of it.

    Where making the copy raises, one that does nothing: the others go on.
    """
    try:
        return original if worker == 1 else init_similar(original)
    except Exception:
        warn_once(original, "%s could not make its copy for one more worker", type(original).__name__)
        return _nothing


def _nothing(*_: Any) -> None:
    """Stands for a consumer or aggregator that could not be copied."""


def attach(aggregator: Any, log: Any, worker: int) -> None:
    """Introduce a log to an aggregator that declares `attach`.

    Raises `NotCallableError` where its `attach` or `detach` do not take (log, worker), and what `attach` raises.
    """
    for method in ("attach", "detach"):
        declared = getattr(aggregator, method, None)
        if callable(declared) and not _takes(declared, log, worker):
            found = inspect.signature(declared)
            raise NotCallableError(
                f"an aggregator's {method} takes (log, worker); that of {type(aggregator).__name__} takes {found}"
            )
    if callable(getattr(aggregator, "attach", None)):
        aggregator.attach(log, worker)


def detach(aggregator: Any, log: Any, worker: int) -> None:
    """Tell an aggregator that declares `detach` that the log is no longer its own. Never raises."""
    tell(aggregator, "detach", log, worker)


def _takes(method: Any, *arguments: Any) -> bool:
    try:
        inspect.signature(method).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not say what it takes: calling it will
        return True
    return True


def tell(aggregator: Any, method: str, *arguments: Any) -> None:
    """Call an optional method of an aggregator, isolated as the aggregator itself is."""
    function = getattr(aggregator, method, None)
    if callable(function):
        try:
            function(*arguments)
        except Exception:
            warn_once(aggregator, "the method %s of the aggregator %s raised", method, type(aggregator).__name__)


class Caller:
    """One consumer of one worker: which events it wants, and what is called for them.

    `original` is what the user gave, by which samples are found in an event.
    """

    __slots__ = ("batch", "call", "categories", "consumer", "name", "phase")

    def __init__(self, name: str, consumer: Any, original: Any) -> None:
        self.name, self.consumer = name, consumer
        self.call = _call_of(consumer, original)
        self.categories = getattr(consumer, "categories", None)
        self.phase = getattr(consumer, "phase", None)
        self.batch: Any = None if self.is_picky else _batch_of(consumer, original)

    @property
    def is_picky(self) -> bool:
        """Whether it wants some events only."""
        return self.categories is not None or self.phase is not None

    def wants(self, category: Any, phase: str) -> bool:
        """Whether the consumer is called for this kind of event."""
        if self.phase is not None and self.phase != phase:
            return False
        try:
            return self.categories is None or category in self.categories
        except TypeError:  # a category that can't be looked up is nobody's
            return False

    def isolate(self, error: BaseException) -> KeyboardInterrupt | None:
        """As `isolate`, of an exception of this consumer."""
        return isolate(error, self.consumer, f"the consumer {self.name!r}")


kind_of: Callable[[Event], tuple[Any, str]] = itemgetter(1, 0)
"""(category, phase) of an event, by index: faster than by name."""


class Plans(dict[Any, Any]):
    """(category, phase) of an event, or the shape of a record -> whom to call, worked out when first asked for."""

    def __init__(self, plan: Callable[[Any], Any]) -> None:
        self._plan = plan

    def __missing__(self, kind: Any) -> Any:
        calls = self._plan(kind)
        if len(self) < _MAX_PLANS:
            self[kind] = calls
        return calls

    def of_events(self, events: list[Event]) -> list[Any]:
        """Whom to call for each event."""
        try:
            return list(map(self.__getitem__, map(kind_of, events)))
        except TypeError:  # a category that can't be a key costs a plan an event
            return [self._plan(kind_of(event)) for event in events]


def isolate(error: BaseException, culprit: Any, name: str) -> KeyboardInterrupt | None:
    """Warn once; a consumer may end neither the thread nor the program. Ctrl-C is the user's, for later."""
    if isinstance(error, KeyboardInterrupt):
        return error
    warn_once(culprit, "%s (%s) raised; the value is lost and the log goes on", name, type(culprit).__name__)
    return None


def is_sampler(consumer: Any) -> bool:
    """Whether a consumer samples the moment itself."""
    return callable(getattr(consumer, "sample", None)) and callable(getattr(consumer, "record", None))


def same_home(consumer: Any, *names: str) -> bool:
    """Whether one class of a consumer defines all these methods: else a subclass changed one and knows no other."""
    homes = [next((kind for kind in type(consumer).__mro__ if name in vars(kind)), None) for name in names]
    return homes[0] is not None and all(home is homes[0] for home in homes)


def _call_of(consumer: Any, original: Any) -> Callable[[Event], Any]:
    """What to call off the emitter's path; a bound method is twice as fast as an object with `__call__`."""
    if is_sampler(consumer):
        record = consumer.record

        def sampled(event: Event) -> Any:
            taken = event.samples
            return record(event, taken[original]) if taken is not None and original in taken else None

        return sampled
    own = type(consumer).__call__
    return types.MethodType(own, consumer) if isinstance(own, types.FunctionType) else consumer


def _batch_of(consumer: Any, original: Any) -> Callable[[list[Event]], Any] | None:
    """The consumer's way to do many events at once, unless a subclass changed what it does for one."""
    if not is_sampler(consumer):
        return consumer.batch if same_home(consumer, "batch", "__call__") else None
    if not same_home(consumer, "record_batch", "record"):
        return None

    def sampled(events: list[Event]) -> Any:
        values = [None if e.samples is None else e.samples.get(original) for e in events]
        return consumer.record_batch(events, values)

    return sampled
