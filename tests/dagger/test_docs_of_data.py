"""docs/data.md: its examples run, in order, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from otel_timespan import dagger as D


def test_the_examples_run(tmp_path: Path, monkeypatch: Any) -> None:
    """Every block of Python runs; their own asserts hold."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) >= 2
    names: dict[str, Any] = {}
    with D.Context(threads=2):
        for block in blocks:
            exec(block, names)
