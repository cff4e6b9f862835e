"""docs/architecture.md: what it says of the code is so; and the package cites what ships."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otel_timespan import events
from otel_timespan.dagger.drivers.base import METHODS
from otel_timespan.dagger.tasks.dtask import DTask, Live
from otel_timespan.otel import semconv
from tests import test_architecture

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "otel_timespan"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CODE = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "bench").rglob("*.py"))]
FILES = [f"/{file.relative_to(ROOT)}" for file in [*CODE, *(ROOT / "tests").rglob("*.py")]]

REFERENCES = [
    (path, name)
    for path, names in re.findall(r"`([\w/]+\.py): ([\w., ]+)`", PAGE)
    for name in names.replace(" ", "").split(",")
]
"""(file, name in it) of each `file.py: name, name` on the page."""

PATHS = sorted(
    {token for token in re.findall(r"`([\w./-]+?)(?::[^`]*)?`", PAGE) if re.search(r"\w/|\.(py|md)$", token)}
)
"""Each path on the page, with names or without."""


def section(title: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |^\1 |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[2]


def file_of(path: str) -> Path:
    """What a path on the page stands for: below the package, or else below the root."""
    inside = PACKAGE / path
    return inside if inside.exists() else ROOT / path


def contract(container: str) -> list[str]:
    """The layers of an import contract, from the one that all others may import upwards."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(rf'containers = \["{re.escape(container)}"\].*?layers = (\[.*?\])', text, re.DOTALL)
    assert found is not None, container
    layers: list[str] = ast.literal_eval(found[1])
    return [name.strip() for layer in reversed(layers) for name in re.split("[|:]", layer)]


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """What a file defines: `name` at its top, `Class.name` for methods, slots, attributes and what `self.` is given."""
    return frozenset(_defined(ast.parse(path.read_text(encoding="utf-8")).body, ""))


