"""What somebody sees who runs the tests for the first time: how far they are, what failed so far, what was skipped.

On a terminal one line that is written over; elsewhere (a log file, CI) a line each tenth. Failures are named when
they happen. Of what was skipped there is one line a reason at the end. With `-v`, `-vv` pytest's own lines, as ever.
"""

from __future__ import annotations

import time
from collections import Counter

import pytest


class Progress:
    """Takes the place of pytest's dots in the quiet mode."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self.reporter = reporter
        self.total = self.done = self.failed = 0
        self.told = ""
        self.began = time.monotonic()
        self.overwrites = reporter.isatty
        if not reporter.config.option.collectonly:
            reporter.write_line("looking for the tests, some seconds ...")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """So many there are."""
        self.total, self.began = len(session.items), time.monotonic()
        if not session.config.option.collectonly:
            self.reporter.write_line(f"{self.total:,} tests")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No letter a test; what failed has a line of its own, at once."""
        if report.when == "collect":
            return None
        if report.failed:
            return ("failed", "", "FAILED") if report.when == "call" else ("error", "", "ERROR")
        if report.skipped and hasattr(report, "wasxfail"):
            return "xfailed", "", "XFAIL"
        if report.skipped or report.when == "call":
            return ("skipped" if report.skipped else "passed"), "", ""
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Name a failure."""
        if report.failed:
            self.failed += 1
            self._clear()
            self.reporter.write_line(f"FAILED {report.nodeid}", red=True)

    def pytest_runtest_logfinish(self) -> None:
        """One more is done."""
        self.done += 1
        share = 100 * self.done // max(1, self.total)
        text = f"{self.done:,} of {self.total:,} tests, {share} %"
        if self.failed:
            text += f", {self.failed} failed"
        if self.overwrites:
            if text != self.told:
                self.reporter.rewrite(text, erase=True)
        elif 10 * self.done // max(1, self.total) > 10 * (self.done - 1) // max(1, self.total):
            self.reporter.write_line(f"{text}, {time.monotonic() - self.began:.0f} s")
        self.told = text

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """What follows begins on a line of its own."""
        self._clear()

    def _clear(self) -> None:
        if self.overwrites and self.told:
            self.reporter.rewrite("", erase=True)
            self.told = ""


def tell_skipped(reporter: pytest.TerminalReporter) -> None:
    """One line a reason: how many tests, why, and what to do (the reason says that)."""
    reasons = Counter(_reason(report) for report in reporter.getreports("skipped"))
    reporter.reportchars = reporter.reportchars.replace("s", "")  # they would be told again
    if reasons:
        reporter.section("NOT TESTED", sep="!", yellow=True, bold=True)
    for reason, count in reasons.most_common():
        reporter.line(f"{count} skipped: {reason}")


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(text.removeprefix("Skipped: ").split())
