"""The house rules of CONTRIBUTING.md and docs/architecture.md, checked against the code: imports, sizes, names."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "otel_timespan"
FILES = sorted(ROOT.rglob("*.py"))

ALLOWED = {
    "dagger": {"errors", "timespans", "dagger"},
    "timespans": {"errors", "timespans"},
    "events": {"errors", "timespans", "events"},
    "otel": {"errors", "timespans", "events", "otel"},
    "viz": {"errors", "timespans", "viz"},
}
"""Who may import whom when it is imported. Anything may be imported later, inside a function."""

JOINS = {"dagger/logging.py"}
"""What joins scheduler and consumers (design/rulings.md 30): loaded lazily, may import both."""

ONLY_UNDER = {"opentelemetry": "otel", "dask": "dagger/drivers", "matplotlib": "viz", "graphviz": "viz"}

MOST_LINES, MOST_LINES_OF_A_FUNCTION = 700, 80


def _imports(tree: ast.Module, package: list[str]) -> list[str]:
    """Absolute names of the modules imported at import time (not inside functions or TYPE_CHECKING)."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                found.append(node.module or "")
            else:
                base = package[: len(package) - node.level + 1]
                stem = ".".join(base + ([node.module] if node.module else []))
                found += [stem] if node.module else [f"{stem}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    """A room imports only the rooms that it may."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    room = parts[1] if len(parts) > 2 else ""
    package = list(parts[:-1])
    for name in _imports(ast.parse(path.read_text()), package):
        if name.startswith("otel_timespan.__"):
            continue  # the version, the name
        if name.startswith("otel_timespan.") and room in ALLOWED and "/".join(parts[1:]) + ".py" not in JOINS:
            assert name.split(".")[1] in ALLOWED[room], f"{path.name} imports {name}"


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
    import subprocess
    import sys

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

    for public in set(package.__all__) - {"sch"}:  # a module by its nature (design/rulings.md 6)
        assert not isinstance(getattr(package, public), types.ModuleType), public
