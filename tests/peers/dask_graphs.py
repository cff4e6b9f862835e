"""Dask's own tests: over a `get` of ours (dask_get.py), and over Dask's with an `Executor` as its pool."""

from __future__ import annotations

import sys

from . import judging, pool, pytested

LEAST = 600
DELAYED = ["tests/test_delayed.py", "tests/test_base.py", "bag/tests/test_bag.py"]
ARRAYS = [f"array/tests/test_{part}.py" for part in ("slicing", "overlap", "ufunc", "map_blocks")]
LEFT_OUT = {
    "tests/test_base.py::test_num_workers_config": "our `get` has no `num_workers`: the context has so many slots",
    "array/tests/test_slicing.py::test_slicing_none_int_ellipes": "a fifth of the whole time, all of it the same",
}
_ONE = "arrays and bags have one scheduler here, so that there is none to be asked for"
DIFFERENCES = {
    "test_base.py::test_compute_array_bag": _ONE,
    "test_base.py::test_persist_array_bag": _ONE,
}


def use_our_get() -> None:
    """Where Dask would use its threads, and for bags its processes, it calls ours."""
    import dask.base
    import dask.threaded
    from dask.delayed import Delayed

    from .dask_get import get

    dask.threaded.get = get
    Delayed.__dask_scheduler__ = staticmethod(get)
    for name in ("threads", "threading", "processes", "multiprocessing"):
        dask.base.named_schedulers[name] = get


def main() -> int:
    """Run them; the exit status."""
    root = pytested.folder("dask")
    if root is None or not (root / "tests").is_dir():
        return judging.missing("Dask is not installed with its tests: pip install dask[array]")
    print("of", root)
    if "pool" in sys.argv[1:]:
        pool.install()
        return judging.report(pytested.run(root, ["tests/test_threaded.py"], DIFFERENCES), DIFFERENCES, 10)
    use_our_get()
    left_out = [f"--deselect={name}" for name in LEFT_OUT]
    return judging.report(pytested.run(root, DELAYED + ARRAYS, DIFFERENCES, *left_out), DIFFERENCES, LEAST)


if __name__ == "__main__":
    sys.exit(main())
