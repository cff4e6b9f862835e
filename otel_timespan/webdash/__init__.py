"""The live page. Not written yet: so far what can be recorded for it."""

from ..events.table import TableStorage

__all__ = ["TableStorage"]
