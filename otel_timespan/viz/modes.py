"""`show_logs` and `render_logs`: an open registry of ways to show a log.

See docs/pictures.md; upstream: https://juliaparallel.org/Dagger.jl/dev/logging-visualization/.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import forks
from ..errors import InvalidOptionError, NotCallableError
from .chrome import chrome_trace
from .dot import GraphPicture, logs_to_dot
from .gantt import gantt
from .output import write_output
from .summary import Summary, summarize_logs
from .tables import logs_to_csv, logs_to_dataframe

__all__ = ["modes", "register", "render_logs", "show_logs"]


class _Mode(NamedTuple):
    log_type: type
    show: Callable[..., Any] | None
    render: Callable[..., Any] | None


_modes: dict[str, list[_Mode]] = {}
_aliases = {"plots_gantt": "gantt"}
_lock = forks.lock()


def register(
    mode: str,
    *,
    show: Callable[..., Any] | None = None,
    render: Callable[..., Any] | None = None,
    log_type: type = object,
) -> None:
    """Add a way to show logs, or replace one for logs of a type.

    `show(logs, **options)` returns a text (or an object whose `str()` is the text), `render(logs,
    **options)` an object that a notebook can show. The options are the keywords of the two functions.
    The last one registered for a type of which the log is an instance wins. Thread-safe.

    Raises `NotCallableError` for what can't be called, `InvalidOptionError` when neither is given.
    """
    if not isinstance(mode, str) or not mode:
        raise InvalidOptionError(f"a mode is named by a text, not {mode!r}")
    if not isinstance(log_type, type):
        raise InvalidOptionError(f"register({mode!r}): log_type is a type, not {log_type!r}")
    if show is None and render is None:
        raise InvalidOptionError(f"register({mode!r}) needs show= or render=, a function of the logs")
    for function in (show, render):
        if function is not None and not callable(function):
            raise NotCallableError(f"register({mode!r}): {function!r} can't be called")
    with _lock:
        _modes.setdefault(_aliases.get(mode, mode), []).insert(0, _Mode(log_type, show, render))


def modes() -> tuple[str, ...]:
    """The names that `show_logs` and `render_logs` know, sorted."""
    return tuple(sorted({*_modes, *_aliases}))


def show_logs(logs: Any, mode: str, io: Any = None, **options: Any) -> str | None:
    """A log as text. Returned without `io`; else written to `io` (an open text file or a path).

    `mode` is one of `modes()`: "graphviz" (DOT), "chrome_trace" (JSON), "gantt" (SVG; alias
    "plots_gantt"), "summary" (plain text, tables where `io` is a terminal), "dataframe" (CSV), and what
    was registered. `logs` is what `fetch_logs()` or `get_logs()` gave. Options are the mode's.

    Dagger's order, `show_logs(io, logs, mode)`, works as well.

    Raises `InvalidOptionError` (a `ValueError`) for an unknown mode or option, for what is no log, and
    when `io` is a path that can't be written.
    """
    if not isinstance(mode, str) and isinstance(io, str):
        logs, mode, io = mode, io, logs  # Dagger's order, show_logs(io, logs, mode)
    shown = _call("show", logs, mode, options)
    if io is None:
        return str(shown)
    if isinstance(shown, Summary) and callable(getattr(io, "write", None)):
        shown.write(io)
    else:
        write_output(io, str(shown))
    return None


def render_logs(logs: Any, mode: str, **options: Any) -> Any:
    """A log as an object to display.

    "graphviz": `GraphPicture` (`.dot`, `.svg()`); "chrome_trace": `ChromeTrace` (`.write(path)`);
    "gantt": `Gantt` (an SVG text, `.figure()`); "summary": `Summary`; "dataframe": `pandas.DataFrame`.
    All show themselves in a notebook. Modes and errors as for `show_logs`.
    """
    return _call("render", logs, mode, options)


def _call(verb: str, logs: Any, mode: str, options: dict[str, Any]) -> Any:
    name = _aliases.get(mode, mode) if isinstance(mode, str) else mode
    with _lock:
        known = list(_modes.get(name, ())) if isinstance(mode, str) else []
    kind = type(logs).__name__
    if not known:
        allowed = ", ".join(modes())
        raise InvalidOptionError(f"mode {mode!r} (for a log of type {kind}) is not known; allowed are {allowed}")
    fitting = [m for m in known if isinstance(logs, m.log_type)]
    functions = [f for m in fitting if (f := getattr(m, verb)) is not None]
    if not functions:
        types = ", ".join(sorted({m.log_type.__name__ for m in known if getattr(m, verb) is not None})) or "nothing"
        raise InvalidOptionError(f"mode {mode!r} can't {verb} a log of type {kind}; it can {verb} {types}")
    _check_options(functions[0], mode, options)
    try:
        return functions[0](logs, **options)
    except InvalidOptionError as error:
        if repr(mode) in str(error) or str(error).startswith(f"{mode}"):
            raise
        raise InvalidOptionError(f"mode {mode!r}: {error}") from error


def _check_options(function: Callable[..., Any], mode: str, options: dict[str, Any]) -> None:
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):  # a builtin without a signature judges for itself
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    allowed = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if unknown := sorted(set(options) - set(allowed)):
        listed = ", ".join(allowed) or "none"
        raise InvalidOptionError(f"mode {mode!r} has no option {', '.join(unknown)}; allowed are {listed}")


def _render_graphviz(logs: Any, *, layout_engine: str = "dot", **options: Any) -> GraphPicture:
    _check_options(logs_to_dot, "graphviz", options)
    return GraphPicture(logs_to_dot(logs, **options), layout_engine)


register("graphviz", show=logs_to_dot, render=_render_graphviz)
register("chrome_trace", show=chrome_trace, render=chrome_trace)
register("gantt", show=gantt, render=gantt)
register("summary", show=summarize_logs, render=summarize_logs)
register("dataframe", show=logs_to_csv, render=logs_to_dataframe)
