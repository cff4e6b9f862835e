"""The task graph in Graphviz' language, and drawn by it.

See docs/pictures.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape as html_escape
from typing import Any

from ..errors import InvalidOptionError, MissingExtraError, TimespanError
from ..timespans.texts import printable
from .colors import PALETTE, NameToColor, assign_colors
from .counters import short_processor
from .critical_path import realised_path
from .dataflow import DataFlow, DataKey, read_dataflow
from .rows import LogTable, TaskRow, read_logs
from .tables import check_color_by
from .units import pretty_time

__all__ = ["GraphPicture", "logs_to_dot"]


class GraphPicture:
    """A task graph: `dot` is its text, `svg()` draws it; shows itself in a notebook."""

    def __init__(self, dot: str, layout_engine: str = "dot") -> None:
        self.dot = dot
        self.layout_engine = layout_engine

    def svg(self) -> str:
        """The graph as an SVG document, laid out by Graphviz.

        Raises `MissingExtraError` without the Python library graphviz, `TimespanError` without the
        program of that name, or when it fails.
        """
        try:
            import graphviz
        except ImportError as error:
            raise MissingExtraError("graphviz", "viz") from error
        try:
            drawn = graphviz.Source(self.dot, engine=self.layout_engine).pipe(format="svg", encoding="utf-8")
        except graphviz.ExecutableNotFound as error:
            raise TimespanError(
                f"the program {self.layout_engine!r} of Graphviz is not installed (the Python library only calls "
                "it): install the system package graphviz, or draw .dot elsewhere"
            ) from error
        except ValueError as error:
            raise InvalidOptionError(f"layout_engine={self.layout_engine!r} is none of Graphviz' engines") from error
        except graphviz.CalledProcessError as error:
            raise TimespanError(f"Graphviz failed to draw the graph: {error}") from error
        return str(drawn)

    def __str__(self) -> str:
        return self.dot

    def _repr_html_(self) -> str:
        try:
            svg = self.svg()
        except TimespanError as error:
            return f"<p>{html_escape(str(error))}</p><pre>{html_escape(self.dot)}</pre>"
        return f"<div style='overflow:auto;max-height:800px'>{svg[svg.index('<svg') :]}</div>"


def logs_to_dot(
    logs: Any,
    *,
    disconnected: bool = False,
    show_data: bool = True,
    color_by: str = "fn",
    times: bool = True,
    times_digits: int = 3,
    colors: Sequence[str] | None = PALETTE,
    name_to_color: NameToColor | None = None,
    limit: int | None = 1000,
) -> str:
    """The task graph of a log of any kind, as DOT text.

    A box `v<task id>` a task, an oval `a<object>` a data object (`show_data`), edges labelled `syncdep`
    (one a dependency), `arg <n>`, `kwarg <name>`, `result` and `move`. `disconnected` keeps what has no
    edge. `color_by`: "fn" or "proc". `times` adds when the body ran, since the first body of its worker.
    `colors` None draws in black; `name_to_color(name, colors)` picks another way. At most `limit` tasks
    are drawn (None: all): the realised slowest path and then the lowest ids; the graph's label says what
    was left out. The text is the same for the same log.

    Raises `InvalidOptionError` for other values.
    """
    check_color_by(color_by, "graphviz")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise InvalidOptionError(f"graphviz: limit is a number of tasks from 1 on, or None for all, not {limit!r}")
    if not isinstance(times_digits, int) or times_digits < 0:
        raise InvalidOptionError(f"graphviz: times_digits is a number from 0 on, not {times_digits!r}")
    log = read_logs(logs)
    graph = _Graph(log, read_dataflow(log), disconnected, show_data, limit)
    names = [_colored_name(task, color_by) for task in graph.tasks]
    palette = assign_colors(names, colors, name_to_color)
    origins = _origins(log) if times else {}
    lines = ["strict digraph {", *_header(graph)]
    for task, name in zip(graph.tasks, names, strict=False):
        label = "\\n".join(map(_escape, _label(task, origins, times_digits)))
        lines.append(f'v{task.task_id} [label="{label}", shape=box, color="{_escape(palette[name])}", penwidth=2.0];')
    lines += graph.data_statements()
    lines += graph.edge_statements()
    return "\n".join([*lines, "}", ""])


def _header(graph: _Graph) -> Iterator[str]:
    yield 'node [fontname="Helvetica", fontsize=11, margin="0.15,0.08"];'
    yield 'edge [fontname="Helvetica", fontsize=9, color="#555555", fontcolor="#555555"];'
    yield "graph [ranksep=0.45, nodesep=0.3];"
    if graph.left_out:
        yield f'graph [label="{_escape(graph.left_out)}", labelloc=t, fontname="Helvetica", fontsize=12];'


def _colored_name(task: TaskRow, color_by: str) -> str:
    return (task.function or task.name) if color_by == "fn" else short_processor(task.processor)


def _origins(log: LogTable) -> dict[int, int]:
    """The first body's start of each worker."""
    origins: dict[int, int] = {}
    for span in log.computes:
        origins.setdefault(span.worker, span.start)
    return origins


