"""spec/scheduler.md, status: its text, the readable state, the debug categories."""

from __future__ import annotations

import io
import logging
import re
import threading
from typing import Any

import pytest

from otel_timespan import dagger as D
from tests.dagger.acceptance.support import DEADLINE_S, add, boom, identity, poll, run_program

CATEGORIES = set(
    "all,global,submit,schedule,scope,take,execute,move,processor,finish,cancel,stream,validate".split(",")  # noqa: SIM905
)


def lines_of(text: str, task: D.DTask) -> list[str]:
    """The lines of a status that name the task."""
    return [line for line in text.splitlines() if re.search(rf"\b{task.id}\b", line)]


# --- status ----------------------------------------------------------------------------------------------


def test_s18_status_without_a_scheduler() -> None:
    """§18: with no scheduler running status says so, and starts none."""
    text = D.status()
    assert isinstance(text, str) and text.strip()
    assert D.eager_state() is None


def test_s18_status_of_an_idle_scheduler() -> None:
    """§18: the running count of an idle scheduler is 0."""
    D.fetch(D.spawn(int))
    poll(lambda: D.eager_state().running_count == 0)
    assert "0" in D.status()


def test_s18_status_writes_to_a_stream() -> None:
    """§18: with `io` the text is written there; without, nothing is printed."""
    D.fetch(D.spawn(int))
    stream = io.StringIO()
    D.status(stream)
    assert stream.getvalue().strip() == D.status().strip()
    named = io.StringIO()
    D.status(io=named)
    assert named.getvalue().strip()


def test_s18_status_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """Ruling 10: a status that is returned is not printed too."""
    D.status()
    assert capfd.readouterr() == ("", "")


def test_s18_status_of_a_tree(one: D.Context, gate: threading.Event) -> None:
    """§18: the running count and the task tree, with the flags of running and waiting tasks."""
    begun = threading.Event()

    def body() -> None:
        begun.set()
        gate.wait(DEADLINE_S)

    running = D.spawn(body)
    assert begun.wait(DEADLINE_S)
    mid = D.spawn(identity, running)
    down = D.spawn(add, mid, 1)
    text = D.status()
    assert "1" in text
    for task in (running, mid, down):
        assert lines_of(text, task), text
    assert any("R" in line for line in lines_of(text, running)), text
    assert any("W" in line or "w" in line for line in lines_of(text, mid)), text
    gate.set()
    assert D.fetch(D.spawn(int)) == 0


def test_s18_status_is_bounded(one: D.Context, gate: threading.Event) -> None:
    """§18: depth 5 and width 3: the text of a huge graph stays short and quick."""
    first = D.spawn(gate.wait, DEADLINE_S)
    tasks: list[D.DTask] = [first]
    for n in range(3000):
        tasks.append(D.spawn(add, tasks[max(0, n - 3)], tasks[-1]))
    wide = [D.spawn(identity, first) for _ in range(2000)]
    text = D.status()
    assert len(text.splitlines()) < 2000
    D.cancel()
    D.waitall([*tasks, *wide])
    gate.set()


def test_s18_status_survives_bad_reprs(one: D.Context, gate: threading.Event) -> None:
    """§18: arguments and functions whose repr raises don't break the debug aid."""

    class Bad:
        def __repr__(self) -> str:
            raise ValueError("no repr")

        def __call__(self, *args: Any) -> None:
            gate.wait(DEADLINE_S)

    task = D.spawn(Bad(), Bad())
    assert D.status()
    gate.set()
    D.wait(task)


def test_s18_status_from_within_a_body_and_from_threads(two: D.Context) -> None:
    """§18: status can be asked at any time by anybody."""
    assert isinstance(D.fetch(D.spawn(D.status)), str)
    stop, errors = threading.Event(), []

    def ask() -> None:
        try:
            while not stop.is_set():
                D.status()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    for n in range(300):
        up = D.spawn(identity, n)
        bad = D.spawn(boom)
        D.waitall([D.spawn(add, up, 1), D.spawn(identity, bad)])
    stop.set()
    thread.join(DEADLINE_S)
    assert errors == []


# --- state -----------------------------------------------------------------------------------------------


