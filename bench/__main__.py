"""`python -m bench`: measure, print tables, write bench/results/<name>.json. See docs/bench.md."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from .budgets import judge
from .report import RESULTS, budget_table, machine, render, save
from .run import BenchError, Run
from .sections import SECTIONS
from .systems import SYSTEMS
from .workloads import WORKLOADS

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; the exit code is 1 when a budget is not met and `--strict` was given."""
    options = _options(arguments)
    if "dask" in options.systems and importlib.util.find_spec("dask") is None:
        print("bench: Dask is not installed: pip install 'otel-timespan[bench]', or leave it out with --systems")
        return 2
    run = Run(workloads=options.workloads, systems=options.systems, rounds=options.rounds, quick=options.quick)
    print("\n" + "  ".join(f"{key}: {value}" for key, value in machine().items() if key != "packages") + "\n")
    failed = _measure(run, options.sections)
    verdicts = judge(run.figures)
    print(render(budget_table(verdicts)))
    path = save(run, verdicts, options.results / f"{options.name}.json")
    print(f"written: {os.path.relpath(path)}")
    if failed is not None:
        print(f"bench: not complete: {failed}", file=sys.stderr)
        return 2
    return int(options.strict and any(verdict.word == "not met" for verdict in verdicts))


def _measure(run: Run, sections: Sequence[str]) -> BenchError | None:
    """Run the sections, print each table when it is there; what stopped it, if something did."""
    try:
        with contextlib.ExitStack() as stack:
            if "otel-collector" in run.systems and not run.quick and "speed" in sections:
                run.collector = stack.enter_context(_collector())
            for name in sections:
                run.say(f"{name} ...")
                SECTIONS[name](run)
                print(render(run.tables[-1]), flush=True)
    except BenchError as error:
        return error
    return None


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of the scheduler and its log.")
    parser.add_argument("--quick", action="store_true", help="tiny graphs, one round: shows that it runs, no more")
    parser.add_argument("--rounds", type=int, default=None, help="processes per figure, three runs each (default: 3)")
    parser.add_argument("--workloads", type=_names(WORKLOADS), default=tuple(WORKLOADS), metavar="W1,W2,...")
    parser.add_argument("--systems", type=_names(SYSTEMS), default=SYSTEMS, metavar=",".join(SYSTEMS))
    parser.add_argument("--sections", type=_names(SECTIONS), default=tuple(SECTIONS), metavar=",".join(SECTIONS))
    parser.add_argument("--name", default=None, help="name of the result file (default: made of system and Python)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="folder of the result file")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a budget is not met")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    if options.rounds < 1:
        parser.error("--rounds is at least 1")
    if options.name is None:
        options.name = "quick" if options.quick else _default_name()
    if Path(options.name).name != options.name:
        parser.error(f"--name is a name without folders, not {options.name!r}; the folder is --results")
    return options


def _names(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    allowed = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        names = tuple(filter(None, text.split(",")))
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(allowed)}")
        return names

    return parse


def _default_name() -> str:
    version = "".join(platform.python_version_tuple()[:2])
    return f"{platform.system().lower()}-{platform.machine()}-py{version}"


@contextlib.contextmanager
def _collector() -> Iterator[str | None]:
    """The endpoint of a real collector with its back ends, started for this run; None where there is none."""
    from tests import backends

    try:
        backend = backends.find_backend()
    except backends.NoBackend as error:
        print(f"bench: otel-collector is left out: {error}", file=sys.stderr)
        yield None
        return
    try:
        backend.prepare()
        yield backend.up()["otlp_grpc"]
    except RuntimeError as error:
        raise BenchError(str(error)) from None
    finally:
        backend.down()


if __name__ == "__main__":
    sys.exit(main())
