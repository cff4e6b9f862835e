"""Tables for people, one JSON file for machines."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .budgets import Verdict
from .run import Run, Table

__all__ = ["budget_table", "machine", "render", "save"]

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("dask", "grpcio", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-grpc", "protobuf")


def render(table: Table) -> str:
    """The table as text, columns aligned."""
    lines = [tuple(table.header), *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.header))]

    def joined(line: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([table.title, "", joined(table.header), rule, *map(joined, table.rows), ""])


def budget_table(verdicts: Sequence[Verdict]) -> Table:
    """Each budget, what was measured and whether it is met."""
    table = Table("Budgets", ("budget", "limit", "measured", "verdict", "from"))
    for verdict in verdicts:
        budget = verdict.budget
        bounds = [f"≥ {budget.least:g}"] if budget.least is not None else []
        bounds += [f"≤ {budget.most:g}"] if budget.most is not None else []
        measured = "" if verdict.value is None else f"{verdict.value:.4g}"
        table.rows.append((budget.text, ", ".join(bounds), measured, verdict.word, budget.origin))
    return table


def machine() -> dict[str, Any]:
    """What the figures depend on. No names of hosts, users or folders."""
    switch = getattr(sys, "_is_gil_enabled", None)
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gil": True if switch is None else switch(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def save(run: Run, verdicts: Sequence[Verdict], path: Path) -> Path:
    """Write the run as JSON; an earlier file of that name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "quick": run.quick,
        "rounds": run.rounds,
        "load_average": [round(load, 1) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "machine": machine(),
        "figures": {key: round(value, 4) for key, value in sorted(run.figures.items())},
        "budgets": [
            {"figure": v.budget.figure, "text": v.budget.text, "least": v.budget.least, "most": v.budget.most}
            | {"origin": v.budget.origin, "measured": v.value, "verdict": v.word}
            for v in verdicts
        ],
        "samples": run.samples,
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
