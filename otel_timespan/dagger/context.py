"""`Context`: who runs tasks and where their events go; and the eager one, which `spawn` uses.

A context starts nothing until its first task. It survives `cancel(halt_sch=True)`: its sink stays and the
next `spawn` starts a new scheduler in it.

See docs/concepts.md and docs/scheduling.md.
"""

from __future__ import annotations

import contextvars
import functools
import logging
import time
import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from .. import exits, forks
from ..errors import ConcurrencyViolationError, InvalidOptionError, NoWorkersError, SchedulingError, TaskCancelled
from ..timespans.durations import seconds
from ..timespans.model import EventId, Timeline
from ..timespans.recorder import Recorder, recorder_for
from ..timespans.scheduler import set_scheduler
from ..timespans.sink import NoOpLog
from . import debug
from .bodies.ending import halt
from .core.machine import Core
from .core.placement import slots_of
from .data import caching
from .data.caching import devices_for
from .drivers.base import methods_missing
from .drivers.threads import ThreadsDriver
from .fetching import wait
from .places.processors import OSProc, invalidation_hooks, topology
from .processes.owned import OwnedWorkers
from .records import kinds as records
from .service import janitor
from .service.guards import guard
from .service.uninterrupted import uninterrupted
from .tasks import failures as unseen
from .tasks.dtask import DTask
from .tasks.ids import IdBlocks

__all__ = ["Context", "addprocs", "eager_context", "eager_state", "nprocs", "procs", "rmprocs", "workers"]

LOGGER = logging.getLogger("otel_timespan")

ids: IdBlocks = IdBlocks()
"""The task ids of this process. The first belongs to the eager scheduler's internal root, which is never seen."""
ids.next()


