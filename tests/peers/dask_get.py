"""A `get` for Dask, as its page on schedulers describes it: a graph goes in, each of its nodes becomes a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dask._task_spec import Alias, DataNode, convert_legacy_graph
from dask.core import flatten
from dask.local import nested_get
from dask.order import order

import otel_timespan as ts
from otel_timespan import dagger as D

__all__ = ["get"]


def _call(node: Any, names: tuple[Any, ...], *values: Any) -> Any:
    return node(dict(zip(names, values, strict=True)))


def get(dsk: Any, keys: Any, **options: Any) -> Any:
    """The values of `keys` in the graph. What a task raised is raised as it is, as Dask's own schedulers do."""
    graph = convert_legacy_graph(dsk if isinstance(dsk, Mapping) else dsk.__dask_graph__())
    wanted = set(flatten(keys)) if isinstance(keys, list) else {keys}
    ordered = _ordered(graph, wanted)
    users = dict.fromkeys(ordered, 0)
    for key in ordered:
        for needed in graph[key].dependencies:
            users[needed] += 1
    made: dict[Any, Any] = {}
    try:
        for key in ordered:
            node = graph[key]
            if isinstance(node, DataNode):
                made[key] = node.value
            elif isinstance(node, Alias):
                made[key] = made[node.target]
            else:
                names = tuple(node.dependencies)
                made[key] = ts.spawn(_call, node, names, *[made[name] for name in names])
            for needed in node.dependencies:  # only what later tasks or the caller need is kept
                users[needed] -= 1
                if not users[needed] and needed not in wanted:
                    del made[needed]
        return nested_get(keys, {key: _value(made[key]) for key in wanted})
    except D.DTaskFailedError as failure:
        raise D.unwrap_exception(failure) from None


def _value(made: Any) -> Any:
    return made.fetch() if isinstance(made, D.DTask) else made


def _ordered(graph: Any, wanted: set[Any]) -> list[Any]:
    """What is needed for them: each after what it needs itself, else as Dask would begin them."""
    needed: set[Any] = set()
    left = list(wanted)
    while left:
        key = left.pop()
        if key not in needed:
            needed.add(key)
            left += graph[key].dependencies
    place = order({key: graph[key] for key in needed})
    ordered: dict[Any, None] = {}
    left = sorted(needed, key=place.__getitem__, reverse=True)
    while left:
        missing = [each for each in graph[left[-1]].dependencies if each not in ordered]
        if missing:
            left += sorted(missing, key=place.__getitem__, reverse=True)
        else:
            ordered[left.pop()] = None
    return list(ordered)
