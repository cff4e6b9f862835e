"""What an option is: one declaration, from which follow its check, its default, its texts and how it is handed down.

`option(...)` in the body of `Options` (`dagger/options/options.py`) declares one. `declare` makes plain class
attributes of these and enters them here, where everybody looks them up.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from ...errors import InvalidOptionError
from ...timespans.warn import warn_once
from .checks import Check, RefusedError, refusal

__all__ = [
    "BLOCK_OPTIONS",
    "MOMENTS",
    "REMOVED",
    "TASK_OPTIONS",
    "Declaration",
    "Kept",
    "check",
    "dataclass_transform",
    "declare",
    "drop_removed",
    "is_option",
    "option",
    "takes",
    "unknown_option",
]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Given = TypeVar("_Given", contravariant=True)
_Held = TypeVar("_Held", covariant=True)

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform

    class Kept(Generic[_Given, _Held]):
        """For type checkers, an option that may be given as one type and is kept as another."""

        def __get__(self, instance: object, owner: Any = None) -> _Held | None: ...
        def __set__(self, instance: object, value: _Given | None) -> None: ...

else:  # `typing` has it from Python 3.11 on only, and a descriptor would make every read a call

    class Kept(Generic[_Given, _Held]):
        """The type of an option that may be given as one type and is kept as another."""

    def dataclass_transform(**_: Any) -> Callable[[type], type]:
        """See `typing.dataclass_transform`: for type checkers the fields are keywords of the constructor."""
        return lambda cls: cls


MOMENTS = {
    "spawn": "when the task is made",
    "ready": "when its inputs are there, before it is placed",
    "placement": "when a processor is chosen for it",
    "body": "when its body runs, and when that is run again",
    "result": "when its body has given a result",
    "log": "in what the log is told",
    "never": "nowhere",
}
"""When an option takes effect."""

REMOVED = frozenset(("cache", "persist", "procutil"))
"""Names that Dagger's documents still mention and that mean nothing any more."""


@dataclass
class Declaration:
    """One option; see `option` for the fields. `name` and `keep` are there once it is declared."""

    check: Check
    doc: str
    default: str
    when: str
    propagates: bool = True
    by_signature: bool = True
    deprecated: str = ""
    inert: str = ""
    name: str = field(init=False)
    keep: Callable[[Any], Any] = field(init=False)
    """What the check keeps; tells of what is to be told when the option is used."""

    def entered(self, name: str) -> None:
        """It is called `name`."""
        if self.when not in MOMENTS:
            raise ValueError(f"option {name}: when={self.when!r}, there are {', '.join(MOMENTS)}")
        self.name = name
        self.keep = _telling(self) if self.deprecated or self.inert else self.check.keep

    def refusal(self, value: object, refused: RefusedError) -> InvalidOptionError:
        """The error for a value that the check refused."""
        return refusal(self.name, value, refused.wanted or self.check.wanted)


def option(
    check: Check,
    doc: str,
    *,
    default: str,
    when: str,
    propagates: bool = True,
    by_signature: bool = True,
    deprecated: str = "",
    inert: str = "",
) -> Any:
    """Declare an option, in the body of `Options`: `retries: int | None = option(at_least(0), ...)`.

    `check`: what its value may be. `doc`: what it means, in sentences. `default`: what holds where it is set
    nowhere, in words (for type checkers it says that the keyword may be left out). `when`: one of `MOMENTS`.
    `propagates`: tasks that the body spawns get it where it is scoped. `by_signature`: it may be the default
    of a signature. `deprecated`: what to use instead; a `DeprecationWarning` says so, once. `inert`: why it
    does nothing yet; the log says so, once.
    """
    return Declaration(check, doc, default, when, propagates, by_signature, deprecated, inert)


TASK_OPTIONS: dict[str, Declaration] = {}
"""The options of a task, in the order of their declaration."""

BLOCK_OPTIONS: dict[str, Declaration] = {}
"""What `with_options` takes: the options of a task, and those of a block only."""


def declare(cls: type, names: dict[str, Declaration]) -> None:
    """Enter the declarations in the body of `cls` in `names`; its attributes become None, which means unset.

    Raises `TypeError` for one without an annotation, which type checkers would not see.
    """
    for name, given in tuple(vars(cls).items()):
        if isinstance(given, Declaration):
            if name not in cls.__annotations__:
                raise TypeError(f"the option {name} needs an annotation")
            given.entered(name)
            names[name] = BLOCK_OPTIONS[name] = given
            setattr(cls, name, None)


def takes(fields: Callable[_P, Any]) -> Callable[[Callable[..., _R]], Callable[_P, _R]]:
    """For type checkers: a function takes the keywords of this class."""
    return lambda f: f


# --- names and values --------------------------------------------------------------------------------


def is_option(name: object, scoped: bool = False) -> bool:
    """Whether there is an option of this name; `scoped`: `with_options` takes a few more."""
    return name in (BLOCK_OPTIONS if scoped else TASK_OPTIONS)


def check(name: str, value: Any, scoped: bool = False) -> Any:
    """The value as an option keeps it. Raises `InvalidOptionError` for a wrong name or value."""
    found = (BLOCK_OPTIONS if scoped else TASK_OPTIONS).get(name)
    if found is None:
        raise unknown_option(name)
    keep = found.keep
    try:
        return keep(value)
    except RefusedError as refused:
        raise found.refusal(value, refused) from None


def unknown_option(name: object) -> InvalidOptionError:
    """The error for a name that is no option, with the one that was perhaps meant."""
    if name in BLOCK_OPTIONS:
        return InvalidOptionError(f"{name!r} is no option of a task: use with_options({name}=...) around the spawn")
    if name in REMOVED:
        return InvalidOptionError(f"the option {name!r} does not exist any more: leave it out")
    near = difflib.get_close_matches(str(name), BLOCK_OPTIONS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TASK_OPTIONS)}"
    return InvalidOptionError(f"there is no option {name!r}: {hint}")


def drop_removed(opts: Mapping[str, Any]) -> dict[str, Any]:
    """The options without the names that are gone (`cache`, `persist`, `procutil`), each with a warning."""
    for name in opts:
        if name in REMOVED:
            _warn(f"the option {name!r} does nothing any more: leave it out")
    return {name: value for name, value in opts.items() if name not in REMOVED}


# --- what is said when an option is used ---------------------------------------------------------------

_deprecated: set[str] = set()
"""The deprecated options that were warned of."""


def _telling(declared: Declaration) -> Callable[[Any], Any]:
    """The check of a deprecated or inert option: one that is kept is told of."""
    name, keep = declared.name, declared.check.keep

    def tell(value: Any) -> Any:
        kept = keep(value)
        if declared.inert:
            warn_once(("option", name), "the option %s does nothing yet: %s", name, declared.inert)
        elif name not in _deprecated:
            _deprecated.add(name)
            _warn(f"the option {name!r} is deprecated: {declared.deprecated}")
        return kept

    return tell


def _warn(text: str) -> None:
    """A `DeprecationWarning` at the first line up the stack that is not the package's."""
    package, level, frame = __name__.partition(".")[0], 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(text, DeprecationWarning, stacklevel=level)
