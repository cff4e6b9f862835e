"""What all tests share: the real back ends, and for the acceptance suites a clean state and a gate."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

import hypothesis
import pytest

from tests import backends
from tests.progress import Progress, tell_skipped

_STATE = pytest.StashKey["Readiness"]()

# What is logged when the last handles go, after the last test, is nobody's: no handler of last resort for it.
logging.getLogger("otel_timespan").addHandler(logging.NullHandler())

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Where Python writes no bytecode, the programs that tests start share some in a folder of this run.

    Each of some 150 programs would compile the package for itself otherwise, in half of its time.
    """
    if sys.dont_write_bytecode and "PYTHONPYCACHEPREFIX" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="otel-timespan-bytecode-")
        patch = pytest.MonkeyPatch()
        patch.setenv("PYTHONPYCACHEPREFIX", folder.name)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(patch.undo)


def pytest_sessionstart(session: pytest.Session) -> None:
    """In the quiet mode, which is the default here, a line of progress takes the place of the dots."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and session.config.option.verbose < 0:
        session.config.pluginmanager.register(Progress(reporter), "progress")


class Readiness:
    """Whether the back ends can be had: one of `backend` and `reason` is set."""

    def __init__(self, backend: backends.Backend | None = None, reason: str = "") -> None:
        self.backend, self.reason = backend, reason


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the fixture `stack` carries the marker, and runs last: quick failures come first."""
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.stack)
    items.sort(key=lambda item: item.get_closest_marker("stack") is not None)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Find and build the back ends before the first test: a build takes minutes and is not a test's time."""
    config = session.config
    if config.option.collectonly or not any(item.get_closest_marker("stack") for item in session.items):
        return
    try:
        backend = backends.find_backend()
        with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            backend.prepare()
        config.stash[_STATE] = Readiness(backend)
    except (backends.NoBackend, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if backends.required():
            pytest.exit(f"the real back ends are required (TIMESPAN_REQUIRE_STACK): {reason}", returncode=1)
        config.stash[_STATE] = Readiness(reason=f"the collector, Jaeger and Prometheus are not here: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was not tested, and what to install."""
    tell_skipped(terminalreporter)


@pytest.fixture(autouse=True, scope="module")
def _small_heap() -> None:
    """What is there before the first test of a module is no longer looked at by the garbage collector.

    Hundreds of tests collect garbage. That is milliseconds for what they made, and half a second with all
    of pytest, pandas and the tests themselves.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_stale_failures(request: pytest.FixtureRequest) -> None:
    """Failures that nobody fetched in earlier tests are logged before one that looks at the log begins."""
    if "caplog" not in request.fixturenames:
        return
    from otel_timespan.dagger.service import janitor

    gc.collect()
    if janitor._thread is not None:
        tidy = threading.Event()
        janitor.ask(tidy.set)
        tidy.wait(10)


@pytest.fixture(scope="session")
def _running_stack(request: pytest.FixtureRequest) -> Iterator[backends.Stack | None]:
    backend = request.config.stash[_STATE].backend
    if backend is None:
        yield None
        return
    try:
        yield backends.Stack(backend)
    finally:
        backend.down()


@pytest.fixture
def stack(_running_stack: backends.Stack | None, request: pytest.FixtureRequest) -> backends.Stack:
    """The real collector, Jaeger and Prometheus with the project's files, shared by all tests of the run."""
    if _running_stack is None:
        pytest.skip(request.config.stash[_STATE].reason)
    return _running_stack


# ---- for the acceptance suites ---------------------------------------------------------------------------


@pytest.fixture
def isolated() -> Iterator[None]:
    """The test begins and ends without a scheduler, without a sink and without kept events."""
    _clean()
    yield
    _clean()


def _clean() -> None:
    import otel_timespan as ts

    ts.eager_context().shutdown()
    ts.disable_logging()
    ts.LocalEventLog().get_logs(raw=True)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that bodies and consumers wait for; opened at the end, so that none stays blocked."""
    event = threading.Event()
    yield event
    event.set()
