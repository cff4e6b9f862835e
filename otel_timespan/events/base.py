"""What the consumers share: fresh copies, open spans, names of functions, fields that may be missing.

Not part of the public interface. See `otel_timespan.timespans.calling.Consumer` for what a consumer may say
about itself.
"""

from __future__ import annotations

from typing import Any

from ..timespans.model import Event, EventId

__all__ = ["MAX_OPEN", "OpenSpans", "Sampler", "id_field", "thunk_id"]

MAX_OPEN = 100_000
"""Open spans that a consumer remembers; of spans that never finish the oldest are forgotten."""


class OpenSpans(dict[Any, Any]):
    """What a consumer remembers of spans between their halves; bounded by `MAX_OPEN`."""

    def remember(self, key: Any, value: Any) -> None:
        """Keep `value` until the span finishes; a second start replaces the first."""
        self[key] = value
        if len(self) > MAX_OPEN:
            self.forget_oldest()

    def forget_oldest(self) -> None:
        """Down to `MAX_OPEN` again."""
        while len(self) > MAX_OPEN:
            del self[next(iter(self))]


class Sampler:
    """A consumer that samples the moment: `sample()` on the emitter's thread, `record` off its path.

    Called directly it samples now.
    """

    def sample(self) -> Any:
        """The present value. Called by any thread, at any time."""
        raise NotImplementedError

    def record(self, event: Event, value: Any) -> Any:
        """The stream's value for an event when `value` was sampled."""
        return value

    def record_batch(self, events: list[Event], values: list[Any]) -> list[Any]:
        """The same for many events."""
        return values

    def __call__(self, event: Event) -> Any:
        """Sample now."""
        return self.record(event, self.sample())


def id_field(event: Event, name: str) -> Any:
    """A field of an event's id, None where it has none (other programs' events)."""
    id = event.id
    return id.get(name) if type(id) is EventId else getattr(id, name, None)


def thunk_id(event: Event) -> Any:
    """The task that an event is about, None where it is about none."""
    return id_field(event, "thunk_id")