class Context:
    """Where tasks run and where their events go.

    `procs`: worker ids or `OSProc`s, by default all that are not another context's own. `threads`: slots, i.e.
    bodies at once, in this process; default `max(2, usable CPUs)` or the environment's OTEL_TIMESPAN_THREADS.
    `workers`: so many worker processes of its own, with one thread each, besides `procs`: they are started when it is
    entered or gets its first task, and end with its scheduler; one that dies is replaced. `log_sink`: a sink (see
    `otel_timespan.timespans`), by default `NoOpLog()`; may be set at any time. `profile`: sample the
    stacks of computes. `driver`: "threads", or an `InlineDriver` for deterministic tests.

    `with Context(...) as ctx:` makes it the one that `spawn` uses; leaving waits for its tasks and shuts
    it down. Thread-safe. Raises `InvalidOptionError` for values that can't work.
    """

    def __init__(
        self,
        procs: Iterable[Any] | None = None,
        *,
        threads: int | None = None,
        workers: int = 0,
        log_sink: Any = None,
        profile: bool = False,
        driver: Any = "threads",
    ) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InvalidOptionError(f"threads must be a positive int or None, not {threads!r}")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise InvalidOptionError(f"workers must be a number of processes, 0 or more, not {workers!r}")
        if driver != "threads" and (missing := methods_missing(driver)):
            lacks = "" if len(missing) > 9 else f"; it lacks {', '.join(missing)}"
            raise InvalidOptionError(f'driver must be "threads", or a driver like InlineDriver, not {driver!r}{lacks}')
        if workers and driver != "threads":
            raise InvalidOptionError(f'workers={workers} needs the driver "threads", not {driver!r}')
        self.threads = threads
        self.workers = workers
        self.profile_computes = bool(profile)
        self.recorder: Recorder | None = None
        """What the scheduler asks once a phase; None when the sink is a `NoOpLog`."""
        self.core: Core | None = None
        """The running scheduler, None before the first task and after a halt."""
        self._driver = driver
        self._procs = _osprocs(procs) if procs is not None else None
        self._owned = OwnedWorkers(workers) if workers else None
        self._lock = guard()
        self._batches: weakref.WeakSet[Context] = weakref.WeakSet()
        self._whole: Context | None = None
        """The context that this one makes a batch run for."""
        self._outer: Context | None = None
        self._log_sink: Any = NoOpLog()
        self.log_sink = NoOpLog() if log_sink is None else log_sink

    @property
    def log_sink(self) -> Any:
        """The sink of all events. Setting it takes effect with the next phase of every task."""
        return self._log_sink

    @log_sink.setter
    def log_sink(self, sink: Any) -> None:
        sink = NoOpLog() if sink is None else sink
        if not _is_sink(sink):
            known = "NoOpLog, LocalEventLog, MultiEventLog, OTelLog, a list ..."
            raise InvalidOptionError(f"log_sink must be a sink ({known}), not {sink!r}")
        self.recorder = recorder_for(sink)
        self._log_sink = sink

    def __repr__(self) -> str:
        core = self.core
        state = "not started"
        if core is not None:
            unfinished = sum(1 for _ in core.unfinished())
            state = f"scheduler {core.uid}, {len(core.slots)} slots, {unfinished} unfinished tasks"
        return f"<Context: {state}, log_sink={type(self._log_sink).__name__}>"

    def profile(self, category: str, id: Any, timeline: Any) -> bool:
        """The profile hook of the log: only computes are profiled."""
        return self.profile_computes and category == "compute"

    @property
    def procs(self) -> list[OSProc]:
        """The workers that this context uses (a copy)."""
        if self._procs is not None:
            return list(self._procs)
        own = [] if self._owned is None else self._owned.ids
        return [OSProc(worker) for worker in (*topology.common(), *own)]

    def for_batch(self) -> Context:
        """A context like this one, with the same sink, for one batch run."""
        self._start_workers()
        driver = self._driver if self._driver == "threads" else self._driver.similar()
        sink, procs = self._log_sink, self._procs
        batch = Context(procs, threads=self.threads, log_sink=sink, profile=self.profile_computes, driver=driver)
        batch._whole = self
        batch._owned = self._owned
        self._batches.add(batch)
        return batch

    # ---- the scheduler of this context -------------------------------------------------------------

    def start(self) -> Core:
        """The running scheduler, started if there is none."""
        core = self.core
        if core is None:  # not in the main thread: a signal handler on top of it would find it half started
            self._start_workers()
            core = uninterrupted(contextvars.copy_context().run, self._start_once)
        return core

    def _start_once(self) -> Core:
        with self._lock:
            core = self.core
            if core is None:
                core = self.core = self._start()
                core.devices = devices_for(core.shared)  # now that a change of the global device would find it
            return core

    def _start(self) -> Core:
        _refuse_in_worker()
        traced = debug.wanted()
        devices_for(())  # wrong variables of the environment are an error now
        clock = time.monotonic_ns
        if self._driver == "threads":
            t0 = clock()
            self._announce()
            core = ThreadsDriver().attach(self)
            self._add_workers(core, [proc.pid for proc in self.procs])
        else:
            core = self._driver.attach(self)
            clock = core.clock
            t0 = clock()
        if traced:
            debug.attach(core, traced)
        self._record(core, "scheduler_init", t0, clock(), uid=core.uid)
        for worker in core.active:
            self._record_worker(core, worker, t0)
        _running.add(self)
        return core

    # ---- workers -----------------------------------------------------------------------------------

    @property
    def owned(self) -> OwnedWorkers:
        """Its own workers. Raises `InvalidOptionError` for a context without."""
        if self._owned is None:
            raise InvalidOptionError("this context has no workers of its own: Context(workers=n) has")
        return self._owned

    def _start_workers(self) -> None:
        """Start those of its own, unless they are there. Raises what `OwnedWorkers.start` raises."""
        if self.workers and self._owned is not None:
            self._owned.on_change = functools.partial(_change_own, weakref.ref(self))
            self._change_own([], uninterrupted(self._owned.start))

    def _end_workers(self) -> None:
        """End those of its own; batch runs of other threads go on without them."""
        if self.workers and self._owned is not None:
            self._owned.stop(lambda gone: self._change_own(gone, []))

    def _change_own(self, gone: list[int], new: list[int]) -> None:
        """Workers of its own came or went."""
        if not gone and not new:
            return
        with self._lock:
            if self._procs is not None:
                self._procs = [p for p in self._procs if p.pid not in gone] + _osprocs(new)
            core = self.core
        if core is not None:
            self._assign(core, [p.pid for p in self.procs])
        for batch in list(self._batches):
            batch._change_own(gone, new)

    def add_procs(self, procs: Iterable[Any]) -> None:
        """See `addprocs`."""
        self._change_procs(_osprocs(procs), add=True)

    def remove_procs(self, procs: Iterable[Any]) -> None:
        """See `rmprocs`."""
        self._change_procs(_osprocs(procs), add=False)

    def _change_procs(self, changed: list[OSProc], add: bool) -> None:
        with self._lock:
            before, core = self.procs, self.core
            unknown = [p.pid for p in changed if add and core is not None and not core.driver.can_use(p.pid)]
            if unknown:
                raise InvalidOptionError(f"there are no workers {unknown}: start them first")
            if add:
                self._procs = list(dict.fromkeys([*before, *changed]))
            else:
                self._procs = [p for p in before if p not in changed]
            now = self._procs
        if core is not None and now != before:
            self._assign(core, [p.pid for p in now])
        for batch in list(self._batches):
            batch._change_procs(changed, add)

    def _assign(self, core: Core, workers: list[int]) -> None:
        """Give a running scheduler exactly those workers (event `assign_procs`)."""
        t0 = core.clock()
        for worker in [w for w in core.active if w not in workers]:
            t1 = core.clock()
            core.remove_worker(worker)
            self._record(core, "cleanup_proc", t1, core.clock(), uid=core.uid, worker=worker)
        for worker, t1 in self._add_workers(core, workers):
            self._record_worker(core, worker, t1)
        self._record(core, "assign_procs", t0, core.clock(), uid=core.uid)
        if core.is_batch and not core.active:
            halt(core, NoWorkersError("no remaining workers", "no_processors"))

    def _add_workers(self, core: Core, workers: list[int]) -> list[tuple[int, int]]:
        """Give a scheduler those of these workers that it can use and has not yet; (worker, when) of each."""
        added = []
        for worker in [w for w in workers if w not in core.active and core.driver.can_use(w)]:
            added.append((worker, core.clock()))
            core.driver.expect(worker)
            core.driver.add_slots(core.add_worker(worker, slots_of(worker)))
        return added

    def lose_worker(self, worker: int) -> None:
        """A worker process is gone, and so is its place in the list of this context."""
        with self._lock:
            if self._procs is not None:
                self._procs = [proc for proc in self._procs if proc.pid != worker]
        if self._whole is not None:
            self._whole.lose_worker(worker)

    def follow_workers(self) -> None:
        """Workers came or went: a running scheduler that uses all there are is told."""
        core = self.core
        if core is not None and self._procs is None and self._driver == "threads":
            self._assign(core, [p.pid for p in self.procs])

    def refresh(self, worker: int) -> None:
        """The custom processors of a worker changed: the running scheduler gets and loses slots."""
        core = self.core
        if core is None or worker not in core.active:
            return
        found = {slot.processor: slot for slot in slots_of(worker)}
        gone = [p for p, slot in core.slots.items() if slot.worker == worker and not slot.shares and p not in found]
        orphans = core.remove_slots(gone)
        core.driver.add_slots(core.add_worker(worker, found.values()))
        core.driver.enqueue_ready(orphans)

    def _announce(self) -> None:
        """Tell the scopes how many slots there are, now that this context is the current one."""
        if self._driver == "threads":
            topology.add_worker(1, self.threads)
        else:
            self.start()

    def _record_worker(self, core: Core, worker: int, t0: int) -> None:
        """A worker was set up: the event says how many slots it has, whether or not they come to run anything.

        And of one that is a process which it is, and what runs there.
        """
        slots = sum(slot.worker == worker for slot in list(core.slots.values()))
        remote = getattr(core.driver, "remote", None)
        about = {} if remote is None else remote.about(worker)
        self._record(core, "init_proc", t0, core.clock(), Timeline(slots=slots, **about), uid=core.uid, worker=worker)

    def _record(self, core: Core, category: str, t0: int, t1: int, timeline: Any = None, **fields: Any) -> None:
        recorder = self.recorder
        if recorder is not None:
            if category.startswith("scheduler"):
                timeline = OSProc(1)
            recorder.append((records.SPAN, category, EventId(**fields), timeline, t0, t1, 1, recorder.sample()))

    def shutdown(self, error: BaseException | None = None, timeout_s: float | None = None) -> None:
        """End the scheduler: unfinished tasks fail with `error` (default: SchedulingError, code exited).

        Bodies that run are abandoned; their threads are joined for a bounded time. Does nothing when
        none runs. The next `spawn` starts a new one.
        """
        patience_s = None if timeout_s is None else seconds(timeout_s, "timeout_s")
        with self._lock:
            core, self.core = self.core, None
            _running.discard(self)
        try:
            if core is not None:
                self._shut_down(core, error, patience_s)
        finally:
            self._end_workers()

    def _shut_down(self, core: Core, error: BaseException | None, patience_s: float | None) -> None:
        t0 = core.clock()
        halt(core, error or SchedulingError("the scheduler has exited", "exited"))
        core.driver.close() if patience_s is None else core.driver.close(patience_s)
        for worker in core.active:
            self._record(core, "cleanup_proc", t0, core.clock(), uid=core.uid, worker=worker)
        self._record(core, "scheduler_exit", t0, core.clock(), uid=core.uid)

    def wait_idle(self) -> None:
        """Wait until every task of this context finished. Never raises a task's error."""
        core = self.core
        while core is not None and core.halted is None:
            pending = list(core.unfinished())
            for task in pending:
                if core.halted is None:
                    wait(task)
            if not pending and core.driver.is_idle():
                return
            if not pending:
                time.sleep(0.0005)  # a task is in somebody's hands, between a queue and its body

    def __enter__(self) -> Context:
        global _eager
        with _eager_lock:
            if self._outer is not None:
                raise ConcurrencyViolationError("this context is entered already")
            self._outer = _eager or _NOBODY
            _eager = self
        try:
            self._start_workers()
        except BaseException:
            with _eager_lock:
                _eager = self._outer if self._outer is not _NOBODY else None
                self._outer = None
            raise
        self._announce()  # before the first task: for scopes that are made meanwhile
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _eager
        try:
            if kind is None or issubclass(kind, Exception):
                self.wait_idle()
        finally:
            with _eager_lock:
                outer = _eager = self._outer if self._outer is not _NOBODY else None
                self._outer = None
            self.shutdown(TaskCancelled("the context was left by an interrupt") if _is_interrupt(kind) else None)
            if outer is not None:
                outer._announce()
            else:
                topology.add_worker(1)


