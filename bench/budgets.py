"""The budgets: what the figures must keep. `origin` says who asked for it: docs/bench.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["BUDGETS", "Budget", "Verdict", "judge"]


@dataclass(frozen=True)
class Budget:
    """A limit on one figure. `least` is a lower bound (a ratio that must be reached), `most` an upper one."""

    figure: str
    text: str
    origin: str
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        """Whether the value keeps the budget; the bound itself does."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True)
class Verdict:
    """A budget and what was measured: `value` is None where that figure was not measured in this run."""

    budget: Budget
    value: float | None

    @property
    def word(self) -> str:
        """met, not met, or not measured."""
        if self.value is None:
            return "not measured"
        return "met" if self.budget.met(self.value) else "not met"


def _speed() -> Iterable[Budget]:
    for workload in ("W1", "W2", "W3", "W4"):
        yield Budget(f"{workload}.noop.vs_tpe", f"{workload}: times faster than the thread pool", "issue", least=3.0)
        yield Budget(f"{workload}.noop.vs_dask", f"{workload}: times faster than Dask threaded", "issue", least=15.0)


def _log() -> Iterable[Budget]:
    for workload in ("W1", "W2", "W2r", "W3", "W4"):
        figure = f"split.{workload}.hot_vs_noop"
        yield Budget(figure, f"{workload}: hot path with MultiEventLog to NoOpLog", "design", most=3.0)
    for workload in ("W1", "W4"):
        yield Budget(f"split.{workload}.whole_vs_noop", f"{workload}: the same with draining", "design", most=6.0)
    for workload in ("W1", "W4"):
        for prefix, who, most in (("", "the default streams", 1.0), ("log-all.", "all consumers", 3.0)):
            figure, text = f"split.{workload}.{prefix}", f"{workload}: CPU µs an event of {who}"
            yield Budget(f"{figure}us_per_event", text, "issue", most=most)
            yield Budget(f"{figure}own_us_per_event", f"{text}, collector apart", "ours", most=most)
        figure, text = f"streams.{workload}", f"{workload}: MultiEventLog with draining and fetch_logs"
        yield Budget(f"{figure}.to_noop", f"{text}, CPU to NoOpLog", "issue", most=3.0)
        yield Budget(f"{figure}.bytes_per_event", f"{text}, bytes kept an event", "issue", most=20.0)
        text = f"{workload}: µs a task of a disabled log"
        yield Budget(f"disabled.{workload}.us", text, "issue", most=0.2)


BUDGETS = (
    *_speed(),
    Budget("memory.noop.bytes", "bytes held by a waiting task", "issue", most=1024),
    Budget("arrival.W1.share", "W1: share of the spans that arrives", "issue", least=1.0, most=1.0),
    Budget("arrival.W4.share", "W4: share of the spans that arrives", "issue", least=1.0, most=1.0),
    Budget("cpu.ratio", "CPU per delivered span, OTelLog to SDK", "issue", most=0.5),
    Budget("cancel.waiting.beyond_ms", "cancel of a queued task: ms until its fetch raises", "issue", most=1.0),
    Budget("cancel.busy.beyond_ms", "the same beyond the switch interval, the interpreter busy", "issue", most=1.0),
    Budget("cancel.waiting.left_bytes", "bytes that a cancelled task leaves behind", "issue", most=1.0),
    Budget("cancel.waiting.left_tasks", "cancelled tasks that the scheduler still knows", "issue", most=0.0),
    *_log(),
    Budget("window.growth", "LogWindow(20 s), 1,000,000 events: memory at the end to a quarter", "issue", most=1.1),
    Budget("linear.W1.growth", "W1: µs a task at 200,000 tasks to 20,000", "ours", most=1.5),
    Budget("linear.W4.growth", "W4: µs a task at 200,000 tasks to 20,000", "ours", most=1.5),
    *(
        Budget(
            f"placement.{shape}.to_best",
            f"placement, {shape}: makespan to the best of three policies",
            "issue",
            most=1.15,
        )
        for shape in ("speeds", "skewed", "chains", "source", "reduction")
    ),
    *(
        Budget(f"placing.{given}.9.us", f"placing a task given {given}, 9 workers: CPU µs", "design", most=6.0)
        for given in ("a value", "a result", "a keyword")
    ),
    Budget("placing.a value.to_one", "placing, 9 workers to one, where nothing is chosen", "issue", most=2.0),
    Budget("spill.to_limit", "spilling 4 times the limit: growth of resident memory to the limit", "issue", most=1.3),
)


def judge(figures: Mapping[str, float]) -> list[Verdict]:
    """Each budget against the figures of a run."""
    return [Verdict(budget, figures.get(budget.figure)) for budget in BUDGETS]
