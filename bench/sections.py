"""The measurements, one function a section: each adds rows to a table and figures that budgets look at.

Every sample is a fresh process. The systems of a section take turns, round by round, so that whatever
else the machine does meets them all; what is reported is the median, with the smallest and the largest.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from . import cancelling, placement, spill, streams, telemetry
from .run import Run, Table
from .spans import SENDERS
from .systems import OURS, PEERS
from .workloads import WORKLOADS

__all__ = ["SECTIONS"]

_SPANS = ("W1", "W4")
_ALL = ("W1", "W4")
_DISABLED = ("W1", "W4")
_LINEAR = {"W1": (20_000, 50_000, 200_000), "W4": (100, 250, 1_000)}
_LINEAR_QUICK = {"W1": (200, 500, 2_000), "W4": (3, 5, 20)}
_SECTION_ROUNDS = 3
_DISABLED_ROUNDS = 5


def _us(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} … {max(values):.2f})"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}x"


def speed(run: Run) -> None:
    """µs a task of every system on every workload."""
    table = Table(
        "Speed: µs a task, median (min … max); how many times faster than the peers",
        ("workload", "tasks", "system", "µs a task", "with the log settled", "its CPU", "vs pool", "vs Dask"),
    )
    systems = [name for name in run.systems if name != "otel-collector" or run.collector]
    for name in run.workloads:
        size = run.size(name)
        gathered = run.round_robin("time", name, systems, size, run.rounds)
        median = {system: statistics.median(values["us"]) for system, values in gathered.items()}
        for system in systems:
            ratios = {peer: median[peer] / median[system] if peer in median else None for peer in PEERS}
            run.figures[f"{name}.{system}.us"] = median[system]
            run.figures.update({f"{name}.{system}.vs_{p}": r for p, r in ratios.items() if r is not None})
            us, whole = gathered[system]["us"], gathered[system]["whole_us"]
            cpu = statistics.median(gathered[system]["whole_cpu_us"])
            run.figures[f"{name}.{system}.cpu_us"] = cpu
            tasks = f"{WORKLOADS[name].tasks(size):,}"
            settled = _us(whole) if system in OURS and system != "noop" else ""
            table.rows.append(
                (name, tasks, system, _us(us), settled, f"{cpu:.1f}", _times(ratios["tpe"]), _times(ratios["dask"]))
            )
    run.tables.append(table)


def split(run: Run) -> None:
    """The hot path of MultiEventLog and OTelLog alone, and with the draining of what it left."""
    table = Table(
        "Hot path: µs a task while nothing is drained, and with draining; each to NoOpLog",
        (
            *("workload", "system", "hot path", "draining", "their CPU", "hot to NoOpLog", "whole to NoOpLog"),
            "CPU µs an event: hot + drain (collector)",
        ),
    )
    for name in run.workloads:
        systems = ("noop", "log", *(("log-all", "otel-discard") if name in _ALL else ()))
        gathered = run.round_robin("split", name, systems, run.size(name), min(run.rounds, _SECTION_ROUNDS))
        base = statistics.median(gathered["noop"]["hot_us"])
        for system, values in gathered.items():
            hot, drain = statistics.median(values["hot_us"]), statistics.median(values["drain_us"])
            hot_ratio, whole_ratio = hot / base, (hot + drain) / base
            prefix = f"split.{name}" if system == "log" else f"split.{name}.{system}"
            run.figures |= {f"{prefix}.hot_vs_noop": hot_ratio, f"{prefix}.whole_vs_noop": whole_ratio}
            base_cpu = statistics.median(gathered["noop"]["hot_cpu_us"])
            hot_cpu, drain_cpu = statistics.median(values["hot_cpu_us"]), statistics.median(values["drain_cpu_us"])
            run.figures |= {
                f"{prefix}.hot_cpu_vs_noop": hot_cpu / base_cpu,
                f"{prefix}.whole_cpu_vs_noop": (hot_cpu + drain_cpu) / base_cpu,
            }
            per_event = ""
            if events := values["events"][0]:
                collector = statistics.median(values["drain_collector_us"]) / events
                hot_event, drain_event = (hot_cpu - base_cpu) / events, drain_cpu / events
                run.figures |= {
                    f"{prefix}.events": events,
                    f"{prefix}.hot_us_per_event": hot_event,
                    f"{prefix}.drain_us_per_event": drain_event,
                    f"{prefix}.collector_us_per_event": collector,
                    f"{prefix}.us_per_event": hot_event + drain_event,
                    f"{prefix}.own_us_per_event": hot_event + drain_event - collector,
                }
                per_event = f"{hot_event:.2f} + {drain_event:.2f} ({collector:.2f}), {events:.0f} events"
            table.rows.append(
                (
                    name,
                    system,
                    _us(values["hot_us"]),
                    _us(values["drain_us"]),
                    f"{hot_cpu:.1f} + {drain_cpu:.1f}",
                    _times(hot_ratio),
                    _times(whole_ratio),
                    per_event,
                )
            )
    run.tables.append(table)


def disabled(run: Run) -> None:
    """What a disabled log costs: NoOpLog beside the same scheduler with its event sites removed."""
    table = Table(
        "Disabled log: CPU µs a task, beside the same scheduler with its event sites removed",
        ("workload", "as it is", "sites removed", "difference of the medians", "of the smallest"),
    )
    for name in (name for name in _DISABLED if name in run.workloads):
        rounds = 1 if run.quick else max(run.rounds, _DISABLED_ROUNDS)
        gathered = run.round_robin("time", name, ("noop", "noop-stripped"), run.size(name), rounds)
        with_sites, without = (gathered[system]["whole_cpu_us"] for system in ("noop", "noop-stripped"))
        median = statistics.median(with_sites) - statistics.median(without)
        smallest = min(with_sites) - min(without)
        run.figures |= {f"disabled.{name}.us": median, f"disabled.{name}.smallest_us": smallest}
        table.rows.append((name, _us(with_sites), _us(without), f"{median:.2f}", f"{smallest:.2f}"))
    run.tables.append(table)


def window(run: Run) -> None:
    """Memory of a log under LogWindow(20 s)."""
    size = 20_000 if run.quick else 1_000_000
    table = Table(
        f"LogWindow(20 s): memory while {size:,} events of 100 s come in",
        ("after a quarter", "at the end", "growth", "events kept"),
    )
    values = run.round_robin("window", "W1", ("log",), size, 1)["log"]
    quarter, end = values["quarter_bytes"][0], values["end_bytes"][0]
    run.figures |= {"window.growth": values["growth"][0], "window.bytes": end}
    kept = f"{values['kept_events'][0]:,.0f}"
    table.rows.append((f"{quarter / 1e6:.1f} MB", f"{end / 1e6:.1f} MB", _times(values["growth"][0]), kept))
    run.tables.append(table)


def memory(run: Run) -> None:
    """Bytes that a waiting task holds."""
    size = 500 if run.quick else 10_000
    table = Table(f"Memory: bytes held by each of {size:,} tasks that wait for one", ("system", "bytes a task"))
    gathered = run.round_robin("memory", "W1", ("noop", "log", "otel-discard", "tpe"), size, 1)
    for system, values in gathered.items():
        run.figures[f"memory.{system}.bytes"] = values["bytes"][0]
        table.rows.append((system, f"{values['bytes'][0]:,.0f}"))
    run.tables.append(table)


def linear(run: Run) -> None:
    """µs a task as the number of tasks grows tenfold, without a log."""
    table = Table("Linearity: µs a task of NoOpLog as the graph grows", ("workload", "tasks", "µs a task", "growth"))
    for name, sizes in (_LINEAR_QUICK if run.quick else _LINEAR).items():
        if name not in run.workloads:
            continue
        first = 0.0
        for size in sizes:
            values = run.round_robin("time", name, ("noop",), size, 1)["noop"]["us"]
            median = statistics.median(values)
            first = first or median
            run.figures[f"linear.{name}.growth"] = median / first
            table.rows.append((name, f"{WORKLOADS[name].tasks(size):,}", _us(values), _times(median / first)))
    run.tables.append(table)


def spans(run: Run) -> None:
    """CPU a delivered span against the SDK's own path, and the share that arrives."""
    table = Table(
        "Delivery: CPU of the whole process for each span that arrives, at a counting receiver",
        ("workload", "sender", "spans made", "arrived", "CPU µs a span"),
    )
    for name in (name for name in _SPANS if name in run.workloads):
        # The SDK needs a tenth of a millisecond a span: one workload shows it.
        senders = SENDERS if name == "W1" or "W1" not in run.workloads else SENDERS[:2]
        size = run.size(name) if run.quick or name != "W1" else run.size(name) // 2
        gathered = run.round_robin("spans", name, senders, size, 1 if run.quick else 2)
        cost = {sender: statistics.median(values["cpu_us_per_span"]) for sender, values in gathered.items()}
        for sender, values in gathered.items():
            made, arrived = sum(values["made"]), sum(values["arrived"])
            run.figures[f"cpu.{name}.{sender}.us"] = cost[sender]
            run.figures[f"arrival.{name}.{sender}.share"] = arrived / made
            share = f"{arrived / made:.1%}"
            table.rows.append((name, sender, f"{made / len(values['made']):,.0f}", share, f"{cost[sender]:.1f}"))
        run.figures[f"arrival.{name}.share"] = run.figures[f"arrival.{name}.otel.share"]
        if "sdk" in cost:
            run.figures["cpu.ratio"] = cost["otel"] / cost["sdk"]
            run.figures["cpu.ratio_with_metrics"] = cost["otel-metrics"] / cost["sdk"]
    run.tables.append(table)


SECTIONS = {
    "speed": speed,
    "split": split,
    "disabled": disabled,
    "memory": memory,
    "window": window,
    "linear": linear,
    "spans": spans,
    "telemetry": telemetry.section,
    "streams": streams.section,
    "placement": placement.section,
    "placing": placement.placing,
    "cancel": cancelling.section,
    "spill": spill.section,
}
"""All sections, by name, in the order in which they run."""
