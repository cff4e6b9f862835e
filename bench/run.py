"""One run of the benchmarks: what to measure, samples in processes of their own, and what came out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .systems import OURS, PEERS
from .workloads import WORKLOADS

__all__ = ["ROOT", "BenchError", "Run", "Table"]

ROOT = Path(__file__).resolve().parents[1]
_SAMPLE_TIMEOUT_S = 1200


class BenchError(Exception):
    """A sample did not run."""


@dataclass
class Table:
    """A table of a report: rows of text."""

    title: str
    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)


@dataclass
class Run:
    """One run of the benchmarks: what to measure, and what came out.

    `figures` are single numbers by name, `samples` all that was measured, `collector` the OTLP endpoint
    of a real collector, None without one.
    """

    workloads: Sequence[str] = tuple(WORKLOADS)
    systems: Sequence[str] = (*OURS, *PEERS)
    rounds: int = 3
    quick: bool = False
    collector: str | None = None
    figures: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def size(self, workload: str) -> int:
        """The size of a workload in this run."""
        return WORKLOADS[workload].quick if self.quick else WORKLOADS[workload].size

    def sample(self, kind: str, workload: str, system: str, size: int) -> dict[str, Any]:
        """One sample in a process of its own. Raises `BenchError` with the end of what it printed."""
        self.say(f"  {kind} {workload} {system} {size:,}")
        command = [sys.executable, "-m", "bench.sample", kind, workload, system, str(size)]
        options: dict[str, Any] = {"cwd": ROOT, "env": self._environment(system), "timeout": _SAMPLE_TIMEOUT_S}
        try:
            done = subprocess.run(command, capture_output=True, text=True, **options)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{' '.join(command[1:])} did not end within {_SAMPLE_TIMEOUT_S} s") from None
        if done.returncode:
            raise BenchError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def _environment(self, system: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        if system == "otel-collector" and self.collector:
            kept |= {"OTEL_EXPORTER_OTLP_ENDPOINT": self.collector, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
        else:
            kept["OTEL_METRICS_EXPORTER"] = "none"  # there is nobody to send them to
        return kept

    def round_robin(self, kind: str, workload: str, systems: Sequence[str], size: int, rounds: int) -> dict[str, Any]:
        """{system: {figure: [values]}}: the systems take turns, and begin with another one each round."""
        gathered: dict[str, dict[str, list[float]]] = {system: {} for system in systems}
        first = [turn % len(systems) for turn in range(rounds)]
        turns = [system for n in first for system in (*systems[n:], *systems[:n])]
        # Side by side where no figure counts.
        with ThreadPoolExecutor(os.cpu_count() if self.quick else 1) as pool:
            samples = pool.map(lambda system: self.sample(kind, workload, system, size), turns)
            for system, sample in zip(turns, samples, strict=True):
                for name, value in sample.items():
                    gathered[system].setdefault(name, []).extend(value if isinstance(value, list) else [value])
        self.samples[f"{kind}.{workload}.{size}"] = gathered
        return gathered
