"""Runs tests of CPython's own, which are written for `unittest`."""

from __future__ import annotations

import faulthandler
import unittest
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .judging import Outcomes

HANGS_S = 120.0
"""After so long a test hangs: the stacks of all threads are printed, and the run ends."""


def name_of(test: unittest.TestCase) -> str:
    """Class and method."""
    return f"{type(test).__name__}.{test._testMethodName}"


def flat(suite: Any) -> Iterator[unittest.TestCase]:
    """The tests of a suite."""
    if isinstance(suite, unittest.TestSuite):
        for each in suite:
            yield from flat(each)
    else:
        yield suite


class Result(unittest.TestResult):
    """Notes what comes out; a test that hangs ends the run."""

    def __init__(self, outcomes: Outcomes, altered: Callable[[], str]) -> None:
        super().__init__()
        self._outcomes, self._altered = outcomes, altered

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().startTest(test)
        faulthandler.dump_traceback_later(HANGS_S, exit=True)

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        faulthandler.cancel_dump_traceback_later()
        super().stopTest(test)
        left = self._altered()
        if left:
            self._outcomes.failed(name_of(test), left)
        self._outcomes.passed(name_of(test))

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self._outcomes.failed(_named(test), self.errors[-1][1])

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self._outcomes.failed(_named(test), self.failures[-1][1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._outcomes.failed(name_of(test), self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._outcomes.skipped(_named(test))


def _named(test: Any) -> str:
    return name_of(test) if isinstance(test, unittest.TestCase) and hasattr(test, "_testMethodName") else str(test)


def run(tests: Iterable[unittest.TestCase], outcomes: Outcomes, altered: Callable[[], str] = str) -> None:
    """Run them, one by one. `altered`: what a test left behind."""
    result = Result(outcomes, altered)
    for suite in _by_class(tests):
        suite.run(result)


def _by_class(tests: Iterable[unittest.TestCase]) -> Iterator[unittest.TestSuite]:
    """With those of one class in one suite, so that its fixtures are set up."""
    suites: dict[type, unittest.TestSuite] = {}
    for test in tests:
        suites.setdefault(type(test), unittest.TestSuite()).addTest(test)
    yield from suites.values()
