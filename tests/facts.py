"""`python -m tests.facts [timespans|scheduler]`: the facts of a specification, with the tests that show them.

Nothing is kept by hand: a test says in its docstring which section it is about ("§4.2", "§17.5-17.8"), or in
its name (`test_4_2_uid`, `test_s10_restore`, `test_section_7_2_slices`); where it says nothing its class
does, then its module. The module's docstring names the specification (`spec/timespans.md §1`); where it names
no section, tests that say none either are edges and no facts. The files are read, not run.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Fact", "facts_in", "main", "sections_in"]

ROOT = Path(__file__).parent
SPECS = ("timespans", "scheduler")

Section = tuple[int, ...]

_NUMBER = r"\d+(?:\.\d+)*"
_MENTION = re.compile(
    rf"(?P<file>[\w-]+)\.md|§\s*(?P<first>{_NUMBER})(?:\s*(?:-|\u2013|to)\s*§?\s*(?P<last>{_NUMBER}))?"
)
_IN_NAME = re.compile(r"test_(s|section_)?(\d+(?:_\d+)*)_")
_HEADING = re.compile(rf"#+\s+({_NUMBER})\.?\s+(.+)")


class Fact(NamedTuple):
    """A test and a section that it shows. `test` is its id, `text` the first line of its docstring."""

    spec: str
    section: Section
    test: str
    text: str


def _section(text: str) -> Section:
    return tuple(int(part) for part in text.split("."))


def sections_in(text: str, spec: str) -> list[tuple[str, Section]]:
    """The sections that a text mentions, as (specification, section); of `spec` unless a file is named before."""
    found: list[tuple[str, Section]] = []
    for mention in _MENTION.finditer(text):
        if mention["file"]:
            spec = mention["file"]
            continue
        first = _section(mention["first"])
        last = _section(mention["last"]) if mention["last"] else first
        if first[:-1] != last[:-1] or last < first:  # not a range
            last = first
        found += [(spec, (*first[:-1], n)) for n in range(first[-1], last[-1] + 1)]
    return list(dict.fromkeys(found))


def facts_in(path: Path) -> Iterator[Fact]:
    """The facts of one file of tests; none if its docstring names no specification."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    title = ast.get_docstring(tree) or ""
    named = re.search(r"spec/(\w+)\.md", title)
    if named is None:
        return
    spec, name = named[1], path.relative_to(ROOT.parent).as_posix()
    module = sections_in(title, spec)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            inner = sections_in(ast.get_docstring(node) or "", spec) or module
            for each in node.body:
                yield from _facts_of(each, f"{name}::{node.name}", spec, inner)
        else:
            yield from _facts_of(node, name, spec, module)


def _facts_of(node: ast.AST, home: str, spec: str, otherwise: list[tuple[str, Section]]) -> Iterator[Fact]:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or not node.name.startswith("test_"):
        return
    text = ast.get_docstring(node) or ""
    in_name = _IN_NAME.match(node.name)
    own: list[tuple[str, Section]] = []
    if in_name:
        section = tuple(int(part) for part in in_name[2].split("_"))
        # `test_24_...` in a file about §4 is named after a ruling.
        if in_name[1] or section[0] in {known[0] for _, known in otherwise}:
            own = [(spec, section)]
    for of, section in sections_in(text, spec) or own or otherwise:
        yield Fact(of, section, f"{home}::{node.name}", text.partition("\n")[0])


def _headings(path: Path) -> dict[Section, str]:
    """The numbered sections of a specification and their titles."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {_section(found[1]): found[2] for line in lines if (found := _HEADING.match(line))}


def _report(spec: str, facts: list[Fact], titles: dict[Section, str], counts_only: bool) -> None:
    by_section: dict[Section, list[Fact]] = {}
    for fact in facts:
        by_section.setdefault(fact.section, []).append(fact)
    print(f"{spec}.md: {len({fact.test for fact in facts})} tests for {len(by_section)} sections\n")
    for section in sorted({*by_section, *titles}):
        found = by_section.get(section, [])
        number, title = ".".join(map(str, section)), titles.get(section, "")
        print(f"§{number}{' ' + title if title else ''}: {len(found)}")
        for fact in [] if counts_only else found:
            print(f"    {fact.test}\n        {fact.text}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the facts of the specifications that are asked for. 0 always: it judges nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.facts", description=__doc__.splitlines()[0])
    parser.add_argument("specs", nargs="*", metavar="|".join(SPECS), help="which specifications (default: all)")
    parser.add_argument("--counts", action="store_true", help="numbers only, without the tests")
    parser.add_argument("--spec-dir", type=Path, help="folder of the specifications: shows titles and sections without")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.specs if name not in SPECS]:
        parser.error(f"no specification is called {unknown[0]!r}; there are {', '.join(SPECS)}")
    facts = [fact for path in sorted(ROOT.rglob("test_*.py")) for fact in facts_in(path)]
    for spec in options.specs or SPECS:
        titles = _headings(options.spec_dir / f"{spec}.md") if options.spec_dir else {}
        _report(spec, [fact for fact in facts if fact.spec == spec], titles, options.counts)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
