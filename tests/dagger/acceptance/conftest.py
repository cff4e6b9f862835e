"""Each acceptance test begins and ends without a scheduler, without a sink and without kept events."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.places.processors import topology
from tests.dagger.acceptance.stubs import WORKERS, FakeProc, SubFakeProc


@pytest.fixture(autouse=True)
def _isolated(isolated: None) -> None:
    """Each test of the suite is."""


@pytest.fixture
def one() -> Iterator[D.Context]:
    """A context of one slot."""
    with D.Context(threads=1) as context:
        yield context


@pytest.fixture
def two() -> Iterator[D.Context]:
    """A context of two slots."""
    with D.Context(threads=2) as context:
        yield context


@pytest.fixture
def cluster() -> Iterator[D.Context]:
    """Two pretended workers of two slots each, stepped in this thread, the same way every time."""
    with D.Context(driver=D.InlineDriver(workers={1: 2, 2: 2}, seed=0)) as context:
        yield context


@pytest.fixture
def legacy() -> Iterator[None]:
    """`delayed` warns once a process that it is legacy: not the subject of most tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(params=["threads", "inline"])
def ctx(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Both drivers."""
    driver = "threads" if request.param == "threads" else D.InlineDriver(workers={1: 2, 2: 2}, seed=0)
    with D.Context(driver=driver) as context:
        yield context


@pytest.fixture(scope="class")
def three_workers() -> Iterator[None]:
    """Three pretended workers on two hosts, of two threads and two fake processors each."""
    topology.reset(threads=2, node="here")
    for worker, host in WORKERS.items():
        topology.add_worker(worker, 2, node=host)
        with topology.acting_as(worker):
            D.add_processor_callback(lambda worker=worker: [FakeProc(worker), SubFakeProc(worker)], "scopes")
    yield
    for worker in WORKERS:
        with topology.acting_as(worker):
            D.delete_processor_callback("scopes")
    topology.reset()
