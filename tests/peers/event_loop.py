"""CPython's own tests of asyncio, with `Executor` as the default executor of its loops."""

from __future__ import annotations

import importlib
import sys
import unittest

from . import judging, pool, unit

LEAST = 1200
PARTS = [
    *("base_events", "context", "events", "futures", "pep492", "runners", "taskgroups", "tasks", "threads", "timeouts"),
    "waitfor",
]
LEFT_OUT = ("PollEventLoopTests", "SelectEventLoopTests")
"""Classes of tests that are the same with another selector: of `test_events` the best selector of the system counts."""
DIFFERENCES: dict[str, str] = {}


def main() -> int:
    """Run them; the exit status."""
    pool.install()
    try:
        import test.test_asyncio
        from test import support
    except ImportError as error:
        return judging.missing(f"the interpreter has no tests of asyncio ({error})")
    support.verbose, support.use_resources = 0, ["cpu", "walltime"]
    pool.log_to_memory()
    outcomes = judging.Outcomes()
    found = []
    for part in PARTS:
        try:
            module = importlib.import_module(f"test.test_asyncio.test_{part}")
        except ImportError:  # of another version
            continue
        tests = unit.flat(unittest.defaultTestLoader.loadTestsFromModule(module))
        found += [each for each in tests if type(each).__name__ not in LEFT_OUT]
    unit.run(found, outcomes)
    again = set(judging.unexpected(outcomes, DIFFERENCES))
    for name in again:
        outcomes.forget(name)
    unit.run([type(each)(each._testMethodName) for each in found if unit.name_of(each) in again], outcomes)
    print("of", test.test_asyncio.__path__[0])
    return judging.report(outcomes, DIFFERENCES, LEAST)


if __name__ == "__main__":
    sys.exit(main())
