"""Functions and classes of a program's `__main__`, which no other process can import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dagger.acceptance.support import ROOT

PROGRAM = """
import otel_timespan as ts
from dataclasses import dataclass

table = None          # set in each worker by the initializer
factor = 2            # read by a task
seen = []             # one list a worker


def begin(what):
    global table
    table = what


@dataclass
class Point:
    x: int

    def scaled(self):
        return Point(self.x * factor)


class Odd(Exception):
    pass


def look_up(key):
    seen.append(key)
    return table[key], len(seen)


def scale(point):
    assert isinstance(point, Point)
    return point.scaled()


def refuse(n):
    raise Odd(n)


def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


def as_bytes(point):
    import pickle
    return pickle.loads(pickle.dumps(point)) == point


def program():
    with ts.Executor(processes=1, initializer=begin, initargs=({"a": 1},)) as executor:
        print([executor.submit(look_up, "a").result() for _ in range(3)])
        made = executor.submit(scale, Point(21)).result()
        print(made == Point(42), type(made) is Point)
        print(type(executor.submit(refuse, 3).exception()) is Odd)
        print(executor.submit(factorial, 10).result())
        print(executor.submit(as_bytes, Point(1)).result())
        print(executor.submit(lambda: factor + 1).result())
    print(table, seen)


if __name__ == "__main__":
    program()
"""
SAYS = """[(1, 1), (1, 2), (1, 3)]
True True
True
3628800
True
3
None []
"""


def run(*arguments: str, folder: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python, with the package on its path."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environ, input=text, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("way", ["script", "module", "command", "stdin"])
def test_a_program_is_the_same_however_it_is_started(way: str, tmp_path: Path) -> None:
    """Its functions share their globals in a worker, too; its classes are its own when they come back."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sibling.py").write_text("NAME = 'sibling'\n")
    (package / "__main__.py").write_text(PROGRAM)
    (tmp_path / "script.py").write_text(PROGRAM)
    arguments = {
        "script": ["script.py"],
        "module": ["-m", "package"],
        "command": ["-c", PROGRAM],
        "stdin": ["-"],
    }[way]
    done = run(*arguments, folder=tmp_path, text=PROGRAM if way == "stdin" else None)
    assert (done.stdout, done.stderr) == (SAYS, "")


def test_a_failure_shows_the_line_of_the_script(tmp_path: Path) -> None:
    """As in a thread, though the function travelled by value."""
    (tmp_path / "script.py").write_text(
        "from otel_timespan import dagger as D\n"
        "def fail():\n"
        "    raise ValueError(1)  # in the script\n"
        "with D.Context(procs=[], workers=1):\n"
        "    try:\n"
        "        D.fetch(D.spawn(fail))\n"
        "    except ValueError as error:\n"
        "        print(error.ex.traceback_text)\n"
    )
    done = run("script.py", folder=tmp_path)
    assert "script.py" in done.stdout and "raise ValueError(1)  # in the script" in done.stdout
    assert "otel_timespan/dagger" not in done.stdout and done.stderr == ""


REPL = """
from otel_timespan import dagger as D
context = D.Context(procs=[], workers=1).__enter__()
def helper():
    return "first"

def body():
    return helper()

D.fetch(D.spawn(body))
def helper():
    return "second"

D.fetch(D.spawn(body))
D.fetch(D.spawn(lambda: body()))
context.__exit__(None, None, None)
"""


def test_a_function_that_was_defined_anew_is_used_from_then_on(tmp_path: Path) -> None:
    """In a REPL or a notebook, by functions that use it, whether or not they were sent before."""
    done = run("-i", "-q", folder=tmp_path, text=REPL)
    assert done.stdout.split() == ["'first'", "'second'", "'second'"]
    assert "Error" not in done.stderr


def test_imports_beside_the_main_module_of_a_package(tmp_path: Path) -> None:
    """`from . import x` in a body works as it does here."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sibling.py").write_text("NAME = 'sibling'\n")
    (package / "__main__.py").write_text(
        "from otel_timespan import dagger as D\n"
        "def name():\n"
        "    from . import sibling\n"
        "    return sibling.NAME, __file__\n"
        "with D.Context(procs=[], workers=1):\n"
        "    print(D.fetch(D.spawn(name)) == ('sibling', __file__))\n"
    )
    assert run("-m", "package", folder=tmp_path).stdout == "True\n"


def test_bodies_in_workers_of_a_context_ask_the_head(tmp_path: Path) -> None:
    """As those of workers that were added: they spawn, set limits, call other workers."""
    (tmp_path / "script.py").write_text(
        "from otel_timespan import dagger as D\n"
        "def leaf(n):\n"
        "    return n + 1\n"
        "def body(other):\n"
        "    D.set_limit('few', 1)\n"
        "    there = D.cluster.run(other, D.myid)\n"
        "    return there == other, [D.fetch(D.spawn.opts(limit='few')(leaf, n)) for n in range(3)]\n"
        "with D.Context(procs=[], workers=2) as context:\n"
        "    first, second = [p.pid for p in context.procs]\n"
        "    print(D.fetch(D.spawn.opts(scope=D.scope(worker=first))(body, second)))\n"
    )
    done = run("script.py", folder=tmp_path)
    assert (done.stdout, done.stderr) == ("(True, [1, 2, 3])\n", "")