def _change_own(context: weakref.ref[Context], gone: list[int], new: list[int]) -> None:
    found = context()
    if found is not None:
        found._change_own(gone, new)


def _is_interrupt(kind: type[BaseException] | None) -> bool:
    return kind is not None and not issubclass(kind, Exception)


def _is_sink(sink: Any) -> bool:
    return callable(sink) or any(callable(getattr(sink, name, None)) for name in ("write_event", "append", "put"))


def _osprocs(procs: Any) -> list[OSProc]:
    if isinstance(procs, (str, bytes)) or not isinstance(procs, Iterable):
        raise InvalidOptionError(f"a list of workers is needed here, not {procs!r}")
    return [_osproc(p) for p in procs]


def _osproc(p: Any) -> OSProc:
    if isinstance(p, OSProc):
        return p
    if isinstance(p, int) and not isinstance(p, bool):
        return OSProc(p)
    raise InvalidOptionError(f"a context takes worker ids or OSProcs, not {p!r}")


_running: set[Context] = set()
_eager: Context | None = None
_eager_lock = guard()
_NOBODY: Any = object()


def eager_context() -> Context:
    """The context that `spawn` uses now; made at the first call. Starts nothing."""
    global _eager
    context = _eager
    if context is None:
        with _eager_lock:
            if _eager is None:
                _eager = Context()
            context = _eager
    return context