def test_s18_eager_state_comes_and_goes() -> None:
    """§18 accept: None before the first spawn, not afterwards, None after `halt_sch`; the next spawn works."""
    assert D.eager_state() is None
    D.fetch(D.spawn(int))
    assert D.eager_state() is not None
    D.cancel(halt_sch=True)
    assert D.eager_state() is None
    assert D.fetch(D.spawn(add, 1, 2)) == 3


def test_s18_fields_of_the_state(two: D.Context) -> None:
    """§18: uid, running count and the tables are there to be read."""
    D.fetch(D.spawn(add, 1, 2))
    state = D.eager_state()
    assert type(state.uid) is int and state.uid >= 1
    assert type(state.running_count) is int
    for name in (
        "signature_time_cost",
        "signature_alloc_cost",
        "worker_transfer_rate",
        "worker_time_pressure",
        "worker_storage_pressure",
        "worker_storage_capacity",
        "worker_loadavg",
    ):
        table = getattr(state, name)
        assert isinstance(dict(table), dict), name


def test_s18_the_running_count(one: D.Context, gate: threading.Event) -> None:
    """§17.2: tasks count from when they are ready until they have finished; waiting ones don't."""
    first = D.spawn(gate.wait, DEADLINE_S)
    queued = [D.spawn(int) for _ in range(3)]
    down = D.spawn(identity, first)
    assert D.eager_state().running_count == 4
    gate.set()
    D.waitall([first, *queued, down])
    D.eager_context().wait_idle()
    assert D.eager_state().running_count == 0


def test_s18_pressure_can_be_read(one: D.Context, gate: threading.Event) -> None:
    """§18: `worker_time_pressure` shows what is queued, and nothing once it is done."""

    def total(table: Any) -> float:
        return sum(total(v) if hasattr(v, "values") else float(getattr(v, "value", v)) for v in table.values())

    pinned = D.Options(scope=D.ExactScope(D.ThreadProc(1, 1)))
    tasks = [D.spawn(gate.wait, pinned, DEADLINE_S) for _ in range(3)]
    assert total(D.eager_state().worker_time_pressure) >= 10**9
    gate.set()
    D.waitall(tasks)
    D.eager_context().wait_idle()
    poll(lambda: total(D.eager_state().worker_time_pressure) == 0)


# --- debug categories ------------------------------------------------------------------------------------

PROGRAM = """
import logging
seen = set()
class Keep(logging.Handler):
    def emit(self, record):
        assert record.getMessage()
        assert record.levelno == logging.DEBUG
        seen.add(record.name)
root = logging.getLogger("otel_timespan.debug")
root.setLevel(logging.DEBUG); root.addHandler(Keep()); root.propagate = False
def boom(): raise ValueError
pinned = D.Options(scope=D.ProcessScope(1))
a = D.spawn(int, pinned, 5)
print(D.fetch(D.spawn(pow, a, D.tochunk(2))))
D.wait(D.spawn(boom))
gate = threading.Event()
late = D.spawn(gate.wait, 30)
D.cancel(late); gate.set()
D.collect(D.delayed(int)())
D.eager_context().shutdown()
print(" ".join(sorted(n.removeprefix("otel_timespan.debug.") for n in seen)) or "nothing")
"""


def debugged(monkeypatch: pytest.MonkeyPatch, categories: str | None) -> set[str]:
    """The categories that a small program logs with that environment."""
    if categories is None:
        monkeypatch.delenv("OTEL_TIMESPAN_DEBUG", raising=False)
    else:
        monkeypatch.setenv("OTEL_TIMESPAN_DEBUG", categories)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    first, second = run_program(PROGRAM).splitlines()
    assert first == "25"
    return set() if second == "nothing" else set(second.split())


def test_s18_debug_is_off_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """§18: no category is on unless the environment says so."""
    assert debugged(monkeypatch, None) == set() == debugged(monkeypatch, "")


@pytest.mark.parametrize("categories", ["submit", "schedule", "execute", "move", "finish", "cancel", "submit,finish"])
def test_s18_debug_categories(monkeypatch: pytest.MonkeyPatch, categories: str) -> None:
    """§18: exactly the categories of the list are traced."""
    assert debugged(monkeypatch, categories) == set(categories.split(","))


