"""What a run of tests prints: how far it is, what failed at once, and one line for all tests that were skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.mark.parametrize("n", range(20))
def test_fine(n):
    pass

def test_wrong():
    assert 1 == 2

@pytest.fixture
def broken():
    raise ValueError("no")

def test_without_its_fixture(broken):
    pass

@pytest.mark.parametrize("n", range(7))
def test_skipped(n):
    pytest.skip("no server here: install one")

@pytest.mark.xfail
def test_known():
    assert False
"""
CONFTEST = """
from tests.conftest import pytest_sessionstart
from tests.conftest import pytest_terminal_summary
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is printed of a few tests that have everything."""
    tmp_path = tmp_path_factory.mktemp("tests")
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    command += ["-p", "no:cacheprovider", "--tb=no", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_progress_is_a_line_each_tenth(output: list[str]) -> None:
    """Not a letter each: that it has begun, the number of tests, then ten lines, the last of which says all."""
    assert output[:2] == ["looking for the tests, some seconds ...", "30 tests"]
    lines = [line for line in output if " of 30 tests, " in line]
    assert len(lines) == 10 and lines[0].startswith("3 of 30 tests, 10 %")
    assert lines[-1].startswith("30 of 30 tests, 100 %, 2 failed, ")


def test_failures_are_named_when_they_happen(output: list[str]) -> None:
    """And in the summary at the end, where pytest has them, by the same word."""
    at = [n for n, line in enumerate(output) if line == "FAILED test_some.py::test_wrong"]
    assert at and at[0] < output.index(next(line for line in output if line.startswith("24 of 30")))
    assert "FAILED test_some.py::test_wrong - assert 1 == 2" in output
    assert "ERROR test_some.py::test_without_its_fixture - ValueError: no" in output
    assert "XFAIL test_some.py::test_known" in output
    assert output[-1].startswith("1 failed, 20 passed, 7 skipped, 1 xfailed, 1 error in ")


def test_skipped_tests_are_one_line_with_the_reason(output: list[str]) -> None:
    """Once: why, and what to do."""
    assert [line for line in output if "skipped:" in line.lower()] == ["7 skipped: no server here: install one"]
    assert sum("NOT TESTED" in line for line in output) == 1
