"""Programs of users under mypy --strict and pyright: an error where `# error` says one, and nowhere else.

`# error: mypy` and `# error: pyright` are for one of the two. What an expression is, `assert_type` says in the program.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import otel_timespan

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = sorted((HERE / "programs").glob("*.py"))
FACES = ["otel_timespan", *(f"otel_timespan.{room}" for room in ("dagger", "events", "otel", "timespans", "viz"))]
LAZY = {
    "otel_timespan": "__init__.py",
    "otel_timespan.dagger": "dagger/__init__.py",
    "otel_timespan.otel": "otel/__init__.py",
}
"""Faces that give names at their first use, and so name them for type checkers apart."""

Errors = dict[tuple[str, int], list[str]]
"""What a checker said, by file and line."""


def _installed() -> bool:
    """Whether a program outside of this folder gets this very package: then checkers take it as an installed one."""
    code = "import otel_timespan; print(otel_timespan.__file__)"
    found = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, cwd="/")
    return found.stdout.strip() == str(ROOT / "otel_timespan" / "__init__.py")


def _faces() -> str:
    """A program that imports every public name of every face, and has each of these be something."""
    lines = []
    for number, face in enumerate(FACES):
        for name in importlib.import_module(face).__all__:
            lines.append(f"from {face} import {name} as name_{number}_{name.strip('_')}")
            lines.append(f"print(name_{number}_{name.strip('_')})")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's project: the programs, and a folder for each checker's settings."""
    folder = tmp_path_factory.mktemp("project")
    for program in PROGRAMS:
        shutil.copy(program, folder)
    (folder / "faces.py").write_text(_faces())
    installed = _installed()
    mypy = ["[mypy]", "strict = True", "python_version = 3.10", "warn_unused_ignores = False"]
    mypy += [] if installed else [f"mypy_path = {ROOT}", "follow_imports = silent"]
    (folder / "mypy.ini").write_text("\n".join(mypy) + "\n")
    pyright = {"typeCheckingMode": "strict", "pythonVersion": "3.10", "extraPaths": [] if installed else [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(pyright))
    return folder


def _run(checker: str, folder: Path, *arguments: str) -> str:
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"NOT TESTED: the types of the public face, as there is no {checker}: pip install '.[dev]'")
    command = [sys.executable, "-m", checker, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def run_mypy(folder: Path) -> Errors:
    """What mypy says."""
    errors: Errors = {}
    cache = ROOT / ".mypy_cache" / "users"
    for line in _run("mypy", folder, f"--cache-dir={cache}", "--no-pretty", "--no-error-summary", ".").splitlines():
        if found := re.match(r"(?:\./)?(\w+\.py):(\d+): error: (.*)", line):
            errors.setdefault((found[1], int(found[2])), []).append(found[3])
        else:
            assert ": note: " in line, line
    return errors


def run_pyright(folder: Path) -> Errors:
    """What pyright says; of names that are only imported and of expressions for nothing it need not."""
    errors: Errors = {}
    report = json.loads(_run("pyright", folder, "--outputjson", "--pythonpath", sys.executable))
    for one in report["generalDiagnostics"]:
        if one["severity"] == "error":
            where = Path(one["file"]).name, one["range"]["start"]["line"] + 1
            errors.setdefault(where, []).append(one["message"])
    return errors


CHECKERS = {"mypy": run_mypy, "pyright": run_pyright}


def expected(checker: str) -> set[tuple[str, int]]:
    """The lines that are marked as errors."""
    lines = set()
    for program in PROGRAMS:
        for number, line in enumerate(program.read_text().splitlines(), 1):
            if (found := re.search(r"# error(?:: (\w+))?$", line)) and found[1] in (None, checker):
                lines.add((program.name, number))
    return lines


@functools.cache
def said(checker: str, folder: Path) -> Errors:
    """The checker's errors; it runs once for all tests."""
    return CHECKERS[checker](folder)


@pytest.mark.parametrize("program", [program.name for program in PROGRAMS])
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_program_has_the_errors_that_it_says(checker: str, program: str, project: Path) -> None:
    """Each line that is marked is an error to the checker, and no other is."""
    errors = {line: texts for (name, line), texts in said(checker, project).items() if name == program}
    wanted = {line for name, line in expected(checker) if name == program}
    assert {line: errors[line] for line in errors.keys() - wanted} == {}, "these were not to be errors"
    assert sorted(wanted - errors.keys()) == [], "these lines were to be errors"


@pytest.mark.parametrize("checker", CHECKERS)
def test_every_public_name_is_known(checker: str, project: Path) -> None:
    """All names of all faces can be imported by name, and their types are known."""
    errors = said(checker, project)
    assert [texts for (name, _), texts in errors.items() if name == "faces.py"] == []


@pytest.mark.parametrize("face", LAZY)
def test_names_for_type_checkers_are_the_real_ones(face: str) -> None:
    """What a lazy face imports for type checkers is what it gives, from where it gives it."""
    path = Path(otel_timespan.__file__).parent / LAZY[face]
    module = importlib.import_module(face)
    declared = {}
    for block in ast.parse(path.read_text()).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for node in block.body:
                assert isinstance(node, ast.ImportFrom)
                home = importlib.import_module("." * node.level + (node.module or ""), face)
                declared |= {alias.asname or alias.name: (home, alias.name) for alias in node.names}
    imported = {
        alias.asname or alias.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(module.__all__) - imported - {"__version__"} == declared.keys()
    for public, (home, name) in declared.items():
        assert getattr(module, public) is getattr(home, name)