def eager_procs() -> list[OSProc]:
    """The workers of the context that `spawn` uses now. Makes and starts nothing."""
    return [OSProc(worker) for worker in topology.common()] if _eager is None else _eager.procs


def _known() -> list[int]:
    """All workers but those that another context has for itself."""
    own = [] if _eager is None or _eager._owned is None else _eager._owned.ids
    return [*topology.common(), *own]


def eager_state() -> Core | None:
    """The scheduler of the current context: None before the first spawn and after a halt, and in workers."""
    core = None if _eager is None else _eager.core
    return core if core is None or core.local == 1 else None


def procs(ctx: Context | None = None) -> list[Any]:
    """The workers of a context as `OSProc`s (a copy); without one the ids of all but those of other contexts' own."""
    return _known() if ctx is None else ctx.procs


def addprocs(ctx: Context, ids: Iterable[Any]) -> None:
    """Add workers (ids or `OSProc`s) to a context; a running scheduler gives them work at once.

    Those that are in it already change nothing. Tasks that found no worker before begin. Thread-safe. Raises
    `InvalidOptionError` where the context runs already and there is no such worker; before, it stays on the
    list, without effect.
    """
    ctx.add_procs(ids)


def rmprocs(ctx: Context, ids: Iterable[Any]) -> None:
    """Take workers out of a context: they finish what they have and get nothing new.

    Without any worker left a batch run fails (`NoWorkersError`); tasks of the eager scheduler wait until
    `addprocs`. Those that are not in it change nothing. Thread-safe.
    """
    ctx.remove_procs(ids)


