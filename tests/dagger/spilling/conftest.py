"""Contexts, and devices with room for two blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.data import caching as module
from otel_timespan.dagger.storage import (
    PickleFileDevice,
    RecencyAllocator,
)
from tests.dagger.spilling.blocks import KIB, MIB, forget_settings


@pytest.fixture(params=["threads", "inline"])
def context(request: pytest.FixtureRequest) -> Iterator[D.Context]:
    """Two slots on threads, or two pretended workers."""
    inline = D.InlineDriver({1: 2, 2: 2}, seed=1)
    with D.Context(threads=2) if request.param == "threads" else D.Context(driver=inline) as entered:
        yield entered


@pytest.fixture
def one() -> Iterator[D.Context]:
    """One slot, the same way every time."""
    with D.Context(driver=D.InlineDriver({1: 1})) as entered:
        yield entered


@pytest.fixture
def lru(tmp_path: Path) -> RecencyAllocator:
    """Room for two blocks in memory."""
    return RecencyAllocator(100 * KIB, PickleFileDevice(tmp_path / "spill"), 10 * MIB)


@pytest.fixture
def caching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., bool]]:
    """`enable_disk_caching` for a machine of 1 MiB; off again at the end."""
    monkeypatch.setattr(module, "total_memory", lambda: 1 * MIB)
    yield functools.partial(D.enable_disk_caching, directory=tmp_path / "global")
    forget_settings()
