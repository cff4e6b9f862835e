"""What became of the spans of a pipeline: counts in all, and of each owner.

Spans leave a pipeline in the order in which they came, so that a list of owners and numbers says whose a settled
span was; not so of the spans that a receiver rejects within a request that it takes: these count as the
request's first. Not thread-safe: the pipeline's lock guards it.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from typing import Any, NamedTuple

__all__ = ["Account", "Accounts", "PipelineStats"]


class PipelineStats(NamedTuple):
    """Counts of spans since the start: `recorded == exported + pending + sum(dropped.values())`.

    Reasons of dropping: queue_full, shutdown (unsent at the end), rejected (refused by the receiver), unencodable,
    spill_failed, failed (an error of ours).
    """

    recorded: int
    exported: int
    pending: int
    dropped: dict[str, int]


class Account:
    """What became of one owner's spans. `waiting` of them have not come to an end yet."""

    __slots__ = ("dropped", "exported", "waiting")

    def __init__(self) -> None:
        self.exported = self.waiting = 0
        self.dropped: Counter[str] = Counter()

    def stats(self) -> PipelineStats:
        """The counts at this moment."""
        recorded = self.exported + self.waiting + sum(self.dropped.values())
        return PipelineStats(recorded, self.exported, self.waiting, dict(self.dropped))


class Accounts:
    """The accounts of all who put spans. `foreign` is that of spans without an owner."""

    def __init__(self) -> None:
        self.foreign = Account()
        self._recorded = self._exported = 0
        self._dropped: Counter[str] = Counter()
        self._of: weakref.WeakKeyDictionary[Any, Account] = weakref.WeakKeyDictionary()
        self._order: deque[tuple[Account, int]] = deque()  # whose the waiting spans are, oldest first

    def of(self, owner: Any) -> Account:
        """The account of an owner; None has one too."""
        return self.foreign if owner is None else self._of.setdefault(owner, Account())

    def stats(self, pending: int) -> PipelineStats:
        """The counts of all spans, of which `pending` have not come to an end yet."""
        return PipelineStats(self._recorded, self._exported, pending, dict(self._dropped))

    def accept(self, count: int, account: Account) -> None:
        """So many spans begin to wait."""
        if count:
            self._recorded += count
            account.waiting += count
            if self._order and self._order[-1][0] is account:
                count += self._order.pop()[1]
            self._order.append((account, count))

    def refuse(self, count: int, reason: str, account: Account) -> None:
        """So many spans are dropped without having waited."""
        if count:
            self._recorded += count
            self._dropped[reason] += count
            account.dropped[reason] += count

    def export(self, count: int) -> None:
        """The oldest so many were exported."""
        self._exported += count
        self._release(count, None)

    def lose(self, count: int, reason: str, only: Account | None = None) -> None:
        """The oldest so many (`only` of that account) are dropped."""
        if count:
            self._dropped[reason] += count
            self._release(count, reason, only)

    def _release(self, count: int, dropped: str | None, only: Account | None = None) -> None:
        skipped: list[tuple[Account, int]] = []
        while count and self._order:
            account, number = self._order.popleft()
            if only is not None and account is not only:
                skipped.append((account, number))
                continue
            part = min(number, count)
            if part < number:
                self._order.appendleft((account, number - part))
            count -= part
            account.waiting -= part
            if dropped:
                account.dropped[dropped] += part
            else:
                account.exported += part
        self._order.extendleft(reversed(skipped))
