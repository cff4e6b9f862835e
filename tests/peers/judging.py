"""What came out of other people's tests, beside what is known to differ, and why."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Outcomes", "missing", "report"]

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NOT_HERE = 77
"""Exit status: the tests of this peer are not on this machine."""


@dataclass
class Outcomes:
    """What came out of each test, by its name; `texts` of those that failed."""

    states: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def passed(self, name: str) -> None:
        """It passed, unless a part of it failed."""
        self.states.setdefault(name, PASSED)

    def skipped(self, name: str) -> None:
        """It was not run."""
        self.states.setdefault(name, SKIPPED)

    def failed(self, name: str, text: str) -> None:
        """It or a part of it failed."""
        self.states[name] = FAILED
        self.texts[name] = self.texts.get(name, "") + text

    def forget(self, name: str) -> None:
        """It is run once more."""
        self.states.pop(name, None)
        self.texts.pop(name, None)

    def names(self, state: str) -> list[str]:
        """All that came out so."""
        return [name for name, each in self.states.items() if each == state]


def surprises(outcomes: Outcomes, differences: Mapping[str, str]) -> list[str]:
    """A line for each test that failed and is not known to, and for each that is known to and passed."""

    def known(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in differences)

    failed = [f"{name} failed\n{outcomes.texts[name]}" for name in outcomes.names(FAILED) if not known(name)]
    return failed + [f"{name} passed, though it is known to differ" for name in outcomes.names(PASSED) if known(name)]


def unexpected(outcomes: Outcomes, differences: Mapping[str, str]) -> list[str]:
    """The names of those that failed and are not known to: they are run once more."""
    return [n for n in outcomes.names(FAILED) if not any(fnmatch.fnmatchcase(n, each) for each in differences)]


def report(outcomes: Outcomes, differences: Mapping[str, str], least: int) -> int:
    """Print what came out; the exit status: 0 where all is as known and at least so many passed as there were once."""
    wrong = surprises(outcomes, differences)
    for line in wrong:
        print("UNEXPECTED", line, flush=True)
    failed = outcomes.names(FAILED)
    for name in failed:
        reason = next((why for pattern, why in differences.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if reason is not None:
            print(f"differs as known: {name}: {reason}")
    passed = len(outcomes.names(PASSED))
    if passed < least:
        wrong.append(f"only {passed} tests passed, {least} were there once")
        print("UNEXPECTED", wrong[-1])
    known = len(failed) - len([line for line in wrong if " failed\n" in line])
    skipped = len(outcomes.names(SKIPPED))
    print(f"{passed} as they should, {known} differ as known, {len(wrong)} unexpected, {skipped} not for here")
    return 1 if wrong else 0


def missing(what: str) -> int:
    """The tests are not here: said loudly, and an error where `TIMESPAN_REQUIRE_PEERS` is set."""
    print(f"NOT RUN: {what}", file=sys.stderr, flush=True)
    return 1 if os.environ.get("TIMESPAN_REQUIRE_PEERS") else NOT_HERE
