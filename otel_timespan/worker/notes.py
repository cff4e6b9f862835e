"""What a worker notes of the bodies that it runs, for the logs of its head: as much as the head asked for.

While no log wants anything nothing is noted, and outcomes carry nothing. Else the scheduler here has a recorder, which
keeps the times of each body until its outcome takes them along; a body that runs for long is told of before.

See docs/workers.md.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from ..dagger.processes.wire import SIGNALS, STARTED, dumps, loads
from ..dagger.records import kinds as records
from ..dagger.service.threads import start_bare
from ..dagger.tasks.dtask import FAILED, DTask
from ..timespans.recorder import Recorder
from ..timespans.warn import warn_once

if TYPE_CHECKING:
    from .link import Link

__all__ = ["Notes"]

LONG_NS = 100_000_000
"""A body that runs longer than that is told of before it ends."""


class Notes:
    """See the module. `set_level` is called by the thread that reads, all else by any."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open: dict[int, list[Any]] = {}
        self._told: set[int] = set()
        self._level = 0
        self._parts: dict[int, Any] = {}
        self._clock: threading.Thread | None = None

    def set_level(self, level: Any) -> None:
        """Note what is wanted from now on (wire.py: LEVEL)."""
        context = self._link.core.context
        if level is None:
            context.recorder = None
            self._take_parts({})
            return
        self._level, wants_cpu, twins, parts = level
        self._take_parts(parts)
        recorder = Recorder(
            self._note,
            put=_forget,
            again=_forget,
            on_body=self._on_body if self._parts else None,
            wants_cpu=wants_cpu,
        )
        if twins is not None:
            recorder.samplers = tuple([_twin(twin) for twin in twins])
        context.recorder = recorder
        if self._clock is None:
            self._clock = threading.Thread(target=self._tell_of_long_ones, name="worker-clock", daemon=True)
            start_bare(self._clock)

    def take(self, task: DTask) -> list[Any] | None:
        """What was noted of a task whose outcome is there; None for nothing."""
        notes = self._open.pop(task.id, None)
        if notes is not None:
            self._told.discard(task.id)
            span = notes[7]
            if span is not None and type(span) is not str:
                told = task._state == FAILED and span.has_recorded(task._outcome.ex)
                notes[7] = (dumps(span, {})[0], told)
        if self._parts:
            self.hand_over()
        return notes

    def hand_over(self) -> None:
        """Send what bodies told the parts of logs."""
        for part in list(self._parts.values()):
            part.hand_over()

    def close(self) -> None:
        """The worker ends: send what is left."""
        for part in list(self._parts.values()):
            part.close()

    # ---- the recorder ------------------------------------------------------------------------------------

    def _note(self, record: Any) -> None:
        kind = record[0]
        if kind == records.START:
            _, taken, _, begun, _, id, _, _, shares, thread, samples = record
            sampled = None if samples is None else [self._level, _packed(samples), None]
            self._open[id] = [shares, taken, begun, 0, 0, thread, None, None, sampled]
        elif kind == records.RETURN:
            self._note_end(record[4], record[1], record[2], record[11], record[12], record[15])
        elif kind == records.END:
            self._note_end(record[4], record[1], record[2], record[8], record[9], record[13])

    def _note_end(self, id: int, ended: int, packed: int, cpu_ns: int | None, span: Any, samples: Any) -> None:
        notes = self._open.get(id)
        if notes is not None:
            notes[3], notes[4], notes[6], notes[7] = ended, packed, cpu_ns, span
            if notes[8] is not None and samples is not None:
                notes[8][2] = _packed(samples)

    def _tell_of_long_ones(self) -> None:
        while True:
            time.sleep(LONG_NS / 1e9)
            self.hand_over()
            since = time.monotonic_ns() - LONG_NS
            for id, notes in list(self._open.items()):
                task = self._link.running(id)
                if notes[2] < since and not notes[3] and id not in self._told and task is not None:
                    self._told.add(id)
                    attempt = 1 if task._live is None else task._live.attempt
                    tid = 0 if task._slot is None else task._slot.number
                    self._link.say((STARTED, id, attempt, tid, notes))
                    self._link.flush()

    # ---- the parts of logs that are here -------------------------------------------------------------------

    def _take_parts(self, parts: dict[int, bytes]) -> None:
        for number in self._parts.keys() - parts.keys():
            self._parts.pop(number).close()
        for number, data in parts.items():
            if number not in self._parts:
                try:
                    self._parts[number] = loads(data).begin(
                        self._link.worker, self._sender(number), self._link.flight.made
                    )
                except Exception:
                    warn_once((Notes, number), "a log has no part in worker %d: its spans say less", self._link.worker)

    def _sender(self, number: int) -> Any:
        def send(signal: str, count: int, data: bytes | None, given_up: int) -> None:
            self._link.say((SIGNALS, number, signal, count, data, given_up))

        return send

    def _on_body(self, id: int, attempt: int, function: Any, label: Any, caller: Any, start_ns: int) -> Any:
        if caller is None:
            return None
        part = self._parts.get(caller[0])
        return None if part is None else part.on_body(id, attempt, function, label, caller[1], start_ns)


def _twin(data: bytes | None) -> Any:
    try:
        return _Absent() if data is None else loads(data)
    except Exception:
        warn_once(Notes, "a consumer that samples can't be read here; its values from this worker are None")
        return _Absent()


class _Absent:
    """Samples nothing, for a consumer that can't be here."""

    def sample(self) -> None:
        """None."""
        return


def _packed(samples: dict[Any, Any]) -> bytes | None:
    """Values that were sampled, in the order of the samplers, as bytes."""
    try:
        return dumps(list(samples.values()), {})[0]
    except Exception:
        warn_once(_packed, "what consumers sampled can't be sent; their values from this worker are None")
        return None


def _forget(record: Any) -> None:
    """What the end of values is worth here."""
