"""Everything at once, at random, on real threads: nothing hangs, nothing is lost, nothing is left behind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger import storage
from tests.dagger.acceptance.support import DEADLINE_S


def body(kind: str, *inputs: Any) -> Any:
    """What a task does, by its first argument."""
    if kind == "fail":
        raise ValueError(kind)
    if kind == "nest":
        return D.fetch(D.spawn(body, "ok"))
    if kind == "big":
        return bytes(1000)
    return 1


def _options(rng: random.Random, device: storage.RecencyAllocator) -> D.Options | None:
    chosen: dict[str, Any] = {}
    where = rng.random()
    if where < 0.3:
        chosen["scope"] = D.scope(worker=1, thread=rng.choice([1, 2]))
    elif where < 0.5:
        chosen["scope"] = D.scope(worker=1, threads=[1, 2])
    if rng.random() < 0.4:
        chosen["occupancy"] = {Any: rng.choice([0, 0.25, 0.5, 0.75, 1])}
    if rng.random() < 0.15:
        chosen["retries"] = 1
    if rng.random() < 0.1:
        chosen["storage"] = device
    if rng.random() < 0.05:
        chosen["timeout"] = 0.0005
    if rng.random() < 0.1:
        chosen["limit"] = "few"
    return D.Options(**chosen) if chosen else None


def _disturb(rng: random.Random, context: D.Context, tasks: list[D.DTask]) -> None:
    what = rng.random()
    if what < 0.1:
        D.cancel(rng.choice(tasks), force=what < 0.02)
    elif what < 0.12:
        D.rmprocs(context, [1])
        D.addprocs(context, [1])
    elif what < 0.15:
        assert "running or ready" in D.status()


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_everything_at_once(seed: int, logged: bool, tmp_path: Path) -> None:
    """Pins, shares, limits, retries, time limits, spills, cancels, pool changes in one mix: all end, all is free."""
    rng = random.Random(seed)
    device = storage.RecencyAllocator(5000, storage.PickleFileDevice(tmp_path), 10**6)
    D.set_limit("few", 1)
    log: list[Any] = []
    with D.Context(threads=2, log_sink=log if logged else None) as context:
        for _ in range(60):
            tasks: list[D.DTask] = []
            for _ in range(rng.randrange(1, 50)):
                inputs = rng.sample(tasks, min(len(tasks), rng.randrange(3)))
                kind = rng.choice(["ok", "ok", "ok", "fail", "nest", "big"])
                options = _options(rng, device)
                given = (kind, *inputs) if options is None else (options, kind, *inputs)
                tasks.append(D.spawn(body, *given))
                _disturb(rng, context, tasks)
            for task in tasks:
                D.wait(task, timeout=DEADLINE_S)
            context.wait_idle()
            state = D.eager_state()
            assert state is not None and state.running_count == 0
            D.check(state)
            assert all(abs(ns) < 1 for table in state.worker_time_pressure.values() for ns in table.values())
    if logged:
        starts = sum(event.phase == "start" for event in log)
        assert starts == len(log) - starts > 0
