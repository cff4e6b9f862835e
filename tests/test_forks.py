"""Every lock of the package is free in a forked child, every table set right there or kept for a reason."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import queue
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import pytest

import otel_timespan
from otel_timespan import forks

ROOT = Path(otel_timespan.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")

BELLS = {
    "dagger/cluster.py": "one wait of one thread, which is the child's only one",
    "dagger/drivers/pinned.py": "a body that blocks waits on it for its share; it and the core are the parent's",
    "dagger/drivers/slots.py": "a thread parks on it; neither is in the child",
    "dagger/fetching.py": "one wait of one thread, which is the child's only one",
    "dagger/iterating.py": "what ended, of one loop over tasks; they end in the parent",
    "dagger/processes/values.py": "one wait of one thread, which is the child's only one",
    "dagger/service/callbacks.py": "made anew",
    "dagger/service/calls.py": "made anew, with the threads that make the calls",
    "dagger/service/uninterrupted.py": "one call of one thread",
    "worker/requests.py": "one question of one body; a child of a body has no head to ask",
    "worker/store.py": "of one value that is read; the thread that reads it is not in the child",
    "worker/link.py": "the bell of a thread of a worker; a child of a body has no part in that",
    "otel/export/sdklocks.py": "looks for them",
    "timespans/drainer.py": "the bell of a thread that is made anew",
    "timespans/sink.py": "names the type of a sink",
    "timespans/profiler.py": "stops a thread that is not in the child",
}
"""Files that may make what threads wait on and what is no mutex, with what becomes of it in a child."""

KEPT = {
    "timespans.model._layouts": "the names of fields, one object each",
    "timespans.arrays._ways": "declared at import",
    "timespans.rows._expanders": "declared at import",
    "timespans.rows._packings": "declared at import",
    "timespans.rows._row_makers": "declared at import",
    "timespans.sinks.LocalEventLog._events": "emptied with its journal",
    "timespans.warn._warned": "what was said once is not said by every child",
    "otel.dags.tracing_logs": "weak references; the logs set themselves right",
    "otel.export.transport._abandoned": "kept lest a finalizer closes what the parent uses",
    "otel.export.transport._down": "what was said once is not said by every child",
    "otel.export.entries._known": "a cache",
    "otel.export.wire._names": "a cache",
    "otel.spans.tasks._link_cache": "a cache",
    "otel.travelling._arrived": "a cache",
    "otel.spans.tasks._code_cache": "a cache",
    "otel.spans.tasks._processors": "a cache",
    "dagger.api.refused": "declared at import",
    "dagger.processes.owned.before_start": "declared at import",
    "dagger.processes.byvalue._known": "its numbers go on; workers of the child have seen none of them",
    "dagger.bodies.interrupts._transparent": "code objects of ours",
    "dagger.data.caching.listeners": "declared at import",
    "dagger.data.chunks.scoped_chunks": "chunks of the parent are there in the child, too",
    "dagger.data.caching._devices": "devices know which files and folders are whose",
    "dagger.data.spilling._watched": "weak references to handles, which are the child's, too",
    "dagger.core.limits._heard_of": "names of limits; a child of a worker has no head to ask",
    "dagger.processes.handles._types": "a cache",
    "dagger.service.surroundings._carried": "declared by the program, for the child as well",
    "dagger.service.surroundings.travellers": "declared at import",
    "dagger.places.devices._file_devices": "devices know which files and folders are whose",
    "dagger.logging._own_profile": "settings of contexts",
    "dagger.options.declaring._deprecated": "what was said once",
    "dagger.options.defaults.signature_defaults": "settings",
    "dagger.places.processors.invalidation_hooks": "declared at import",
    "dagger.places.processors._callbacks": "settings",
    "dagger.places.processors._known": "a cache",
    "dagger.records.kinds._functions": "a cache",
    "dagger.records.kinds.function_codes": "a cache",
    "dagger.records.kinds._processors": "a cache",
    "dagger.records.layout.layouts": "a cache",
    "dagger.records.columns._called": "a cache",
    "dagger.records.layout.registered": "settings",
    "dagger.scoping._keys": "declared at import",
    "dagger.service.apart._idle": "stacks that nobody uses",
    "dagger.service.apart._left": "frames of threads that are not in the child keep what they kept",
    "dagger.service.guards._guards": "weak references to locks of the registry",
    "dagger.service.threads._carried": "declared at import",
    "integrations.gpu._found": "libraries that were loaded",
    "integrations.gpu._rules": "settings",
    "errors._classes": "a cache",
    "forks._locks": "the registry itself",
    "forks._calls": "the registry itself",
    "forks.set_right": "the registry itself",
    "viz.modes._modes": "settings",
    "viz.modes._aliases": "declared at import",
}
"""Tables that a child may have as they are, or that others set right, and why."""

TABLES = (dict, list, set, deque, weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)


MUTEXES = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Barrier"}
OTHERS = {"_thread.allocate_lock", "allocate_lock", "threading.Event", "queue.SimpleQueue", "queue.Queue"}
HOOKS = {"os.register_at_fork", "atexit.register", "threading._register_atexit"}


def _calls(path: Path) -> list[str]:
    """The dotted names of all that the code of a file calls or looks up."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Call, ast.Attribute))]
    return [ast.unparse(node.func if isinstance(node, ast.Call) else node) for node in nodes]


