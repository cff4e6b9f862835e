"""The house rules of CONTRIBUTING.md and docs/architecture.md, checked against the code: imports, sizes, names."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "otel_timespan"
FILES = sorted(ROOT.rglob("*.py"))

ONLY_UNDER = {"opentelemetry": "otel", "dask": "dagger/drivers", "matplotlib": "viz", "graphviz": "viz"}

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 700, 80


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of pyproject.toml, held against the package in a folder."""
    pytest.importorskip("importlinter", reason="import-linter is not installed: `make lint` installs it, and runs this")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


WRONG_WAYS = [
    ("dagger/core/costs.py", "from ..bodies.run import run", "dagger.core.costs -> otel_timespan.dagger.bodies.run"),
    ("dagger/places/node.py", "from ..fetching import fetch", "dagger.places.node -> otel_timespan.dagger.fetching"),
    ("timespans/journal.py", "from ..otel import semconv", "timespans.journal -> otel_timespan.otel.semconv"),
    ("otel/spans/ids.py", "from ..export import wire", "otel.spans.ids -> otel_timespan.otel.export.wire"),
    ("events/load.py", "import opentelemetry.trace", "events.load -> opentelemetry"),
]


def test_imports_against_the_direction_fail_with_their_chains(tmp_path: Path) -> None:
    """Whoever imports upwards, inside of a function too, is told which module imports which."""
    shutil.copytree(ROOT, tmp_path / ROOT.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT.parent / "pyproject.toml", tmp_path)
    for file, line, _ in WRONG_WAYS:
        victim = tmp_path / ROOT.name / file
        victim.write_text(f"{victim.read_text()}\n\ndef _late() -> None:\n    {line}\n")
    done = _lint_imports(tmp_path)
    assert done.returncode != 0
    assert not [chain for _, _, chain in WRONG_WAYS if f"otel_timespan.{chain}" not in done.stdout], done.stdout


def test_imports_go_one_way() -> None:
    """The contracts hold for the package as it is."""
    done = _lint_imports(ROOT.parent)
    assert done.returncode == 0, done.stdout


def test_no_two_classes_share_a_name() -> None:
    """One name a concept: no class of the package is called like another, those of one file's own aside."""
    homes: dict[str, set[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, set()).add(str(path.relative_to(ROOT)))
    assert not {name: files for name, files in homes.items() if len(files) > 1}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_foreign_libraries_stay_in_their_rooms(path: Path) -> None:
    """OpenTelemetry is imported under otel/ only, plotting under viz/ only, at any depth of the code."""
    here = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            room = ONLY_UNDER.get(name.split(".")[0])
            assert room is None or here.startswith(room), f"{here} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    """Files and functions are no longer than CONTRIBUTING.md says."""
    text = path.read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name


@pytest.mark.parametrize("name", ["otel_timespan", "otel_timespan.dagger", "otel_timespan.timespans"])
def test_public_names_are_there_and_sorted(name: str) -> None:
    """Every name in `__all__` can be had, and the list is sorted as ruff sorts it."""
    module = importlib.import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert getattr(module, public) is not None, public


def test_the_top_imports_nothing_heavy() -> None:
    """`import otel_timespan` loads neither OpenTelemetry nor any optional library."""
    code = (
        "import sys, otel_timespan as ts; ts.spawn; ts.NoOpLog;"
        "heavy = {'opentelemetry', 'grpc', 'pandas', 'matplotlib', 'rich', 'click', 'dask', 'asyncio'};"
        "bad = heavy & set(sys.modules);"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_no_public_name_is_hidden_by_a_module() -> None:
    """A submodule never stands where a public name of its package should: importing it would replace the name."""
    import types

    import otel_timespan.dagger as package
    import otel_timespan.dagger.logging  # noqa: F401 - the one that shares its name with a function

    for public in set(package.__all__) - {"cluster", "sch"}:  # modules by their nature
        assert not isinstance(getattr(package, public), types.ModuleType), public
