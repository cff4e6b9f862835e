"""What we compare with, each in its best honest form.

* `ThreadPoolExecutor(2)` knows no dependencies. `CountingPool` gives it some in the usual way: a counter
  per task, fed by `add_done_callback` of the upstreams; the last one submits the task. A callback
  only submits; it never completes another future. So a chain does not recurse (chained callbacks do,
  without bound, and the RecursionError is swallowed inside of the future).
* Dask's threaded scheduler on a raw graph: no collection, no optimisation, so nothing is fused or inlined.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

__all__ = ["CountingPool", "dask_get"]


class CountingPool:
    """Tasks with dependencies on a thread pool: `spawn(f, *args)`, where an argument may be a future."""

    def __init__(self, threads: int) -> None:
        self.pool = ThreadPoolExecutor(threads)
        self.submit = self.pool.submit  # what a workload without dependencies calls

    def spawn(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Submit at once what has no unfinished business, else when the last upstream is done."""
        upstreams = [arg for arg in args if isinstance(arg, Future)]
        if not upstreams:
            return self.pool.submit(function, *args)
        done: Future[Any] = Future()
        arrived = itertools.count(1).__next__  # atomic under the GIL, so that exactly one sees the last number
        last = len(upstreams)

        def arrive(_: Future[Any]) -> None:
            if arrived() == last:
                self.pool.submit(_run, done, function, args)

        for upstream in upstreams:
            upstream.add_done_callback(arrive)
        return done

    def close(self) -> None:
        """Wait for the threads to end."""
        self.pool.shutdown()


def _run(done: Future[Any], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        done.set_result(function(*[arg.result() if isinstance(arg, Future) else arg for arg in args]))
    except BaseException as error:
        done.set_exception(error)


def dask_get(threads: int) -> Callable[[dict[Any, Any], Any], Any]:
    """Dask's `threaded.get` with a pool of its own size."""
    from dask import threaded

    def get(graph: dict[Any, Any], keys: Any) -> Any:
        return threaded.get(graph, keys, num_workers=threads)

    return get
