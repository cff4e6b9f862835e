"""A signal handler may use the scheduler, wherever in it the main thread is just then."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

import otel_timespan.dagger
from otel_timespan.dagger.service.guards import any_held, guard
from tests.dagger.acceptance.support import run_program

PROGRAM = """
import faulthandler, logging, random, signal, sys, time
import otel_timespan as ts
from otel_timespan import dagger as D
from otel_timespan.dagger.core.invariants import check_idle
from otel_timespan.timespans.emit import timespan_finish, timespan_start

faulthandler.dump_traceback_later(50, exit=True)
logging.disable()
logged = {logged}
pinned = D.Options(scope=D.scope(worker=1, thread=1))
shared = D.Options(occupancy={{D.ThreadProc: 0.5}}, scope=D.scope(worker=1, thread=2))
limited = D.Options(limit="few")
D.set_limit("few", 2)
log = ts.enable_logging() if logged else None
context = ts.eager_context()
executor, own = ts.Executor(), ts.Executor(2)
finished = ts.spawn(int)
ts.fetch(finished)
made, futures, count, inside = [], [], 0, False

def emit():
    timespan_start(context, "mine", count, None)
    timespan_finish(context, "mine", count, None)

def new_function():
    made.append(ts.spawn(eval("lambda: 1")))

ACTIONS = [
    D.status,
    lambda: made.append(ts.spawn(int)),
    lambda: made.append(ts.spawn(divmod, 1, 0)),
    lambda: made.append(ts.spawn(int, pinned)),
    lambda: made.append(ts.spawn(int, shared)),
    lambda: made.append(ts.spawn(int, limited)),
    lambda: made.append(ts.spawn(int, D.Options(timeout=60))),
    lambda: D.cancel(ts.spawn(int)),
    lambda: D.cancel(ts.spawn(int, pinned)),
    lambda: D.cancel(ts.spawn(int, limited)),
    lambda: D.cancel(ts.spawn(int), force=True),
    lambda: D.set_limit("few", 2 + count % 2),
    lambda: futures.append(executor.submit(int)),
    lambda: futures.append(own.submit(int)),
    lambda: ts.fetch(finished),
    lambda: setattr(context, "log_sink", context.log_sink),
    new_function,
    emit,
]

def handle(number, frame):
    global inside, count
    if inside:
        return
    inside = True
    try:
        count += 1
        ACTIONS[count % len(ACTIONS)]()
    finally:
        inside = False

signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0013)
choice = random.Random({seed})
turn = 0
while count < 800:
    turn += 1
    choice.choice(ACTIONS)()
    if turn % 20 == 0:
        for task in made[-10:]:
            D.wait(task)
        for future in futures[-10:]:
            future.exception()
    if log is not None and turn % 50 == 0:
        ts.get_logs(log)
signal.setitimer(signal.ITIMER_REAL, 0)
for task in made:
    D.wait(task, timeout=20)
for future in futures:
    future.exception(20)
core = D.eager_state()
while not (core.driver.is_idle() and not core.running):
    time.sleep(0.002)
check_idle(core)
print("ok")
"""


@pytest.mark.parametrize("logged", [False, True], ids=["no log", "log"])
@pytest.mark.parametrize("seed", [1, 2])
def test_handlers_use_the_scheduler(logged: bool, seed: int) -> None:
    """Spawn, cancel, status, submit, limits, results and events from 800 handlers: nothing hangs, nothing is lost."""
    assert run_program(PROGRAM.format(logged=logged, seed=seed)).strip().endswith("ok")


HELD = """
import faulthandler, threading
from concurrent.futures import wait
import otel_timespan as ts
from otel_timespan import dagger as D

faulthandler.dump_traceback_later(20, exit=True)
gate = threading.Event()
pool = ts.Executor(1)
first = pool.submit(gate.wait)
future = pool.submit(int)
with future._condition:  # as the code has that was interrupted, in `result` for instance
    {cancel}
gate.set()
assert wait([future], 10).done and future.cancelled() and first.result(10)
pool.shutdown()
print("ok")
"""


@pytest.mark.parametrize("cancel", ["assert future.cancel()", "D.cancel(future.task)"])
def test_the_interrupted_code_holds_the_future_that_is_cancelled(cancel: str) -> None:
    """A handler may cancel the very future, or its task, whose lock the main thread holds."""
    assert run_program(HELD.format(cancel=cancel)).strip().endswith("ok")


PLAIN = {
    "tasks/atomics.py": "sections, on builds without the GIL",
    "drivers/slots.py": "the same",
    "core/machine.py": "`Core.requests`, under which code of the user's runs",
    "processes/owned.py": "held while workers are started; whoever has it may come again",
    "processes/pool.py": "a condition: who waits lets go of it, and a handler on top may wait as well",
    "processes/remote.py": "held while a process is waited for; whoever has it may come again",
    "service/guards.py": "what a guard is",
    "service/timers.py": "taken by its thread, and by calls that no signal breaks off",
}
"""Files with locks that are no guards, and why those need be none."""

LOCK = re.compile(r"\b(?:forks|threading)\.(?:R?[Ll]ock|rlock|Condition|condition|(?:Bounded)?Semaphore)\(")


def test_locks_are_guards() -> None:
    """Whatever lock of the scheduler code in the main thread may hold is one that a signal handler can bear."""
    room = Path(otel_timespan.dagger.__file__).parent
    found = {str(p.relative_to(room)) for p in room.rglob("*.py") if LOCK.search(p.read_text())}
    assert found == set(PLAIN)


def test_a_guard_is_held_by_one_thread_only() -> None:
    """Its holder may take it again, others wait; who holds any is known, and nothing stays of one that is gone."""
    one, held = guard(), threading.Event()
    with one, one:
        assert any_held()
        other = threading.Thread(target=lambda: held.set() if not any_held() and not one.acquire(blocking=False) else 0)
        other.start()
        other.join()
    assert held.is_set() and not any_held()
