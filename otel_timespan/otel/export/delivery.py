"""Sends batches until each span has come to an end: taken, refused, or alone in being refused.

The problem: a receiver answers for a whole request. One span that it can't take (too large, not to be encoded, hit
by a fault of its own) must not cost the others of its batch, nor hold up for ever all that follows, whether the
answer is "never" or "later". And a receiver that is away, or overloaded, must cost nothing at all: there everything
is refused, not only one span.

So a part that is refused is halved until the culprit is alone: at once where the answer says that it will never be
taken, after a few tries where it says "later". A span that is alone in being refused "later" is set aside, a
suspect: others get their turn. Only when these pass while it is refused again and again it is dropped.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Protocol

from .entries import Entry, singles
from .transport import ACCEPTED, REJECTED, TOO_LARGE, Outcome

__all__ = ["Delivery", "Queue"]

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, _LONGEST_RETRY_AFTER_S = 0.1, 5.0, 60.0
_SEARCH_BACKOFF_S = 0.2
"""The longest wait between tries while a culprit is looked for: some twenty of them have to be made."""

_TRIES = 3
"""So often in a row a part is tried before it is halved, or set aside for others."""

_TRIES_ALONE = 6
"""So often a single span is refused, while more others pass than not, before it is dropped; twice as often where only
suspects are refused any more."""

_HOPELESS = 64
"""So many refusals without one request taken: it is not about what is in them. No part is halved any more."""


class Queue(Protocol):
    """What deliveries need of the pipeline."""

    def attempt(self, entries: list[Entry]) -> Outcome | None:
        """One try; None when there is nothing left to send of them."""

    def settle(self, entries: list[Entry], outcome: Outcome) -> None:
        """These came to an end: ACCEPTED or REJECTED."""

    def note_outage(self, outcome: Outcome) -> None:
        """A try failed that will be made again."""

    def pause(self, wait_s: float) -> bool:
        """Wait before the next try, or less; False when there will be none."""

    def more(self) -> list[Entry]:
        """Another batch, without waiting for one; [] when there is none."""


class _Part:
    """Entries that are sent together. `refusals` since it was made; `passes` and `refused` of all parts then;
    `seen`: what was refused when it was looked at last."""

    __slots__ = ("entries", "passes", "refusals", "refused", "seen")

    def __init__(self, entries: list[Entry], passes: int, refused: int, refusals: int = 0) -> None:
        self.entries, self.passes, self.refused, self.refusals = entries, passes, refused, refusals
        self.seen = -1


class Delivery:
    """Sends for one pipeline, on one thread at a time."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._parts: list[_Part] = []  # the next one last
        self._aside: deque[_Part] = deque()
        self._passes = self._refused = 0  # requests taken, and refused but for suspects, ever
        self._in_a_row = 0  # refused since one was taken, but for suspects
        self._backoff_s = _FIRST_BACKOFF_S

    def deliver(self, batch: list[Entry]) -> None:
        """Send a batch, and what comes meanwhile, until none is left or the pipeline is closed."""
        self._parts.append(self._part(batch))
        while self._parts or self._aside:
            if not self._parts:
                more = self._queue.more()
                self._parts.append(self._part(more) if more else self._aside.popleft())
            if not self._step(self._parts.pop()):
                self._parts.clear()
                self._aside.clear()
                return

    def _part(self, entries: list[Entry]) -> _Part:
        return _Part(entries, self._passes, self._refused)

    def _step(self, part: _Part) -> bool:
        """Try a part once; False when the pipeline is closed."""
        outcome = self._queue.attempt(part.entries) if part.entries else None
        if outcome is None:
            return True
        if outcome.status == ACCEPTED:
            self._passed(part, outcome)
            return True
        part.entries = singles(part.entries)
        single = len(part.entries) == 1
        if outcome.status == TOO_LARGE:
            if single:
                self._queue.settle(part.entries, outcome._replace(status=REJECTED))
            else:
                self._halve(part)
            return True
        if not (single and part.refusals >= _TRIES):
            self._refused += 1
            self._in_a_row += 1
        part.refusals += 1
        if outcome.status == REJECTED:
            if single or outcome.whole or self._in_a_row > _HOPELESS:
                self._queue.settle(part.entries, outcome)
            else:
                self._halve(part)
            return True
        return self._later(part, outcome)

    def _passed(self, part: _Part, outcome: Outcome) -> None:
        self._passes += 1
        self._in_a_row = 0
        self._backoff_s = _FIRST_BACKOFF_S
        self._queue.settle(part.entries, outcome)
        while self._aside:  # their turn has come again
            self._parts.append(self._aside.pop())

    def _later(self, part: _Part, outcome: Outcome) -> bool:
        searching = False
        if len(part.entries) == 1:
            if self._is_culprit(part):
                self._queue.settle(part.entries, outcome._replace(status=REJECTED))
                return True
            searching = self._passes > part.passes
        if self._passes == part.passes:
            self._queue.note_outage(outcome)
        if len(part.entries) > 1 and part.refusals >= _TRIES and self._in_a_row <= _HOPELESS:
            self._halve(part, _TRIES - 1)
            searching = True
        elif part.refusals % _TRIES == 0:
            self._aside.append(part)
        else:
            self._parts.append(part)
        return self._queue.pause(self._wait_s(outcome, searching))

    def _is_culprit(self, part: _Part) -> bool:
        passed = self._passes - part.passes
        if part.refusals < _TRIES_ALONE or not passed:
            return False
        if passed > self._refused - part.refused - _TRIES:  # its own first tries count as refused, too
            return True
        if part.refusals % _TRIES_ALONE:
            return False
        calm, part.seen = self._refused == part.seen, self._refused
        return calm

    def _halve(self, part: _Part, refusals: int = 0) -> None:
        """Its first half is next. Both have been refused as often as it takes to halve them at the next refusal."""
        middle = len(part.entries) // 2
        for entries in (part.entries[middle:], part.entries[:middle]):
            alone = len(entries) == 1
            half = _Part(entries, part.passes, self._refused, 0 if alone else refusals)
            self._parts.append(half)

    def _wait_s(self, outcome: Outcome, searching: bool) -> float:
        # Half of it is chance, so that many programs don't come back all at once.
        wait_s = min(self._backoff_s, _SEARCH_BACKOFF_S) if searching else self._backoff_s
        wait_s *= random.uniform(0.5, 1.0)
        if not searching:
            self._backoff_s = min(self._backoff_s * 2, _LONGEST_BACKOFF_S)
        if outcome.retry_after_s is not None:
            wait_s = max(wait_s, min(outcome.retry_after_s, _LONGEST_RETRY_AFTER_S))
        return wait_s