def _label(task: TaskRow, origins: dict[int, int], digits: int) -> Iterator[str]:
    yield task.name
    if task.function and task.name != task.function:
        yield f"Task: {task.function}"
    if processor := short_processor(task.processor):
        yield f"({processor})"
    if task.state in ("failure", "skip", "cancellation"):
        yield task.state
    start, end = task.body_start_ns, task.body_end_ns
    if origins and start is not None and end is not None and task.worker is not None:
        origin = origins.get(task.worker, start)
        began, ended, took = (pretty_time(t, digits) for t in (start - origin, end - origin, end - start))
        yield f"[+{began} -> +{ended} (diff: {took})]"


class _Graph:
    """What of a log is drawn."""

    def __init__(self, log: LogTable, flow: DataFlow, disconnected: bool, show_data: bool, limit: int | None) -> None:
        self.log, self.flow = log, flow
        connected = None if disconnected else _connected(log, flow)
        candidates = [t for t in log.tasks.values() if connected is None or t.task_id in connected]
        shown = candidates if limit is None else _bounded(log, candidates, limit)
        self.tasks = shown
        self.shown = {task.task_id for task in shown}
        self.left_out = _left_out(len(log.tasks), len(candidates), len(shown))
        bounded = len(shown) < len(candidates)
        self.nodes = self._data_nodes(disconnected and not bounded) if show_data else {}

    def _data_nodes(self, everything: bool) -> dict[DataKey, str]:
        used = {key for task_id, _, key in self.flow.arguments if task_id in self.shown}
        used |= {key for task_id, key in self.flow.results if task_id in self.shown}
        used |= {key for pair in self.flow.moves if used.intersection(pair) for key in pair}
        nodes: dict[DataKey, str] = {}
        taken: set[str] = set()
        for key in self.flow.objects():
            if everything or key in used:
                name = "a" + "".join(c if c.isalnum() else "_" for c in printable(key.objid))
                nodes[key] = f"{name}_{key.kind}" if name in taken else name
                taken.add(nodes[key])
        return nodes

    def data_statements(self) -> Iterator[str]:
        for key, node in self.nodes.items():
            text = hex(key.objid) if isinstance(key.objid, int) else printable(key.objid)
            lines = [self.log.names[key.objid]] if key.objid in self.log.names else []
            label = "\\n".join(map(_escape, [*lines, f"Data: {text}"]))
            yield f'{node} [label="{label}", shape=oval, fontsize=9, color="#888888", fontcolor="#555555"];'

    def edge_statements(self) -> Iterator[str]:
        nodes = self.nodes
        for before, after in sorted(self.flow.moves, key=lambda pair: (nodes.get(pair[0], ""), nodes.get(pair[1], ""))):
            if before in nodes and after in nodes:
                yield f'{nodes[before]} -> {nodes[after]} [label="move", style=dotted];'
        for task in self.tasks:
            for upstream in task.dependencies:
                if upstream in self.shown:
                    yield f'v{upstream} -> v{task.task_id} [label="syncdep", style=bold];'
        for task_id, position, key in sorted(self.flow.arguments, key=lambda e: (e[0], str(e[1]))):
            if task_id in self.shown and key in nodes:
                label = f"arg {position}" if isinstance(position, int) else f"kwarg {position}"
                yield f'{nodes[key]} -> v{task_id} [label="{_escape(label)}"];'
        for task_id, key in sorted(self.flow.results, key=lambda e: e[0]):
            if task_id in self.shown and key in nodes:
                yield f'v{task_id} -> {nodes[key]} [label="result"];'


def _connected(log: LogTable, flow: DataFlow) -> set[int]:
    connected = {task_id for task_id, _, _ in flow.arguments} | {task_id for task_id, _ in flow.results}
    connected |= {task_id for task_id, _ in flow.chunks}
    for task in log.tasks.values():
        known = [d for d in task.dependencies if d in log.tasks]
        if known:
            connected.update(known, (task.task_id,))
    return connected


def _bounded(log: LogTable, candidates: list[TaskRow], limit: int) -> list[TaskRow]:
    if len(candidates) <= limit:
        return candidates
    kept = [task.task_id for task in realised_path(log)][-limit:]
    chosen = set(kept)
    for task in candidates:
        if len(chosen) >= limit:
            break
        chosen.add(task.task_id)
    return [task for task in candidates if task.task_id in chosen]


def _left_out(total: int, candidates: int, shown: int) -> str:
    parts = []
    if candidates < total:
        parts.append(f"{total - candidates:,} tasks without edges left out (disconnected=True shows them)")
    if shown < candidates:
        parts.append(f"{shown:,} of {candidates:,} tasks shown: the slowest path, then the lowest ids (limit=)")
    return "; ".join(parts)


def _escape(text: str) -> str:
    """For between quotation marks. Graphviz reads entities of HTML there, too."""
    return printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
