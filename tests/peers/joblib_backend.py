"""joblib's own tests of its threads, and scikit-learn's of what runs in parallel, with a back end of ours."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import otel_timespan as ts

from . import judging, pool, pytested

LEAST = 100
JOBLIB = ["test/test_parallel.py"]
SKLEARN = ["utils/tests/test_parallel.py", "ensemble/tests/test_voting.py"]
SELECTED = "threading and not loky and not multiprocessing"
DIFFERENCES: dict[str, str] = {}


def install() -> None:
    """Where joblib would use threads it uses tasks."""
    from joblib import _parallel_backends, parallel

    class TimespanBackend(_parallel_backends.ThreadingBackend):  # type: ignore[misc]
        """Derives from joblib's, as its tests ask for that class; all that has to do with its pool is replaced."""

        _pool: ts.Executor | None = None

        def _get_pool(self) -> ts.Executor:
            if self._pool is None:
                self._pool = ts.Executor(self._n_jobs)
            return self._pool

        def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
            future = self._get_pool().submit(func)
            if callback is not None:
                future.add_done_callback(callback)
            return future

        def retrieve_result_callback(self, future: Any) -> Any:
            return future.result()

        def terminate(self) -> None:
            pool, self._pool = self._pool, None
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    TimespanBackend.__name__ = TimespanBackend.__qualname__ = "ThreadingBackend"
    parallel.BACKENDS["threading"] = TimespanBackend
    parallel.ThreadingBackend = _parallel_backends.ThreadingBackend = TimespanBackend


def main() -> int:
    """Run them; the exit status."""
    joblib, sklearn = pytested.folder("joblib"), pytested.folder("sklearn")
    if joblib is None or sklearn is None:
        return judging.missing("joblib or scikit-learn is not installed: pip install joblib scikit-learn")
    pool.log_to_memory()
    logging.getLogger("otel_timespan").setLevel(logging.CRITICAL)  # they end in recursions, and never look at them
    install()
    print("of", joblib, "and", sklearn)
    outcomes = pytested.run(joblib, JOBLIB, DIFFERENCES, "-k", SELECTED)
    more = pytested.run(sklearn, SKLEARN, DIFFERENCES, "-k", "not multiprocessing")
    outcomes.states |= more.states
    outcomes.texts |= more.texts
    return judging.report(outcomes, DIFFERENCES, LEAST)


if __name__ == "__main__":
    sys.exit(main())
