"""What a pipeline says of its receiver in the program's log."""

from __future__ import annotations

import logging

from .transport import Transport, outage_left, outage_level, outage_over

__all__ = ["Telling"]

_log = logging.getLogger("otel_timespan")


class Telling:
    """The lines of one pipeline. `answered`: whether the receiver ever did; else what to do is said, once."""

    def __init__(self, transport: Transport, max_bytes: int) -> None:
        self._transport, self._max_bytes = transport, max_bytes
        self._hinted = False

    def outage(self, message: str, answered: bool) -> None:
        """It can't be reached. Where another pipeline has said so already it is no warning."""
        level = outage_level(self._transport.host, "traces", id(self))
        text = "spans can't be sent to %s (%s); up to %d MiB of them are kept and sent later%s"
        told = _one_line(message), self._max_bytes >> 20, self._hint(answered)
        _log.log(level, text, self._transport.target, *told)

    def over(self) -> None:
        """It takes spans again."""
        outage_over(self._transport.host)
        _log.info("%s takes spans again", self._transport.target)

    def refused(self, count: int, message: str) -> None:
        """It does not want these spans."""
        _log.warning("%s refused %d spans: %s", self._transport.target, count, _one_line(message))

    def lost(self, count: int, answered: bool) -> None:
        """There is no time left for these."""
        hint = self._hint(answered)
        _log.warning("%d spans are lost: they could not be sent to %s in time%s", count, self._transport.target, hint)

    def left(self) -> None:
        """The pipeline is closed: another one says of an outage that goes on."""
        outage_left(self._transport.host, id(self))

    def _hint(self, answered: bool) -> str:
        """What to do where a receiver never answered, once."""
        advice = "" if answered or self._hinted else self._transport.advice
        self._hinted = self._hinted or bool(advice)
        return f"; {advice}" if advice else ""


def _one_line(message: str) -> str:
    return " ".join(message.split())[:500]
