"""The workloads: graphs of tasks that do nothing, so that what is measured is the scheduler.

Each workload is written twice: against a pair (spawn, fetch), which ours and the thread pool run, and
as a raw Dask graph. Both return a value that is checked, outside of the clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["WORKLOADS", "Workload"]

Spawn = Callable[..., Any]
Fetch = Callable[[Any], Any]
Get = Callable[[dict[Any, Any], Any], Any]

SEED = 20_240
WIDTH = 200
DEGREE = 3


def noop() -> None:
    """The empty task."""


def one() -> int:
    """A leaf."""
    return 1


def inc(x: int) -> int:
    """A link of a chain."""
    return x + 1


def add(x: int, y: int) -> int:
    """A node of a reduction."""
    return x + y


def low(x: int, y: int, z: int) -> int:
    """A node of a layer: the shortest way to it, so that numbers stay small."""
    return 1 + min(x, y, z)


@dataclass(frozen=True)
class Workload:
    """One workload. `size` is the full number of tasks asked for, `tasks(size)` what that makes."""

    name: str
    title: str
    size: int
    quick: int
    prepare: Callable[[int], Any]
    tasks: Callable[[int], int]
    eager: Callable[[Any, Spawn, Fetch], Any]
    dask: Callable[[Any], Callable[[Get], Any]]
    expected: Callable[[Any], Any]


# ---- W1: fan-out -------------------------------------------------------------------------------


def _fan_out(n: int, spawn: Spawn, fetch: Fetch) -> int:
    tasks = [spawn(noop) for _ in range(n)]
    for task in tasks:
        fetch(task)
    return len(tasks)


def _fan_out_dask(n: int) -> Callable[[Get], Any]:
    graph = {("t", i): (noop,) for i in range(n)}
    keys = list(graph)
    return lambda get: len(get(graph, keys))


# ---- W2, W2r: chains ---------------------------------------------------------------------------


def _chain(n: int, spawn: Spawn, fetch: Fetch) -> Any:
    task = spawn(one)
    for _ in range(n - 1):
        task = spawn(inc, task)
    return fetch(task)


def _chain_dask(n: int) -> Callable[[Get], Any]:
    graph: dict[Any, Any] = {("t", 0): (one,)}
    graph.update({("t", i): (inc, ("t", i - 1)) for i in range(1, n)})
    return lambda get: get(graph, ("t", n - 1))


def _round_trips(n: int, spawn: Spawn, fetch: Fetch) -> int:
    x = 0
    for _ in range(n):
        x = fetch(spawn(inc, x))
    return x


def _round_trips_dask(n: int) -> Callable[[Get], Any]:
    def run(get: Get) -> int:
        x = 0
        for _ in range(n):
            x = get({"t": (inc, x)}, "t")
        return x

    return run


# ---- W3: tree reduction ------------------------------------------------------------------------


def _tree(leaves: int, spawn: Spawn, fetch: Fetch) -> Any:
    level = [spawn(one) for _ in range(leaves)]
    while len(level) > 1:
        level = [spawn(add, level[i], level[i + 1]) for i in range(0, len(level), 2)]
    return fetch(level[0])


def _tree_dask(leaves: int) -> Callable[[Get], Any]:
    graph: dict[Any, Any] = {(0, i): (one,) for i in range(leaves)}
    depth, width = 0, leaves
    while width > 1:
        depth, width = depth + 1, width // 2
        graph.update({(depth, i): (add, (depth - 1, 2 * i), (depth - 1, 2 * i + 1)) for i in range(width)})
    return lambda get: get(graph, (depth, 0))


# ---- W4: layers --------------------------------------------------------------------------------


def _layer_edges(layers: int) -> list[list[tuple[int, ...]]]:
    """For each layer but the first, the upstreams of each task: fixed by the seed."""
    pick = random.Random(SEED).sample
    return [[tuple(pick(range(WIDTH), DEGREE)) for _ in range(WIDTH)] for _ in range(layers - 1)]


def _layers(edges: list[list[tuple[int, ...]]], spawn: Spawn, fetch: Fetch) -> int:
    level = [spawn(one) for _ in range(WIDTH)]
    for layer in edges:
        level = [spawn(low, level[a], level[b], level[c]) for a, b, c in layer]
    return sum([fetch(task) for task in level])


def _layers_dask(edges: list[list[tuple[int, ...]]]) -> Callable[[Get], Any]:
    graph: dict[Any, Any] = {(0, i): (one,) for i in range(WIDTH)}
    for depth, layer in enumerate(edges, 1):
        graph.update({(depth, i): (low, *((depth - 1, up) for up in ups)) for i, ups in enumerate(layer)})
    keys = [(len(edges), i) for i in range(WIDTH)]
    return lambda get: sum(get(graph, keys))


def _same(n: int) -> int:
    return n


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("W1", "fan-out of no-ops", 20_000, 500, _same, _same, _fan_out, _fan_out_dask, _same),
        Workload("W2", "chain", 5_000, 300, _same, _same, _chain, _chain_dask, _same),
        Workload("W2r", "chain, fetch per hop", 5_000, 100, _same, _same, _round_trips, _round_trips_dask, _same),
        Workload("W3", "tree reduction", 2**13, 2**7, _same, lambda leaves: 2 * leaves - 1, _tree, _tree_dask, _same),
        Workload(
            "W4",
            "layers of 200, 3 dependencies",
            50,
            3,
            _layer_edges,
            lambda layers: layers * WIDTH,
            _layers,
            _layers_dask,
            lambda edges: WIDTH * (len(edges) + 1),
        ),
    )
}
"""All of them, by name. Their size is the number of tasks, of leaves (W3) or of layers (W4)."""