def test_s18_debug_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """§18: `all` is every category."""
    seen = debugged(monkeypatch, "all")
    assert {"submit", "schedule", "execute", "move", "finish", "cancel"} <= seen <= CATEGORIES


def test_s18_debug_forgives_spaces_and_tells_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """§18: spaces are ignored; a name that nobody knows does no harm to the others."""
    assert debugged(monkeypatch, " submit , finish ") == {"submit", "finish"}


def test_s18_debug_is_not_formatted_when_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """§18: messages are not formatted when off: nobody asks an argument for its repr."""
    monkeypatch.delenv("OTEL_TIMESPAN_DEBUG", raising=False)
    out = run_program(
        """
        class Loud:
            def __repr__(self): print("asked"); return "loud"
            def __call__(self, *a): return 1
        print(D.fetch(D.spawn(Loud(), Loud())))
        """
    )
    assert out.strip() == "1"


# --- edges ---------------------------------------------------------------------------------------------------


def test_status_shows_the_graph_with_flags() -> None:
    """The running count, then the tree, five levels deep and three tasks wide; flags R, w, W."""
    seen: list[str] = []
    assert "no scheduler" in D.status()
    with D.Context(driver=D.InlineDriver()):
        top = D.spawn(lambda: seen.append(D.status()))
        below = top
        for _ in range(7):
            below = D.spawn(lambda _: None, below)
        others = [D.spawn(int) for _ in range(5)]
        out = io.StringIO()
        text = D.status(out)
        assert out.getvalue() == text
        lines = text.splitlines()
        assert "6 running or ready, 13 unfinished" in lines[0]
        assert lines[1].split() == ["w", f"{top.id}:", "<lambda>"]
        assert any(line.strip().startswith("W") for line in lines) and "... 1 dependent(s)" in text
        assert "... 3 more" in text
        D.waitall([below, *others])
    assert seen[0].splitlines()[1].split()[:2] == ["R", f"{top.id}:"]


def test_readable_state() -> None:
    """The documented fields are there before and after tasks ran, as copies."""
    assert D.eager_state() is None
    D.fetch(D.spawn(add, 1, 2))
    state = D.eager_state()
    assert state.uid > 0 and state.running_count == 0
    assert state.signature_time_cost[D.sch.signature(add, [(1, 1), (2, 2)]), D.ThreadProc] > 0
    assert state.signature_alloc_cost[D.sch.signature(add, [(1, 1), (2, 2)]), D.ThreadProc] == 8
    assert state.worker_transfer_rate == {} and set(state.worker_time_pressure) == {1}
    assert len(state.worker_loadavg[1]) == 3
    state.signature_time_cost.clear()
    assert state.signature_time_cost


def test_debug_categories(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The categories named by the environment are logged, the others not; unknown names are refused."""
    caplog.set_level(logging.DEBUG, logger="otel_timespan.debug")
    monkeypatch.setenv("OTEL_TIMESPAN_DEBUG", "submit, Finish,execute")
    task = D.spawn(add, 1, 2)
    D.fetch(task)
    poll(lambda: f"task {task.id} finished" in caplog.text)
    assert {record.name.rsplit(".", 1)[1] for record in caplog.records} == {"submit", "finish", "execute"}
    D.eager_context().shutdown()
    monkeypatch.setenv("OTEL_TIMESPAN_DEBUG", "everything")
    with pytest.raises(D.InvalidOptionError, match="everything"):
        D.spawn(int)
    monkeypatch.setenv("OTEL_TIMESPAN_DEBUG", "all")
    failed = D.spawn(lambda: 1 / 0)
    D.wait(failed)
    gate = threading.Event()
    D.cancel(D.spawn(gate.wait, DEADLINE_S))
    gate.set()
    D.eager_context().shutdown()
    told = {record.name.rsplit(".", 1)[1] for record in caplog.records}
    assert {"global", "schedule", "cancel"} <= told and f"task {failed.id} submitted" in caplog.text


def test_nothing_is_wrapped_when_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without categories a scheduler's methods are its class's own."""
    monkeypatch.delenv("OTEL_TIMESPAN_DEBUG", raising=False)
    D.fetch(D.spawn(int))
    assert not {"submit", "finish", "fail"} & set(vars(D.eager_state()))
