"""TimespanLogging: events, timespans, sinks and matching. See docs/concepts.md."""

from .calling import init_similar
from .emit import OpenSpan, prof_task_put, profile, span, timespan_finish, timespan_start
from .eventfile import read_events
from .iolog import IOLog
from .journal import Journal, drain_all
from .locks import CountingLock
from .matching import SpanBuilder, aggregate_events, build_timespans, summarize_events
from .model import (
    ChunkInfo,
    Event,
    EventId,
    GCDiff,
    GCNum,
    ProfilerResult,
    TaskRef,
    Timeline,
    Timespan,
    ValueInfo,
    make_timespan,
)
from .multi import MultiEventLog
from .recorder import Recorder, recorder_for
from .sink import NoOpLog, Sink, get_logs, log_sink, write_event
from .sinks import FilterLog, LocalEventLog, QueueLog, TeeLog

__all__ = [
    "ChunkInfo",
    "CountingLock",
    "Event",
    "EventId",
    "FilterLog",
    "GCDiff",
    "GCNum",
    "IOLog",
    "Journal",
    "LocalEventLog",
    "MultiEventLog",
    "NoOpLog",
    "OpenSpan",
    "ProfilerResult",
    "QueueLog",
    "Recorder",
    "Sink",
    "SpanBuilder",
    "TaskRef",
    "TeeLog",
    "Timeline",
    "Timespan",
    "ValueInfo",
    "aggregate_events",
    "build_timespans",
    "drain_all",
    "get_logs",
    "init_similar",
    "log_sink",
    "make_timespan",
    "prof_task_put",
    "profile",
    "read_events",
    "recorder_for",
    "span",
    "summarize_events",
    "timespan_finish",
    "timespan_start",
    "write_event",
]
