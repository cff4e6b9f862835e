"""The how-to pages: their examples run, in order, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("data.md", "scheduling.md", "users.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of Python on the page runs; their own asserts hold."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    assert len(blocks) >= 2
    names: dict[str, Any] = {}
    with D.Context(threads=2):
        for block in blocks:
            exec(block, names)
