"""One stream of a `MultiEventLog`: how its consumer is told, and what it said that waits to be put into a list."""

from __future__ import annotations

from typing import Any

from .calling import Caller, is_sampler, same_home
from .model import Event
from .reading import Reader

__all__ = ["LogStream"]


class _Nothing:
    value = None


class LogStream(Caller):
    """One consumer and its values that wait. A stamp is an index in the list that it will become.

    `reader`: how it is told of many events at once; None where it is called for each, with fields of a record (`of`) or
    the event. `lazy`: it needn't be told before somebody reads what it says.
    """

    __slots__ = ("carries", "lazy", "of", "reader", "stamps", "values")

    def __init__(self, name: str, consumer: Any, original: Any, since: int) -> None:
        super().__init__(name, consumer, original)
        self.carries = self.is_picky and bool(getattr(consumer, "carries", False))
        lazy = bool(getattr(consumer, "lazy", False))
        self.of: Any = None
        self.reader: Reader | None = None
        reads = isinstance(getattr(consumer, "fields", None), tuple) and callable(getattr(consumer, "of", None))
        if self.is_picky and reads and not self.carries and same_home(consumer, "of", "__call__"):
            self.of = consumer.of
            self.reader = Reader(self, None, consumer.of, since) if lazy else None
        elif not self.is_picky and not is_sampler(consumer) and same_home(consumer, "columns", "__call__"):
            self.reader = Reader(self, consumer.columns, None, since)
        self.lazy = lazy and self.reader is not None
        self.stamps: list[int] = []
        self.values: list[Any] = []

    @property
    def reads_ids(self) -> bool:
        """Whether it looks at the ids of events, told by columns."""
        return not self.is_picky and "ids" in getattr(self.consumer, "says", ("ids",))

    def wants_some(self, category: Any, phase: str) -> bool:
        """Whether it is one that wants some events only, this kind among them."""
        return self.is_picky and self.wants(category, phase)

    @property
    def filler(self) -> Any:
        """Its attribute `value` is the entry of an event for which the consumer is not called."""
        return self.consumer if self.carries else _Nothing

    def take_batch(self, events: list[Event]) -> list[Any]:
        """The values for all these events at once."""
        try:
            values = list(self.batch(events))
            if len(values) == len(events):
                return values
            raise ValueError(f"{len(values)} values for {len(events)} events")
        except Exception as error:
            self.isolate(error)
            return [None] * len(events)

    def begin(self, index: int) -> None:
        """From `index` on a carrying stream shows its present value."""
        if self.carries:
            self.stamps.append(index)
            self.values.append(self.consumer.value)

    def restart(self, index: int) -> None:
        """Nothing waits; `begin` at `index`."""
        values = [self.consumer.value] if self.carries else []
        stamps = [index] * len(values)
        self.stamps[:], self.values[:] = stamps, values  # one section

    def forget_from(self, index: int) -> None:
        """Forget what waits to be entry `index` or a later one; a carried value holds from there on."""
        end = index + 1 if self.carries else index
        waiting = [pair for pair in zip(self.stamps, self.values, strict=False) if pair[0] < end]
        stamps, values = [stamp for stamp, _ in waiting], [value for _, value in waiting]
        self.stamps[:], self.values[:] = stamps, values  # one section

    def complete(self, entries: list[Any], length: int) -> None:
        """Write what waits into `entries`, which then has `length` entries. What is carried goes on from there.

        Where it was broken off, or what follows it, it does the rest when it is called again.
        """
        carried: list[Any] = []
        last = self.values[-1:] if self.carries else []
        onward = [length] * len(last)
        if self.carries:
            starts = [len(entries), *self.stamps[1:], length]  # the first one may be of lists that were taken since
            for start, end, value in zip(starts, starts[1:], self.values, strict=False):
                carried.extend([value] * (end - start))
        else:
            entries.extend([None] * (length - len(entries)))
            for stamp, value in zip(self.stamps, self.values, strict=True):
                entries[stamp] = value
        entries += carried  # one section from here
        self.stamps[:], self.values[:] = onward, last
