"""What became of the spans of a pipeline: counts in all, and of each owner.

Each waiting span knows its account. Not thread-safe: the pipeline's lock guards it.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any, NamedTuple

__all__ = ["Account", "Accounts", "PipelineStats"]


class PipelineStats(NamedTuple):
    """Counts of spans since the start: `recorded == exported + pending + sum(dropped.values())`.

    Reasons of dropping: queue_full, shutdown (unsent at the end), rejected (refused by the receiver), unencodable,
    spill_failed (lost or damaged on disk), failed (an error of ours).
    """

    recorded: int
    exported: int
    pending: int
    dropped: dict[str, int]


class Account:
    """What became of one owner's spans. `waiting` of them have not come to an end yet.

    `given_up`: the owner does not wait for any more; what is on its way still is counted already.
    """

    __slots__ = ("dropped", "exported", "given_up", "waiting")

    def __init__(self) -> None:
        self.given_up = False
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
        self._total = Account()
        self._of: weakref.WeakKeyDictionary[Any, Account] = weakref.WeakKeyDictionary()
        self._waiting: set[Account] = set()  # an owner may be gone before its spans

    def of(self, owner: Any) -> Account:
        """The account of an owner; None has one too."""
        return self.foreign if owner is None else self._of.setdefault(owner, Account())

    def stats(self) -> PipelineStats:
        """The counts of all spans."""
        return self._total.stats()

    def accept(self, count: int, account: Account) -> None:
        """So many spans begin to wait."""
        if account.given_up:
            self.refuse(count, "shutdown", account)
        elif count:
            self._waiting.add(account)
            for one in (account, self._total):
                one.waiting += count

    def refuse(self, count: int, reason: str, account: Account) -> None:
        """So many spans are dropped without having waited."""
        if count:
            for one in (account, self._total):
                one.dropped[reason] += count

    def end(self, count: int, account: Account, dropped: str | None = None) -> None:
        """So many waiting spans were exported, or `dropped` for that reason."""
        if account.given_up or not count:
            return
        for one in (account, self._total):
            one.waiting -= count
            if dropped:
                one.dropped[dropped] += count
            else:
                one.exported += count
        if not account.waiting:
            self._waiting.discard(account)

    def give_up(self, account: Account, dropped: str) -> int:
        """What waits of an account is dropped, and all that comes later: how many spans."""
        count = account.waiting
        if count:
            self.end(count, account, dropped)
        account.given_up = True
        return count

    def end_all(self, dropped: str) -> None:
        """All that wait are dropped."""
        for account in list(self._waiting):
            self.end(account.waiting, account, dropped)
