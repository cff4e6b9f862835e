"""The demo: a measurement of the standard library's source, as a graph of some thousand small tasks.

Real input that every machine has: the modules of the running Python. Each one is read, parsed and
measured (functions, cyclomatic complexity, imports, lines) by three tasks; the measurements are merged
in a tree, in the order of the modules, while later modules are still being read; what comes out is a
ranked report. Where there are several CPUs, worker processes parse and measure. A module that can't be
read or parsed fails its task, its dependents fail with it, and the report lists it: nothing is guarded
by `try` inside of the tasks.

This file holds the job itself and the same job as a plain loop (`analyse_in_order`), which a test
compares. `cli.py` prints; `session.py` does the logging.
"""

from __future__ import annotations

import ast
import itertools
import os
import sysconfig
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from . import forks
from .errors import DTaskFailedError, InvalidOptionError, unwrap_exception

__all__ = [
    "FunctionFacts",
    "ModuleFacts",
    "ModuleFailure",
    "Report",
    "analyse",
    "analyse_in_order",
    "default_workers",
    "find_modules",
]

DEFAULT_LIMIT = 300
"""Modules that the demo takes unless told otherwise: some 1,200 tasks, 6,000 spans."""

FAN_IN = 8
"""How many measurements one task of the tree merges."""

AHEAD = 32
"""Modules that are under way at once; each may hold a syntax tree of some megabytes."""

_parsing = forks.lock()
"""CPython before 3.13 counts the depth of a syntax tree for all threads together, and raises SystemError when
two of them parse at once."""

TOP = 10
"""Length of the ranked lists."""

_NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}
_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp, ast.Assert, ast.match_case)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Module(NamedTuple):
    """A source file and the dotted name of the module in it."""

    name: str
    path: Path


class FunctionFacts(NamedTuple):
    """One function; `name` is dotted inside of classes and functions.

    `complexity` is McCabe's: 1 and one more for each branch, without inner functions.
    """

    complexity: int
    lines: int
    module: str
    name: str


class ModuleFacts(NamedTuple):
    """One module, measured. `imports` are the top-level packages it names."""

    name: str
    lines: int
    classes: int
    functions: tuple[FunctionFacts, ...]
    imports: frozenset[str]


class ModuleFailure(NamedTuple):
    """A module without measurements: which of its tasks failed, and with what."""

    module: str
    step: str
    error: str


@dataclass(frozen=True)
class Report:
    """Measurements of any number of modules. `merge` joins them; the order of merging does not matter."""

    modules: int = 0
    lines: int = 0
    classes: int = 0
    functions: int = 0
    complexity: int = 0
    hardest: tuple[FunctionFacts, ...] = ()
    largest: tuple[tuple[int, str], ...] = ()
    imports: Counter[str] = field(default_factory=Counter)


def find_modules(source: Path | None = None, limit: int = DEFAULT_LIMIT) -> list[Module]:
    """The `limit` largest modules below `source` (default: the standard library), sorted by name.

    Test folders are left out, except where `source` itself is one. Raises `InvalidOptionError` when
    there is nothing to measure.
    """
    if limit < 1:
        raise InvalidOptionError(f"--limit is a number of modules, at least 1, not {limit}")
    root = Path(sysconfig.get_path("stdlib")) if source is None else Path(source)
    if not root.is_dir():
        raise InvalidOptionError(f"{root} is no folder; --source wants one with Python files in it")
    sized = sorted((-path.stat().st_size, path) for path in _python_files(root))
    if not sized:
        raise InvalidOptionError(f"there is no Python source in {root}; give a folder that has some with --source")
    return sorted(Module(_dotted(path.relative_to(root)), path) for _, path in sized[:limit])


def _python_files(root: Path) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        if path.is_file() and not _NOT_SOURCE.intersection(path.relative_to(root).parts[:-1]):
            yield path


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


# ---- the tasks ---------------------------------------------------------------------------------


def read(path: Path) -> bytes:
    """The source of one module."""
    return path.read_bytes()


def parse(source: bytes, name: str) -> ast.Module:
    """Its syntax tree; raises what `ast.parse` raises."""
    with _parsing, _quiet_parser():
        return ast.parse(source, name)


def measure(tree: ast.Module, source: bytes, name: str) -> ModuleFacts:
    """Count what is in a module, in one walk over its tree."""
    functions: list[FunctionFacts] = []
    imports: set[str] = set()
    classes = 0
    for qualified, node in _walk(tree):
        if isinstance(node, _FUNCTIONS):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            functions.append(FunctionFacts(complexity(node), size, name, qualified))
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
    return ModuleFacts(name, len(source.splitlines()), classes, tuple(functions), frozenset(imports))


