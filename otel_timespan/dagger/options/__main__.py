"""What is made of the declarations: the text of docs/options.md, and with the argument `keywords` that of keywords.py.

The latter is what type checkers know of `**options`: only there can they not look at the class `Options` itself.
"""

from __future__ import annotations

import ast
import sys

from .declaring import BLOCK_OPTIONS, MOMENTS, REMOVED, TASK_OPTIONS, Declaration
from .options import BlockOptions, Options

__all__ = ["keywords_python", "options_markdown"]

_HEAD = """# Options of tasks

Made from `otel_timespan/dagger/options/options.py` by `python -m otel_timespan.dagger.options`; a test compares.

An option is given to one task, `spawn(f, Options(retries=3), 1)`, to all that a block spawns,
`with with_options(retries=3): ...`, or to all calls of a function with arguments of certain types,
`set_default_option("retries", f, (int,), 3)`. Who wins: the task's own option > the scoped option > the scheduler's
option > the default of the signature > the default below. None means: not set.

Tasks that a body spawns get the options that were scoped where its task was spawned, with that task's own values, and
so on to any depth.
"""

_DECLARING = """## Declaring one

An option is one attribute of the class `Options`: annotation, check, text, default, when it takes effect. The keyword
and the attribute for type checkers, the error texts, what `with_options` and `set_default_option` take, how it is
handed down, and the table above follow from it; `python -m otel_timespan.dagger.options keywords` makes
`otel_timespan/dagger/options/keywords.py` anew. What is left to do is to read it, `task.options.<name>`, where it
takes effect.
"""

_KEYWORDS = '''"""The options of a task as keywords, for type checkers: what `**options` takes in `map` and its like.

Made from options.py by `python -m otel_timespan.dagger.options keywords`; a test compares. Not loaded at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypedDict

from ..places.devices import StorageDevice
from ..places.processors import Processor
from ..places.scopes import Scope

__all__ = ["TaskKeywords"]


class TaskKeywords(TypedDict, total=False):
    """The names of `Options`; see there."""

'''


def options_markdown() -> str:
    """The text of docs/options.md."""
    moments = "".join(f"* {moment}: {meaning}\n" for moment, meaning in MOMENTS.items())
    removed = ", ".join(f"`{name}`" for name in sorted(REMOVED))
    return (
        f"{_HEAD}\n## Options of a task\n\n{_table(Options)}\nWhen they take effect:\n\n{moments}\n"
        f"## Options of a block only\n\n{_table(BlockOptions)}\n"
        f"## Gone\n\n{removed}: they do nothing any more, with a warning.\n\n{_DECLARING}"
    )


def keywords_python() -> str:
    """The text of keywords.py."""
    return _KEYWORDS + "".join(f"    {name}: {_given(text)}\n" for name, text in Options.__annotations__.items())


def _given(annotation: str) -> str:
    """The type as which an option may be given."""
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Kept":
        assert isinstance(node.slice, ast.Tuple)
        return f"{ast.unparse(node.slice.elts[0])} | None"
    return ast.unparse(node)


def _table(declaring: type[Options]) -> str:
    lines = ["| option | must be | default | takes effect | means |\n", "| --- | --- | --- | --- | --- |\n"]
    for one in (BLOCK_OPTIONS[name] for name in declaring.__annotations__):
        lines.append(f"| `{one.name}` | {one.check.wanted} | {one.default} | {one.when} | {_meaning(one)} |\n")
    return "".join(lines)


def _meaning(one: Declaration) -> str:
    notes = [one.doc]
    if one.deprecated:
        notes.append(f"Deprecated: {one.deprecated}.")
    if one.inert:
        notes.append(f"Does nothing yet: {one.inert}.")
    if not one.propagates:
        notes.append("Scoped, it holds for what the block itself spawns only.")
    if not one.by_signature and one.name in TASK_OPTIONS:
        notes.append("Can't be the default of a signature.")
    return " ".join(notes)


if __name__ == "__main__":
    print(keywords_python() if sys.argv[1:] == ["keywords"] else options_markdown(), end="")