def workers() -> list[int]:
    """The ids of the worker processes: all but 1 and other contexts' own, or [1] when there are none."""
    return [worker for worker in _known() if worker != 1] or [1]


def nprocs() -> int:
    """How many workers `procs()` names, worker 1 included."""
    return len(_known())


def running_cores() -> list[Core]:
    """The running scheduler of every context of this process."""
    return [core for context in list(_running) if (core := context.core) is not None]


def unfinished_by_id(task_id: int) -> DTask | None:
    """The unfinished task with this id in any running context of this process."""
    for context in list(_running):
        if context.core is not None:
            for task in context.core.unfinished():
                if task.id == task_id:
                    return task
    return None


def _refuse_in_worker() -> None:
    if topology.me() != 1:
        raise ConcurrencyViolationError("a scheduler starts on worker 1 only: spawn there, or from inside a task")


def tasks_not_begun() -> int:
    """How many tasks of this process would be dropped if it ended now."""
    return sum(1 for core in running_cores() for task in core.unfinished() if task not in core.running)


def tell_dropped(tasks: int) -> None:
    """Say that a program ended before so many of its tasks had begun, if any."""
    if tasks:
        text = "the program ends, and %d of the tasks it spawned have not begun: fetch or wait for them, or spawn in a "
        LOGGER.warning(text + "`with Context():`, which waits", tasks)


def leave() -> None:
    """The program is over: drop what waits, give running bodies a moment, end all schedulers; never hang."""
    for context in list(_running):
        context.shutdown()


def _at_exit() -> None:
    """The interpreter ends."""
    tell_dropped(tasks_not_begun())
    leave()
    unseen.flush()
    janitor.finish()


@forks.in_child("_running")
def _in_child() -> None:
    """After a fork: the threads are the parent's. Its tasks can't end here, and a new spawn starts anew."""
    for context in list(_running):
        core, context.core = context.core, None
        if core is not None:
            getattr(core.driver, "forget", _nothing)()
            core.halted = SchedulingError("the scheduler stayed in the parent of this forked process", "exited")
    _running.clear()


def _nothing() -> None:
    """What drivers of others do in a child."""


def _refresh(worker: int) -> None:
    for context in list(_running):
        context.refresh(worker)


def _take_devices() -> None:
    for core in running_cores():
        core.devices = devices_for(core.shared)


invalidation_hooks.append(_refresh)
caching.listeners.append(_take_devices)
set_scheduler(this=topology.me, known=topology.workers, context=eager_context)
exits.before_exit(_at_exit)  # the log is flushed after that, and wants what we emit while going down
