"""The last step of a log: its spans are redacted and handed to its backend, and every one of them is accounted for.

`redact` is the user's, and may take for ever. So it is known at any moment how many spans are being asked about, in a
list of one number: who pops it accounts for them, be it who hands them on, or who closes the log and waits no longer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..timespans.warn import warn_once
from .export.transport import Wrapped
from .spans.redact import Redact, redacted
from .spans.spandata import SpanData

if TYPE_CHECKING:
    from .backend import Backend

__all__ = ["Handover"]


class Handover:
    """Hands the spans of one log on. `lock` guards its counts, which the account of the log reads.

    `lost`: spans that could not be handed on; `late`: those that the end of the log came before.
    """

    def __init__(self, backend: Callable[[], Backend | None], redact: Redact | None, lock: Any) -> None:
        self._backend, self._redact, self._lock = backend, redact, lock
        self.lost = self.late = 0
        self.in_hand: list[int] | None = None
        """How many spans are being redacted."""
        self.stop_at: float | None = None
        """When the log was closed, its deadline: what has not been asked about by then does not leave."""

    def packed(self, packed: list[bytes], count: int) -> None:
        """Hand on spans that are bytes already. Never raises."""
        backend = self._backend()
        if not packed or backend is None:
            return
        try:
            backend.put_packed(packed, count)
        except Exception:
            self.lost += count
            warn_once(self, "spans could not be handed to the exporter")

    def forwarded(self, spans: list[Wrapped]) -> None:
        """Hand on what programs made in workers: theirs, so that nobody is asked about it. Never raises."""
        backend = self._backend()
        if not spans or backend is None:
            return
        try:
            backend.put(spans)
        except Exception:
            self.lost += len(spans)
            warn_once(self, "spans of workers could not be handed to the exporter")

    def spans(self, spans: list[SpanData], handing: list[int] | None = None) -> None:
        """Hand on others. Raises only what is no `Exception`."""
        if not spans:
            return
        backend = self._backend()
        handing = self.in_hand = handing or [len(spans)]
        try:
            ready = self._redacted(spans)
            if self._account_for(handing, len(ready)) and backend is not None:
                backend.put(ready)
        except BaseException as error:
            self.lost += len(spans)
            if not isinstance(error, Exception):
                raise
            warn_once(self, "spans could not be handed to the exporter")
        finally:
            self.in_hand = None

    def last(self, spans: list[SpanData], deadline: float, others: list[int] | None) -> None:
        """Hand on the last ones, and wait for the `others` that are in hand, until the deadline at most."""
        own = self._until(deadline, spans)
        for one in (others, own):  # whoever is at them may be so for ever
            while one and time.monotonic() < deadline:
                time.sleep(0.001)
            if one:
                self._account_for(one, 0)

    def _until(self, deadline: float, spans: list[SpanData]) -> list[int]:
        """Hand on, in another thread where that asks code of the user's, which may not come back."""
        handing = [len(spans)] if spans else []
        if self._redact is not None and spans:
            thread = threading.Thread(target=self.spans, args=(spans, handing), name="timespan-close", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter goes down
                pass
            else:
                thread.join(max(0.0, deadline - time.monotonic()))
                return handing
        self.spans(spans, handing)
        return handing

    def _redacted(self, spans: list[SpanData]) -> list[SpanData]:
        """The spans as they may leave; when the log is closed, those that it had the time to ask about."""
        redact = self._redact
        if redact is None:
            return spans
        ready = []
        for span in spans:
            if self.stop_at is not None and time.monotonic() >= self.stop_at:
                break
            ready.append(redacted(redact, span))
        return ready

    def _account_for(self, handing: list[int], ready: int) -> bool:
        """So many of the spans in hand can leave, the rest came too late; False if somebody else accounted for them."""
        try:
            count = handing.pop()
        except IndexError:
            return False
        if count > ready:
            with self._lock:
                self.late += count - ready
        return True
