"""The live page. Not written yet: so far what can be recorded for it (spec/timespans.md §7.2)."""

from ..events.table import TableStorage

__all__ = ["TableStorage"]