def _defined(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name
            if prefix:
                yield from (prefix + name for name in _given_to_self(node))
        elif isinstance(node, ast.ClassDef):
            yield prefix + node.name
            yield from _defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for one in (name for target in targets for name in ast.walk(target)):
                if isinstance(one, ast.Name):
                    yield prefix + one.id
        elif isinstance(node, ast.If):
            yield from _defined([*node.body, *node.orelse], prefix)


def _given_to_self(method: ast.AST) -> Iterator[str]:
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@functools.cache
def words() -> dict[str, frozenset[str]]:
    """Of each file of the package the names in its code: variables, attributes, imports, classes, names as text."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        said = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for field in ("id", "attr", "name", "value"):
                word = getattr(node, field, None)
                if isinstance(word, str):
                    said.add(word)
        found[str(path.relative_to(PACKAGE))] = frozenset(said)
    return found


def users_of(name: str) -> set[str]:
    """The files of the package whose code has this name, or this very text."""
    return {path for path, said in words().items() if name in said}


def users_of_constant(name: str) -> set[str]:
    """The files of the package that say `semconv.NAME`."""
    said = re.compile(rf"\bsemconv\.{name}\b")
    return {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if said.search(path.read_text("utf-8"))}


def listed(title: str) -> list[str]:
    """The paths named in "How to add ..."."""
    return [path for path in PATHS if f"`{path}`" in section(title) or f"`{path}: " in section(title)]


def is_listed(path: str, among: list[str]) -> bool:
    """Whether a file of the package is one of these, or lies in a folder that is."""
    return any(path == one or (one.endswith("/") and path.startswith(one)) for one in among)


# ---- the page ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_there(path: str) -> None:
    """A file or folder that the page names exists; a folder is written with a slash at its end."""
    assert file_of(path).is_dir() if path.endswith("/") else file_of(path).is_file()


@pytest.mark.parametrize(("path", "name"), REFERENCES)
def test_every_name_is_there(path: str, name: str) -> None:
    """A name is defined in the file that the page says."""
    assert name in names_in(file_of(path))


def test_the_page_names_much() -> None:
    """The patterns above find something."""
    assert len(REFERENCES) > 80 and len(PATHS) > 60


def test_the_rooms_are_those_of_the_import_contracts() -> None:
    """The tables have every room that imports are checked for, in that order; the picture every part of the house."""
    rooms = re.findall(r"^\| `dagger/(\w+)/` \|", section("Rooms of the scheduler"), re.MULTILINE)
    folders = [name for name in contract("otel_timespan.dagger") if (PACKAGE / "dagger" / name).is_dir()]
    assert rooms == folders
    bridge = re.findall(r"^\| `otel/(\w+)(?:/|\.py)` \|", section("Rooms of the bridge"), re.MULTILINE)
    assert bridge == contract("otel_timespan.otel")
    picture = section("The house")
    assert [name for name in contract("otel_timespan") if not re.search(rf"\b{name}\b", picture)] == ["__main__"]


def test_every_slot_has_its_line() -> None:
    """The tables of who writes what have each slot of a task once, and no other."""
    text = section("Who may write what")
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in text.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in row]
    assert sorted(named) == sorted({*DTask.__slots__, *Live.__slots__} - {"__weakref__"})


def test_every_method_of_a_driver_has_its_line() -> None:
    """The table of the contract has each method once."""
    text = section("What a driver must do")
    rows = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in text.splitlines() if line.startswith("| `")]
    assert sorted(name for row in rows for name in row) == sorted(METHODS)


def test_the_walk_is_the_one_that_tasks_take() -> None:
    """Each file that a task crosses from spawn to its value, without a log and with the default one, is on the page."""
    command = [sys.executable, "-m", "bench.walk", "--steps"]  # in a process where nothing was switched on before
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    crossed = set(re.findall(r"^ *([\w/]+\.py): ", done.stdout, re.MULTILINE))
    assert {"dagger/api.py", "dagger/core/machine.py", "dagger/fetching.py", "timespans/journal.py"} <= crossed
    assert sorted(path for path in crossed if path not in section("The walk of a task")) == []


# ---- how to add --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "example"),
    [
        ("An option of a task", "retry_on"),
        ("A consumer", "BytesAllocd"),
        ("A metric", "timespan.evict.count|EVICT_COUNT"),
        ("A driver", "SimulatedDriver"),
    ],
)
def test_each_file_of_a_list_is_needed(title: str, example: str) -> None:
    """One that there is stands in each file, or somewhere in the folder, that begins with a step of the list."""
    steps = re.findall(r"^\d\. [^`]*`([\w./-]+[/\w])(?::[^`]*)?`", section(title), re.MULTILINE)
    steps = [step for step in steps if not step.startswith("task.")]
    assert len(steps) >= 2
    for path in map(file_of, steps):
        texts = [file.read_text(encoding="utf-8") for file in (path.rglob("*.py") if path.is_dir() else [path])]
        assert any(re.search(rf"\b(?:{example})\b", text) for text in texts), path


@pytest.mark.parametrize("name", [one for one in events.__all__ if "Record" not in one and "Handle" not in one])
def test_a_consumer_is_in_the_files_of_the_list(name: str) -> None:
    """No consumer that there is needs a file that "how to add" does not name."""
    files = [*listed("A consumer"), "viz/", "webdash/"]  # these only read what consumers say
    assert {path for path in users_of(name) if not is_listed(path, files)} == set()


@pytest.mark.parametrize("instrument", semconv.INSTRUMENTS, ids=lambda one: one.name)
def test_a_metric_is_in_the_files_of_the_list(instrument: semconv.Instrument) -> None:
    """The name stands once, as a constant; who uses that is on the list."""
    assert users_of(instrument.name) == {"otel/semconv.py"}
    [constant] = [key for key, value in vars(semconv).items() if value == instrument.name]
    assert {path for path in users_of_constant(constant) if not is_listed(path, listed("A metric"))} == set()


@pytest.mark.parametrize("name", ["InlineDriver", "SimulatedDriver", "ThreadsDriver"])
def test_a_driver_is_in_the_files_of_the_list(name: str) -> None:
    """No driver that there is needs a file that "how to add" does not name."""
    others = {path for path in users_of(name) if not is_listed(path, listed("A driver"))}
    assert others - {"worker/driver.py"} == set()  # which is one itself


# ---- what texts cite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_cite_what_ships(path: Path) -> None:
    """No docstring, comment or error text names a document that is not in this project; files that are named exist."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\b(?:spec|design)/\w+|\bspec §|§ ?\d|\b[Rr]ulings? \d+|\brulings\b", text) == []
    for page in re.findall(r"\bdocs/[\w-]+\.\w+", text):
        assert (ROOT / page).is_file(), page
    for name in set(re.findall(r"[\w/]*\w\.py\b", text)) - {"program.py"}:  # a user's
        assert any(file.endswith(f"/{name.lstrip('/')}") for file in FILES), name


def test_contributing_says_what_is_enforced() -> None:
    """The sizes, and the commands, are those of the tests and the Makefile."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    most, most_of_a_function = test_architecture.MOST_LINES, test_architecture.MOST_LINES_OF_A_FUNCTION
    assert f"Files have at most {most} lines, functions {most_of_a_function} " in text
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake ([a-z-]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert "lint-imports" in makefile
