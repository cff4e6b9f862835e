"""The examples of README and docs run as they stand there, as somebody copies them: each in a program of its own.

A block that needs what stands before it on its page says so: `<!-- continues -->` in the line above it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^(<!-- continues -->\n)?```python\n(.*?)^```$", re.S | re.M)
NOBODY = "http://127.0.0.1:1"


class Block(NamedTuple):
    """An example: where it stands, and a program with it and all that it continues."""

    where: str
    program: str


def blocks() -> list[Block]:
    """All of them."""
    found = []
    for page in PAGES:
        text, program = page.read_text(), ""
        for match in BLOCK.finditer(text):
            program = program * bool(match[1]) + match[2]
            line = text.count("\n", 0, match.start(2))
            found.append(Block(f"{page.relative_to(ROOT)}:{line}", program))
    return found


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.where)
def test_the_examples_run(block: Block, tmp_path: Path) -> None:
    """In an empty folder, without a server, with warnings as errors; their own asserts hold."""
    (tmp_path / "example.py").write_text(block.program)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    environ = {**kept, "PYTHONPATH": str(ROOT), "OTEL_EXPORTER_OTLP_ENDPOINT": NOBODY}
    command = [sys.executable, "-W", "error", "example.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{block.where}\n{done.stderr}"
    assert "Traceback" not in done.stderr, f"{block.where}\n{done.stderr}"


def test_every_page_with_python_is_looked_at() -> None:
    """No block of Python hides behind another way to mark it, and none continues a block of another page."""
    for page in PAGES:
        text = page.read_text()
        found = BLOCK.findall(text)
        assert len(found) == len(re.findall(r"^ *(?:```|~~~) *(?:python|py)\b", text, re.M | re.I)), page.name
        assert not found or not found[0][0], page.name
    assert len(blocks()) >= 30
