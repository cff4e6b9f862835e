"""The same scheduler with its event sites removed: what a disabled log is compared with.

While a module of the scheduler is imported, its source is rewritten: a look at the context's recorder becomes
None, `if recorder is not None:` and what depends on it goes. Not a fork, so it can't fall behind.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

__all__ = ["install", "strip"]

_PACKAGE = "otel_timespan.dagger"


def _is_recorder(node: ast.AST) -> bool:
    return (isinstance(node, ast.Name) and node.id == "recorder") or (
        isinstance(node, ast.Attribute) and node.attr == "recorder"
    )


def _known(test: ast.AST) -> bool | None:
    """What a condition is where there is no recorder; None if that does not decide it."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and _is_recorder(test.left):
        right = test.comparators[0]
        if isinstance(right, ast.Constant) and right.value is None:
            return isinstance(test.ops[0], ast.Is)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) and any(_known(v) is False for v in test.values):
        return False
    return None


class _Strip(ast.NodeTransformer):
    """Takes the event sites out; counts them."""

    def __init__(self) -> None:
        self.sites = 0

    def visit_If(self, node: ast.If) -> Any:
        known = _known(node.test)
        if known is None:
            return self.generic_visit(node)
        self.sites += 1
        kept = [self.visit(each) for each in (node.body if known else node.orelse)]
        return kept or ast.copy_location(ast.Pass(), node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        known = _known(node.test)
        if known is None:
            return self.generic_visit(node)
        self.sites += 1
        return self.visit(node.body if known else node.orelse)

    def visit_Assign(self, node: ast.Assign) -> Any:
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id == "recorder" and _is_recorder(node.value):
            return None  # a condition that needs it is gone; one that was overlooked fails loudly
        return self.generic_visit(node)


def strip(source: str) -> tuple[ast.Module, int]:
    """A module without its event sites, and how many there were."""
    stripper = _Strip()
    tree = stripper.visit(ast.parse(source))
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list) and name == "body" and not body:
                body.append(ast.Pass())
    return ast.fix_missing_locations(tree), stripper.sites


class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        tree, sites = strip(data.decode() if isinstance(data, bytes) else data)
        removed[self.name] = sites
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)  # past the cache of the true module


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if not fullname.startswith(_PACKAGE + "."):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


removed: dict[str, int] = {}
"""Sites removed so far, by module."""


def install() -> None:
    """Strip all modules of the scheduler that are imported from now on. Raises `RuntimeError` when it is too late."""
    if _PACKAGE in sys.modules:
        raise RuntimeError("the scheduler is imported already: its event sites can't be removed any more")
    sys.meta_path.insert(0, _Finder())
