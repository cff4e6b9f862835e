"""Each acceptance test of the bridge begins and ends without a scheduler and without a sink."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.acceptance_otel.acc_otel_support import Ear, Lab


@pytest.fixture(autouse=True)
def _isolated(isolated: None) -> None:
    """Each test of the suite is."""


@pytest.fixture
def make_lab() -> Iterator[Callable[..., Lab]]:
    """Makes labs and closes them."""
    made: list[Lab] = []

    def make(**options: Any) -> Lab:
        made.append(Lab(**options))
        return made[-1]

    yield make
    for lab in made:
        lab.close()


@pytest.fixture
def lab(make_lab: Callable[..., Lab]) -> Lab:
    """A log with the defaults."""
    return make_lab()


@pytest.fixture
def ear() -> Iterator[Ear]:
    """A listening collector."""
    listening = Ear()
    yield listening
    listening.close()