def test_every_lock_is_one_of_the_registry() -> None:
    """Nobody makes a mutex but `forks`; what threads wait on otherwise is accounted for above."""
    made = {str(path.relative_to(ROOT)): set(_calls(path)) for path in FILES if path.name != "forks.py"}
    made["otel/export/sdklocks.py"] -= {"threading.Condition"}  # looks for them
    made["dagger/service/guards.py"] -= {"threading.RLock"}  # names the type
    mutexes = {*MUTEXES, *(f"threading.{name}" for name in MUTEXES)}
    assert not {file: found for file, names in made.items() if (found := names & mutexes)}, "use forks.lock() etc."
    bells = {file for file, names in made.items() if names & OTHERS}
    assert bells == set(BELLS), "what becomes of it in a child?"


def test_hooks_are_registered_in_one_place() -> None:
    """`os.register_at_fork`, `atexit` and the like are called by `forks` and `exits` only."""
    files = [path for path in FILES if path.name not in ("forks.py", "exits.py")]
    assert not [str(path) for path in files if HOOKS & set(_calls(path)) or "import atexit" in path.read_text()]


def _tables() -> dict[str, Any]:
    """Every mutable table at the top of a module or of a class; names in capitals are constants."""
    found: dict[str, Any] = {}
    for info in pkgutil.walk_packages(otel_timespan.__path__, "otel_timespan."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        spaces = [("", vars(module))]
        spaces += [(f"{n}.", vars(k)) for n, k in vars(module).items() if isinstance(k, type) and _is_of(k, module)]
        assigned = {target for target in _assigned(module)}
        for before, space in spaces:
            for name, value in space.items():
                constant = name.strip("_").isupper() or name.startswith("__") or name == "_field_defaults"
                if isinstance(value, (*TABLES, queue.SimpleQueue)) and not constant and (before or name in assigned):
                    found[f"{info.name.partition('.')[2]}.{before}{name}"] = value
    return found


def _is_of(kind: type, module: Any) -> bool:
    return kind.__module__ == module.__name__


def _assigned(module: Any) -> set[str]:
    """Names that a module gives values itself, at its top: others it imported."""
    body = ast.parse(Path(module.__file__).read_text()).body
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_every_table_is_set_right_in_a_child_or_kept_for_a_reason() -> None:
    """A new table at the top of a module has a decision: named at its `forks.in_child`, or in `KEPT` above."""
    tables = set(_tables())
    right = {f"{module.partition('.')[2]}.{name}" for module, names in forks.set_right.items() for name in names}
    unknown, gone = tables - right - set(KEPT), set(KEPT) - tables
    assert not unknown, "what becomes of them in a forked child?"
    assert not gone, "they are no tables (any more)"
    assert not set(KEPT) & right
