"""Each acceptance test begins and ends without a scheduler, without a sink and without kept events."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _isolated(isolated: None) -> None:
    """Each test of the suite is."""
