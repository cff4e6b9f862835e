"""Runs tests of others that are written for pytest, with none of this project's settings."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from . import judging

SETTINGS = Path(__file__).with_name("settings.ini")


class Recorder:
    """A plugin that notes what comes out."""

    def __init__(self, outcomes: judging.Outcomes) -> None:
        self._outcomes = outcomes

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Of set-up, body and clean-up of a test."""
        name = _short(report.nodeid)
        if report.failed:
            self._outcomes.failed(name, report.longreprtext[-2000:])
        elif report.skipped:  # what its authors expect to fail, too
            self._outcomes.skipped(name)
        elif report.when == "call":
            self._outcomes.passed(name)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that could not be read is a failure."""
        if report.failed:
            self._outcomes.failed(_short(report.nodeid), report.longreprtext[-2000:])


def _short(nodeid: str) -> str:
    path, colons, test = nodeid.partition("::")
    return path.rpartition("/")[2] + colons + test


def folder(library: str) -> Path | None:
    """Where the library lies with its tests, None if it is not installed. Does not import it."""
    spec = importlib.util.find_spec(library)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def run(root: Path, what: Sequence[str], differences: Mapping[str, str], *given: str) -> judging.Outcomes:
    """Run files of `root`; those that fail, and are not known to, once more."""
    outcomes = judging.Outcomes()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    options = ["-c", str(SETTINGS), "--rootdir", str(root), "-p", "pytest_timeout", "-W", "ignore", *given]
    pytest.main([*options, *(str(root / each) for each in what)], plugins=[Recorder(outcomes)])
    again = judging.unexpected(outcomes, differences)
    if again:
        files = {Path(each.partition("::")[0]).name: each for each in what}
        parts = [name.partition("::") for name in again if "::" in name]
        names = [f"{root / files[file]}::{test}" for file, _, test in parts]
        second = judging.Outcomes()
        pytest.main([*options, *names], plugins=[Recorder(second)])
        for name in second.names(judging.PASSED):  # any other stays what it was
            outcomes.forget(name)
            outcomes.passed(name)
    return outcomes