def _walk(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Every node below, each with the dotted name of the function or class that it is or is in."""
    nodes: list[tuple[str, ast.AST]] = [("", tree)]
    while nodes:
        scope, node = nodes.pop()
        for child in ast.iter_child_nodes(node):
            named = f"{scope}.{child.name}".lstrip(".") if isinstance(child, (*_FUNCTIONS, ast.ClassDef)) else scope
            yield named, child
            nodes.append((named, child))


def complexity(function: ast.AST) -> int:
    """McCabe's number of one function; the functions and lambdas inside it count for themselves."""
    total, nodes = 1, list(ast.iter_child_nodes(function))
    while nodes:
        node = nodes.pop()
        if isinstance(node, (*_FUNCTIONS, ast.Lambda)):
            continue
        if isinstance(node, _BRANCHES):
            total += 1
        elif isinstance(node, ast.BoolOp):
            total += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            total += 1 + len(node.ifs)
        nodes.extend(ast.iter_child_nodes(node))
    return total


def summarize(*modules: ModuleFacts) -> Report:
    """A report on a few modules: the leaves of the tree."""
    functions = [function for module in modules for function in module.functions]
    return Report(
        modules=len(modules),
        lines=sum(module.lines for module in modules),
        classes=sum(module.classes for module in modules),
        functions=len(functions),
        complexity=sum(function.complexity for function in functions),
        hardest=_first(functions),
        largest=_first((module.lines, module.name) for module in modules),
        imports=Counter(name for module in modules for name in module.imports),
    )


def merge(*reports: Report) -> Report:
    """One report on all: the inner nodes of the tree."""
    return Report(
        modules=sum(report.modules for report in reports),
        lines=sum(report.lines for report in reports),
        classes=sum(report.classes for report in reports),
        functions=sum(report.functions for report in reports),
        complexity=sum(report.complexity for report in reports),
        hardest=_first(function for report in reports for function in report.hardest),
        largest=_first(module for report in reports for module in report.largest),
        imports=sum((report.imports for report in reports), Counter[str]()),
    )


def _first(items: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(sorted(items, reverse=True)[:TOP])


# ---- the job -----------------------------------------------------------------------------------


class _Steps(NamedTuple):
    """The tasks of one module. Only the last handle is held, so that a syntax tree dies when it was measured."""

    module: Module
    ids: dict[int, str]
    measured: Any


def default_workers() -> int:
    """How many worker processes the demo uses: one a usable CPU, at most four; none where there is one CPU only.

    Two of them halve the time of its tasks on two CPUs; starting them takes a second.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cpus) if cpus > 1 else 0


def analyse(
    modules: Sequence[Module],
    on_settled: Callable[[Module, ModuleFailure | None], None] | None = None,
    workers: Sequence[int] = (),
) -> tuple[Report, list[ModuleFailure]]:
    """Measure the modules as tasks of the current context: (report, what failed).

    `on_settled(module, failure)` is called in the calling thread after each module, in order. `workers`: each module is
    parsed and measured by one of these, so that its syntax tree stays there.
    """
    from .dagger import fetch, spawn

    failures: list[ModuleFailure] = []
    measured: list[Any] = []
    leaves: list[Any] = []
    for steps in _ahead(modules, workers):
        failure = _failure(steps)
        if failure is None:
            measured.append(steps.measured)
        else:
            failures.append(failure)
        if len(measured) == FAN_IN:
            leaves.append(spawn(summarize, *measured))
            measured = []
        if on_settled is not None:
            on_settled(steps.module, failure)
    level = [*leaves, spawn(summarize, *measured)] if measured or not leaves else leaves
    while len(level) > 1:
        level = [spawn(merge, *level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    report: Report = fetch(level[0])
    return report, failures


def _ahead(modules: Iterable[Module], workers: Sequence[int]) -> Iterator[_Steps]:
    """Each module's tasks, spawned `AHEAD` modules before they are asked for: memory stays bounded."""
    waiting: deque[_Steps] = deque()
    turns = itertools.cycle(workers or [None])
    for module in modules:
        waiting.append(_spawn_steps(module, next(turns)))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting


def _spawn_steps(module: Module, worker: int | None) -> _Steps:
    from .dagger import Options, scope, spawn

    there = None if worker is None else scope(worker=worker)
    source = spawn(read, Options(name=f"read {module.name}"), module.path)
    tree = spawn(parse, Options(name=f"parse {module.name}", scope=there), source, module.name)
    facts = spawn(measure, Options(name=f"measure {module.name}", scope=there), tree, source, module.name)
    return _Steps(module, {source.id: "read", tree.id: "parse", facts.id: "measure"}, facts)


def _failure(steps: _Steps) -> ModuleFailure | None:
    try:
        steps.measured.fetch()
    except DTaskFailedError as error:
        return ModuleFailure(steps.module.name, steps.ids[error.root.id], _one_line(unwrap_exception(error)))
    return None


def analyse_in_order(modules: Sequence[Module]) -> tuple[Report, list[ModuleFailure]]:
    """The same job as a plain loop, without the scheduler: what `analyse` must agree with."""
    measured: list[ModuleFacts] = []
    failures: list[ModuleFailure] = []
    for module in modules:
        step = "read"
        try:
            source = read(module.path)
            step = "parse"
            tree = parse(source, module.name)
            step = "measure"
            measured.append(measure(tree, source, module.name))
        except Exception as error:
            failures.append(ModuleFailure(module.name, step, _one_line(error)))
    return summarize(*measured), failures


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


class _quiet_parser(warnings.catch_warnings):  # noqa: N801 - a context manager, used like a function
    """The library's source has invalid escapes here and there: no news for the reader of the demo."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        for category in (SyntaxWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        return entered
