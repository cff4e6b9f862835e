"""The demo's job: what it measures, and that the tasks agree with a plain loop over real input."""

from __future__ import annotations

import ast
import shutil
import sysconfig
import textwrap
from pathlib import Path

import pytest

from otel_timespan import demo
from otel_timespan.errors import InvalidOptionError


def tree_of(text: str) -> ast.Module:
    """The syntax tree of an indented piece of source."""
    return demo.parse(textwrap.dedent(text).encode(), "m")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder with good modules, and one each that can't be parsed, decoded and read."""
    for number in range(2 * demo.FAN_IN + 3):
        (tmp_path / f"good{number}.py").write_text(f"import os\ndef f{number}(x):\n    return x if x else {number}\n")
    (tmp_path / "bad_syntax.py").write_text("def f(:\n")
    (tmp_path / "bad_bytes.py").write_bytes(b"# coding: utf-8\nx = '\xff'\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "left_out.py").write_text("this is no Python")
    return tmp_path


@pytest.mark.parametrize(
    "body, expected",
    [
        ("pass", 1),
        ("return 1 if x else 2", 2),
        ("if a: pass\n    elif b: pass\n    else: pass", 3),
        ("for i in x:\n        while i: pass", 3),
        ("return a and b or c", 3),
        ("return [i for i in x if i if not i]", 4),
        ("try: pass\n    except A: pass\n    except B: pass", 3),
        ("assert x", 2),
        ("match x:\n        case 1: pass\n        case _: pass", 3),
        ("def inner():\n        if x: pass\n    return lambda: 1 if x else 2", 1),
    ],
)
def test_complexity(body, expected):
    """McCabe's number counts each branch once, and leaves inner functions to themselves."""
    [function] = tree_of(f"def f(x):\n    {body}\n").body
    assert demo.complexity(function) == expected


def test_measure_counts_what_is_there():
    """One small module, counted by hand."""
    source = (
        b"import os.path, sys\nfrom . import x\nfrom json import loads\nclass A:\n    def f(self):\n        return 1\n"
    )
    facts = demo.measure(demo.parse(source, "m"), source, "m")
    assert facts == demo.ModuleFacts(
        "m", 6, 1, (demo.FunctionFacts(1, 2, "m", "A.f"),), frozenset({"os", "sys", "json"})
    )


def test_merging_does_not_depend_on_the_order():
    """A report on parts, merged in any grouping, is the report on the whole."""
    modules = [
        demo.ModuleFacts(f"m{i}", i, 1, (demo.FunctionFacts(i % 7, i, f"m{i}", "f"),), frozenset({f"p{i % 3}"}))
        for i in range(30)
    ]
    whole = demo.summarize(*modules)
    parts = [demo.summarize(*modules[i : i + 4]) for i in range(0, 30, 4)]
    assert demo.merge(*parts) == demo.merge(demo.merge(*parts[5:]), demo.merge(*parts[:5])) == whole


def test_modules_are_those_of_the_standard_library():
    """The default input is real: the largest modules of this Python, no tests, sorted by name."""
    modules = demo.find_modules(limit=50)
    names = [module.name for module in modules]
    assert len(modules) == 50 and names == sorted(names)
    assert all(module.path.is_relative_to(sysconfig.get_path("stdlib")) for module in modules)
    assert not any({"test", "tests"} & set(name.split(".")) for name in names)


def test_packages_are_named_after_their_folder(tmp_path):
    """`pkg/__init__.py` is the module pkg, an `__init__.py` at the top keeps its name."""
    (tmp_path / "pkg").mkdir()
    for path in ("pkg/__init__.py", "pkg/mod.py", "__init__.py"):
        (tmp_path / path).write_text("")
    assert [module.name for module in demo.find_modules(tmp_path)] == ["__init__", "pkg", "pkg.mod"]


@pytest.mark.parametrize("limit, what", [(0, "at least 1"), (-3, "at least 1")])
def test_a_wrong_limit_is_refused(limit, what):
    """A limit below one is an error of ours that says so."""
    with pytest.raises(InvalidOptionError, match=what):
        demo.find_modules(limit=limit)


def test_a_source_without_python_is_refused(tmp_path):
    """No folder, and a folder without Python files, are told apart."""
    with pytest.raises(InvalidOptionError, match="is no folder"):
        demo.find_modules(tmp_path / "nothing")
    with pytest.raises(InvalidOptionError, match="no Python source"):
        demo.find_modules(tmp_path)


def test_the_tasks_agree_with_the_loop_on_the_standard_library():
    """On real modules the graph of tasks gives the very report of a plain loop, and nothing fails."""
    modules = demo.find_modules(limit=2 * demo.FAN_IN + 3)
    report, failures = demo.analyse(modules)
    assert (report, failures) == demo.analyse_in_order(modules)
    assert failures == []


def test_failures_are_reported_with_their_step_and_error(broken):
    """Modules that can't be measured are listed; the others are measured all the same."""
    modules = demo.find_modules(broken)
    shutil.copy(modules[0].path, broken / "gone.py")
    modules.append(demo.Module("gone", broken / "gone.py"))
    (broken / "gone.py").unlink()
    report, failures = demo.analyse(modules)
    assert (report, failures) == demo.analyse_in_order(modules)
    assert report.modules == 2 * demo.FAN_IN + 3
    assert [(f.module, f.step, f.error.partition(":")[0]) for f in failures] == [
        ("bad_bytes", "parse", "SyntaxError"),
        ("bad_syntax", "parse", "SyntaxError"),
        ("gone", "read", "FileNotFoundError"),
    ]


def test_settled_modules_are_announced_in_order(broken):
    """The callback comes once a module, in order, with the failure if there is one."""
    modules = demo.find_modules(broken)
    seen = []
    _, failures = demo.analyse(modules, lambda module, failure: seen.append((module, failure)))
    assert [module for module, _ in seen] == modules
    assert [failure for _, failure in seen if failure] == failures


def test_nothing_but_failures_gives_an_empty_report(tmp_path):
    """Where no module can be measured the report is empty, not an error."""
    (tmp_path / "bad.py").write_text("(")
    report, failures = demo.analyse(demo.find_modules(tmp_path))
    assert report == demo.Report()
    assert [failure.step for failure in failures] == ["parse"]
