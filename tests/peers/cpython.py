"""CPython's own tests of `concurrent.futures`, with `Executor` in the place of its pools: of threads, or `processes`.

They are the interpreter's, where it was installed with its tests, or Debian's of the same version
(`libpython3.11-testsuite`). Of process pools those are run that start fresh interpreters, as ours does.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tempfile
import textwrap
import threading
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any

from otel_timespan.dagger.executor import TaskFuture

from . import judging, pool, unit

BODIES = re.compile(r"dagger-\d+$")
"""Names of the threads that run bodies."""

LEAST = 50
LEAST_OF_PROCESSES = 35
PARTS = ["thread_pool", "init", "shutdown", "wait", "as_completed", "future"]
PARTS_OF_PROCESSES = ["process_pool", "init", "shutdown", "wait", "as_completed", "deadlock"]
LEFT_OUT = {
    "ThreadPoolShutdownTest.test_threads_terminate": "._threads",
    "ThreadPoolShutdownTest.test_context_manager_shutdown": "._threads",
    "ThreadPoolShutdownTest.test_del_shutdown": "._threads",
    "ThreadPoolShutdownTest.test_shutdown_no_wait": "._threads",
    "ThreadPoolShutdownTest.test_thread_names_assigned": "._threads",
    "ThreadPoolShutdownTest.test_thread_names_default": "._threads",
    "ThreadPoolShutdownTest.test_cancel_futures_wait_false": "._work_queue",
    "ThreadPoolExecutorTest.test_saturation": "._threads",
    "ThreadPoolExecutorTest.test_idle_thread_reuse": "._threads",
    "ThreadPoolExecutorTest.test_executor_map_current_future_cancel": "._work_queue",
    "ProcessPoolSpawnProcessPoolShutdownTest.test_processes_terminate": "._processes",
    "ProcessPoolSpawnProcessPoolShutdownTest.test_context_manager_shutdown": "._processes",
    "ProcessPoolSpawnProcessPoolShutdownTest.test_del_shutdown": "._call_queue",
    "ProcessPoolSpawnProcessPoolShutdownTest.test_shutdown_no_wait": "._call_queue",
    "ProcessPoolSpawnExecutorDeadlockTest.test_shutdown_deadlock_pickle": "._executor_manager_thread",
    "ProcessPoolSpawnProcessPoolExecutorTest.test_saturation": "._processes",
    "ProcessPoolSpawnProcessPoolExecutorTest.test_idle_process_reuse_one": "._processes",
    "ProcessPoolSpawnProcessPoolExecutorTest.test_idle_process_reuse_multiple": "._processes",
    "ProcessPoolSpawnProcessPoolExecutorTest.test_killed_child": "._processes",
}
"""Tests that ask a pool for what is in it, and for what: they would hang, having failed in the middle."""
DIFFERENCES: dict[str, str] = {}
_REFUSED = "what can't be sent, or not be read, fails its own call with an InvalidOptionError or StorageError"
_FOREVER = "workers live as long as their executor: max_tasks_per_child is refused"
DIFFERENCES_OF_PROCESSES = {
    "ProcessPoolSpawnExecutorDeadlockTest.test_error_at_task_pickle": _REFUSED,
    "ProcessPoolSpawnExecutorDeadlockTest.test_error_at_task_unpickle": _REFUSED,
    "ProcessPoolSpawnExecutorDeadlockTest.test_error_during_result_pickle_on_worker": _REFUSED,
    "ProcessPoolSpawnExecutorDeadlockTest.test_error_during_result_unpickle_in_result_handler": _REFUSED,
    "ProcessPoolSpawnExecutorDeadlockTest.test_exit_at_task_unpickle": _REFUSED,
    "ProcessPoolSpawnExecutorDeadlockTest.test_exit_during_result_pickle_on_worker": _REFUSED,
    "ProcessPoolSpawnExecutorDeadlockTest.test_exit_during_result_unpickle_in_result_handler": _REFUSED,
    "ProcessPoolSpawnFailingInitializerTest.test_initializer": "a queue can't be an argument of the initializer",
    "ProcessPoolSpawnProcessPoolExecutorTest.test_max_tasks_early_shutdown": _FOREVER,
    "ProcessPoolSpawnProcessPoolExecutorTest.test_max_tasks_per_child": _FOREVER,
    "ProcessPoolSpawnProcessPoolExecutorTest.test_max_tasks_per_child_defaults_to_spawn_context": _FOREVER,
}


PREPARE = f"import sys; sys.path.insert(0, {str(pool.ROOT)!r}); from tests.peers import cpython; cpython.prepare(%s)\n"


def prepare(processes: bool) -> None:
    """`Executor` is in place, and Debian's tests can be imported where the interpreter came without its own."""
    import test

    pool.install(processes)
    test.__path__.append(f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test")


def tests(processes: bool) -> list[ModuleType]:
    """The modules of the tests; raises ImportError where there are none."""
    debian = Path(f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/test/test_concurrent_futures.py")
    if processes and debian.is_file():  # by a name that workers can import, too
        folder = tempfile.mkdtemp(prefix="otel-timespan-peers-")
        (Path(folder) / debian.name).symlink_to(debian)
        sys.path.insert(0, folder)
        return [importlib.import_module(debian.stem)]
    whole = importlib.import_module("test.test_concurrent_futures")  # one file until Python 3.11
    if hasattr(whole, "ThreadPoolExecutorTest"):
        return [whole]
    parts = PARTS_OF_PROCESSES if processes else PARTS
    return [importlib.import_module(f"test.test_concurrent_futures.test_{part}") for part in parts]


BY_VALUE = """
import cloudpickle, test.test_concurrent_futures
cloudpickle.register_pickle_by_value(test.test_concurrent_futures)
"""
"""For programs that import the tests from where workers find none."""


def programs_use_ours(processes: bool) -> None:
    """What the tests run as a program of its own has ours, too."""
    from test.support import script_helper

    run_python = script_helper.assert_python_ok

    def run_with_ours(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if "-c" in given:
            source = given.index("-c") + 1
            given[source] = PREPARE % processes + BY_VALUE * processes + textwrap.dedent(given[source])
        return run_python(*given, **kwargs)

    script_helper.assert_python_ok = run_with_ours


def use_our_futures(module: ModuleType) -> None:
    """The tests of futures make ours."""
    if hasattr(module, "FutureTests"):

        class Future(TaskFuture[Any]):
            """Ours, under the name that the tests look for in texts."""

        def create_future(state: str = "PENDING", exception: Any = None, result: Any = None) -> Any:
            future: Any = Future()
            future._state, future._exception, future._result = state, exception, result
            return future

        module.Future = Future  # type: ignore[attr-defined]
        module.create_future = create_future  # type: ignore[attr-defined]


def main(processes: bool) -> int:
    """Run them; the exit status."""
    try:
        from test import support
    except ImportError as error:
        return judging.missing(f"the interpreter has no package `test` ({error})")
    support.verbose, support.use_resources = 0, None
    prepare(processes)
    programs_use_ours(processes)
    try:
        modules = tests(processes)
    except ImportError as error:
        return judging.missing(f"no tests of concurrent.futures: apt install libpython3.11-testsuite, or so ({error})")
    pool.log_to_memory(pool.ProcessPoolExecutor if processes else pool.ThreadPoolExecutor)
    outcomes, before = judging.Outcomes(), set(threading.enumerate())

    def altered() -> str:
        left, support.environment_altered = support.environment_altered, False
        if processes:  # who hands on what workers say, or what they logged, stays for the next who does
            left = any(BODIES.match(thread.name) for thread in set(threading.enumerate()) - before)
        return f"threads were left: {threading.enumerate()}" if left else ""

    found = []
    for module in modules:
        use_our_futures(module)
        for each in unit.flat(unittest.defaultTestLoader.loadTestsFromModule(module)):
            if _asks_for_internals(each):
                outcomes.skipped(unit.name_of(each))
            elif _of_processes(each) if processes else _of_threads(each):
                found.append(each)
    unit.run(found, outcomes, altered)
    differences = DIFFERENCES_OF_PROCESSES if processes else DIFFERENCES
    again = set(judging.unexpected(outcomes, differences))
    for name in again:
        outcomes.forget(name)
    unit.run([type(each)(each._testMethodName) for each in found if unit.name_of(each) in again], outcomes, altered)
    print("of", Path(modules[0].__file__ or "").parent)
    return judging.report(outcomes, differences, LEAST_OF_PROCESSES if processes else LEAST)


def _of_threads(test: unittest.TestCase) -> bool:
    name = type(test).__name__
    return not any(part in name for part in ("ProcessPool", "FailingInitializerResources", "Interpreter"))


def _of_processes(test: unittest.TestCase) -> bool:
    return "ProcessPoolSpawn" in type(test).__name__


def _asks_for_internals(test: unittest.TestCase) -> bool:
    asked = LEFT_OUT.get(unit.name_of(test))
    return asked is not None and asked in inspect.getsource(getattr(test, test._testMethodName))


if __name__ == "__main__":
    sys.exit(main(processes="processes" in sys.argv[1:]))
