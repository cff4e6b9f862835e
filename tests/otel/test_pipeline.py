"""The queue between log and collector: nothing is lost within the bound, and all of it is accounted for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from otel_timespan.errors import InvalidOptionError
from otel_timespan.otel.export.accounts import PipelineStats
from otel_timespan.otel.export.pipeline import SpanPipeline
from otel_timespan.otel.export.readable import readable_from_request
from otel_timespan.otel.export.sizes import ENTRY_BYTES
from otel_timespan.otel.export.transport import ACCEPTED, REJECTED, RETRY, TOO_LARGE, Outcome
from otel_timespan.otel.export.wire import encode_span
from otel_timespan.otel.spans.limits import limits_of
from otel_timespan.otel.spans.spandata import SpanData

RESOURCE, SCOPE = Resource({"service.name": "test"}), InstrumentationScope("otel_timespan")
DEADLINE_S = 20.0


class Collector:
    """A transport in memory. `answer(ids)` decides; `gate` holds tries up while it is closed."""

    wire = True
    target, timeout_s, host, advice = "collector", 10.0, "", "is it there?"

    def __init__(self, answer: Callable[[list[int]], Outcome] = lambda ids: Outcome(ACCEPTED)) -> None:
        self.answer, self.gate, self.tries = answer, threading.Event(), 0
        self.entered = threading.Event()
        self.received: list[int] = []
        self.suppressed: list[Any] = []
        self.cancelled = self.forked = False
        self.gate.set()

    def send(self, body: bytes, count: int, timeout_s: float) -> Outcome:
        """One try of a request."""
        return self._take([span.context.span_id for span in readable_from_request(body)])

    def send_spans(self, items: Sequence[Any], timeout_s: float) -> Outcome:
        """One try of objects."""
        return self._take([item.span_id if isinstance(item, SpanData) else item.context.span_id for item in items])

    def _take(self, ids: list[int]) -> Outcome:
        self.tries += 1
        self.suppressed.append(otel_context.get_value(otel_context._SUPPRESS_INSTRUMENTATION_KEY))
        self.entered.set()
        self.gate.wait(DEADLINE_S)
        outcome = self.answer(ids)
        if outcome.status == ACCEPTED:
            self.received += ids
        return outcome

    def flush(self, timeout_s: float) -> bool:
        """Nothing behind it."""
        return True

    def cancel(self) -> None:
        """Remembered."""
        self.cancelled = True
        self.gate.set()

    def after_fork(self) -> None:
        """Remembered."""
        self.forked = True


def _spans(first: int, last: int, **attributes: Any) -> list[SpanData]:
    return [SpanData("name", 1, number, 7, 1, 2, attributes) for number in range(first, last + 1)]


def _size(**attributes: Any) -> int:
    return _encoded_size(**attributes) + ENTRY_BYTES


def _encoded_size(**attributes: Any) -> int:
    return len(encode_span(_spans(1, 1, **attributes)[0]))


def _wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def pipelines() -> Iterator[Callable[..., SpanPipeline]]:
    """Makes pipelines, and closes them after the test."""
    made: list[SpanPipeline] = []

    def make(transport: Any, **options: Any) -> SpanPipeline:
        made.append(SpanPipeline(transport, **{"resource": RESOURCE, "scope": SCOPE, "linger_s": 0.0, **options}))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.close(0)


Make = Callable[..., SpanPipeline]


def _balanced(stats: PipelineStats) -> bool:
    return stats.recorded == stats.exported + stats.pending + sum(stats.dropped.values())


def test_all_spans_arrive_once_and_in_order(pipelines: Make) -> None:
    """What is put is sent, in order, in batches, with instrumentation suppressed."""
    collector = Collector()
    pipeline = pipelines(collector, max_batch_spans=7)
    pipeline.put(_spans(1, 50))
    pipeline.put(_spans(51, 100))
    assert pipeline.flush(DEADLINE_S)
    assert collector.received == list(range(1, 101))
    assert collector.tries >= 15
    assert all(collector.suppressed)
    assert pipeline.stats() == PipelineStats(100, 100, 0, {})


def test_batches_are_bounded_in_bytes(pipelines: Make) -> None:
    """A request holds no more bytes of spans than `max_batch_bytes`, and a span larger than that goes alone."""
    sizes: list[int] = []
    collector = Collector(lambda ids: sizes.append(len(ids)) or Outcome(ACCEPTED))  # type: ignore[func-returns-value]
    collector.gate.clear()
    pipeline = pipelines(collector, max_batch_bytes=3 * _size(), max_bytes=40 * _size())
    pipeline.put(_spans(1, 9))
    pipeline.put(_spans(10, 10, text="x" * 4 * _size()))
    collector.gate.set()
    assert pipeline.flush(DEADLINE_S)
    assert max(sizes) == 3
    assert sizes[-1] == 1


def test_users_spans_travel_along(pipelines: Make) -> None:
    """Spans of the SDK keep their scope and arrive by the same queue."""
    bodies: list[bytes] = []
    collector = Collector()
    send = collector.send
    collector.send = lambda body, *rest: bodies.append(body) or send(body, *rest)  # type: ignore
    pipeline = pipelines(collector)
    span = TracerProvider(resource=RESOURCE, shutdown_on_exit=False).get_tracer("mine").start_span("own")
    span.end()
    pipeline.put_readable(span._readable_span())  # type: ignore[attr-defined]
    assert pipeline.flush(DEADLINE_S)
    [back] = readable_from_request(b"".join(bodies))
    assert (back.name, back.instrumentation_scope.name) == ("own", "mine")  # type: ignore[union-attr]


def test_a_users_span_of_odd_content_arrives(pipelines: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Texts that are no UTF-8 and numbers beyond 64 bits, anywhere in a user's span, cost no span and no log line."""
    collector = Collector()
    collector.gate.clear()
    pipeline = pipelines(collector)
    tracer = TracerProvider(resource=RESOURCE, shutdown_on_exit=False).get_tracer("mine")
    for name in ("good", "\ud800", "fine"):
        span = tracer.start_span(name, attributes={"text": name, "number": 2**70})
        span.add_event(name, {"text": name})
        span.end()
        pipeline.put_readable(span._readable_span())  # type: ignore[attr-defined]
    collector.gate.set()
    assert pipeline.flush(DEADLINE_S)
    assert pipeline.stats() == PipelineStats(3, 3, 0, {})
    assert not caplog.records


def test_span_limits_hold(pipelines: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT cuts attributes, and says how many went."""
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "2")
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "3")
    bodies: list[bytes] = []
    collector = Collector()
    collector.send = lambda body, *_: bodies.append(body) or Outcome(ACCEPTED)  # type: ignore
    pipeline = pipelines(collector, limits=limits_of())
    pipeline.put(_spans(1, 1, a="long text", b=["long text"], c=3))
    assert pipeline.flush(DEADLINE_S)
    [back] = readable_from_request(bodies[0])
    assert dict(back.attributes or {}) == {"a": "lon", "b": ("lon",)}
    assert back.dropped_attributes == 1


def test_an_outage_loses_nothing_and_is_told_once(pipelines: Make, caplog: pytest.LogCaptureFixture) -> None:
    """While the collector is away spans wait; one warning, one info; then all arrive."""
    caplog.set_level(logging.INFO, "otel_timespan")
    away = True
    collector = Collector(lambda ids: Outcome(RETRY, message="away") if away else Outcome(ACCEPTED))
    pipeline = pipelines(collector)
    pipeline.put(_spans(1, 10))
    _wait(lambda: collector.tries >= 3)
    pipeline.put(_spans(11, 20))
    assert pipeline.stats() == PipelineStats(20, 0, 20, {})
    away = False
    assert pipeline.flush(DEADLINE_S)
    assert sorted(collector.received) == list(range(1, 21))
    # The info comes just after the accounts are made.
    _wait(lambda: [record.levelname for record in caplog.records] == ["WARNING", "INFO"])


def test_flush_ends_when_the_collector_stays_away(pipelines: Make) -> None:
    """`flush` is False after its timeout; the spans stay."""
    pipeline = pipelines(Collector(lambda ids: Outcome(RETRY)))
    pipeline.put(_spans(1, 3))
    assert not pipeline.flush(0.05)
    assert pipeline.stats().pending == 3


def test_a_retry_after_is_kept(pipelines: Make) -> None:
    """No second try before the time that the server asked for, except when somebody flushes."""
    answers = [Outcome(RETRY, retry_after_s=1000.0)]
    collector = Collector(lambda ids: answers.pop() if answers else Outcome(ACCEPTED))
    pipeline = pipelines(collector)
    pipeline.put(_spans(1, 1))
    _wait(lambda: collector.tries == 1 and pipeline._outage)
    pipeline.put(_spans(2, 2))
    assert collector.tries == 1
    assert pipeline.flush(DEADLINE_S)
    assert collector.received == [1, 2]


def test_refused_spans_are_counted(pipelines: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal of a whole request, or of spans in it, is final: counted as rejected, with one warning."""
    outcomes = [Outcome(REJECTED, message="no", whole=True), Outcome(ACCEPTED, rejected=2, message="some")]
    pipeline = pipelines(Collector(lambda ids: outcomes.pop(0)))
    pipeline.put(_spans(1, 5))
    assert pipeline.flush(DEADLINE_S)
    pipeline.put(_spans(6, 10))
    assert pipeline.flush(DEADLINE_S)
    assert pipeline.stats() == PipelineStats(10, 3, 0, {"rejected": 7})
    _wait(lambda: len(caplog.records) == 1)


def test_too_large_requests_are_halved(pipelines: Make) -> None:
    """A receiver that takes two spans at most gets all of them, in order; a single one too large is refused."""

    def answer(ids: list[int]) -> Outcome:
        return Outcome(TOO_LARGE) if len(ids) > 2 or 7 in ids else Outcome(ACCEPTED)

    collector = Collector(answer)
    pipeline = pipelines(collector)
    pipeline.put(_spans(1, 10))
    assert pipeline.flush(DEADLINE_S)
    assert collector.received == [1, 2, 3, 4, 5, 6, 8, 9, 10]
    assert pipeline.stats() == PipelineStats(10, 9, 0, {"rejected": 1})


def test_drop_loses_what_does_not_fit(pipelines: Make, caplog: pytest.LogCaptureFixture) -> None:
    """With on_full="drop" the newest are dropped at once and counted, with one warning."""
    collector = Collector()
    collector.gate.clear()
    pipeline = pipelines(collector, on_full="drop", max_bytes=5 * _size())
    pipeline.put(_spans(1, 8))
    pipeline.put(_spans(9, 9))
    assert pipeline.stats() == PipelineStats(9, 0, 5, {"queue_full": 4})
    collector.gate.set()
    assert pipeline.flush(DEADLINE_S)
    assert collector.received == [1, 2, 3, 4, 5]
    assert len(caplog.records) == 1


def test_block_waits_for_room(pipelines: Make) -> None:
    """With on_full="block" a `put` waits until the collector has made room, and nothing is lost."""
    collector = Collector()
    collector.gate.clear()
    pipeline = pipelines(collector, max_bytes=5 * _size(), block_timeout_s=DEADLINE_S)
    putter = threading.Thread(target=pipeline.put, args=(_spans(1, 30),))
    putter.start()
    _wait(lambda: pipeline.stats().pending == 5)
    assert putter.is_alive()
    collector.gate.set()
    putter.join(DEADLINE_S)
    assert pipeline.flush(DEADLINE_S)
    assert collector.received == list(range(1, 31))


def test_block_gives_up_once_per_outage(pipelines: Make) -> None:
    """The time that may be blocked is spent once; after that spans are dropped until the collector caught up."""
    collector = Collector()
    collector.gate.clear()
    pipeline = pipelines(collector, max_bytes=2 * _size(), block_timeout_s=0.05)
    pipeline.put(_spans(1, 3))
    assert pipeline._block_left_s <= 0
    pipeline.put(_spans(4, 5))
    assert pipeline.stats() == PipelineStats(5, 0, 2, {"queue_full": 3})
    collector.gate.set()
    assert pipeline.flush(DEADLINE_S)
    assert pipeline._block_left_s == 0.05


def test_spill_keeps_all_in_order(pipelines: Make, tmp_path: Path) -> None:
    """With on_full="spill" what does not fit goes to disk, is sent later in order, and leaves no files."""
    collector = Collector()
    collector.gate.clear()
    pipeline = pipelines(collector, on_full="spill", max_bytes=5 * _size(), spill_dir=str(tmp_path))
    for number in range(1, 41):
        pipeline.put(_spans(number, number))
    span = TracerProvider(resource=RESOURCE, shutdown_on_exit=False).get_tracer("mine").start_span("own")
    span.end()
    pipeline.put_readable(span._readable_span())  # type: ignore[attr-defined]
    assert pipeline.stats() == PipelineStats(41, 0, 41, {})
    assert any(tmp_path.rglob("0*"))
    collector.gate.set()
    assert pipeline.flush(DEADLINE_S)
    assert collector.received == [*range(1, 41), span.get_span_context().span_id]
    pipeline.close(DEADLINE_S)
    assert not any(tmp_path.iterdir())


def test_spill_is_bounded(pipelines: Make, tmp_path: Path) -> None:
    """What fits neither into memory nor into the space on disk is dropped and counted."""
    collector = Collector()
    collector.gate.clear()
    options = {"max_bytes": 2 * _size(), "max_spill_bytes": 3 * _encoded_size(), "spill_dir": str(tmp_path)}
    pipeline = pipelines(collector, on_full="spill", **options)
    pipeline.put(_spans(1, 10))
    assert pipeline.stats() == PipelineStats(10, 0, 5, {"queue_full": 5})


def test_a_disk_that_fails_costs_only_what_was_to_go_there(
    pipelines: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When nothing can be written the spans are dropped and counted, and the program goes on."""
    collector = Collector()
    collector.gate.clear()
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "below")
    pipeline = pipelines(collector, on_full="spill", max_bytes=2 * _size(), spill_dir=place)
    pipeline.put(_spans(1, 10))
    assert pipeline.stats() == PipelineStats(10, 0, 2, {"queue_full": 8})


def test_spilled_spans_reach_an_exporter_of_objects(pipelines: Make, tmp_path: Path) -> None:
    """A transport that wants objects gets the spilled ones as well."""
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from otel_timespan.otel.export.objects import ReadableTransport

    exporter, gate = InMemorySpanExporter(), threading.Event()
    export = exporter.export
    exporter.export = lambda spans: gate.wait(DEADLINE_S) and export(spans)  # type: ignore
    transport = ReadableTransport(exporter, RESOURCE, SCOPE)
    pipeline = pipelines(transport, on_full="spill", max_bytes=1000, spill_dir=str(tmp_path))
    pipeline.put(_spans(1, 20, text="x"))
    gate.set()
    assert pipeline.flush(DEADLINE_S)
    spans = exporter.get_finished_spans()
    assert [span.context.span_id for span in spans] == list(range(1, 21))
    assert {(span.name, span.attributes["text"]) for span in spans} == {("name", "x")}  # type: ignore[index]


def test_close_counts_what_it_could_not_send(pipelines: Make, caplog: pytest.LogCaptureFixture) -> None:
    """`close` gives up after its timeout; what is left is dropped as "shutdown", and so is what comes later."""
    collector = Collector()
    collector.gate.clear()
    pipeline = pipelines(collector)
    pipeline.put(_spans(1, 5))
    _wait(collector.entered.is_set)
    pipeline.close(0.05)
    assert pipeline.closed
    assert collector.cancelled
    pipeline.put(_spans(6, 7))
    assert pipeline.stats() == PipelineStats(7, 0, 0, {"shutdown": 7})
    assert not pipeline.flush(0) or pipeline.stats().pending == 0
    pipeline.close()


class Owner:
    """Somebody who puts spans."""


@pytest.mark.parametrize("on_full", ["block", "spill"])
def test_who_gives_up_drops_his_own(
    on_full: str, pipelines: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All that waits of him is dropped, and what he puts later; the spans of others are sent, in order."""
    down = [True]
    collector = Collector(lambda ids: Outcome(RETRY, message="away") if down[0] else Outcome(ACCEPTED))
    room = 3 * _size() if on_full == "spill" else 64 << 20
    pipeline = pipelines(collector, on_full=on_full, spill_dir=str(tmp_path), max_bytes=room)
    mine, other = Owner(), Owner()
    pipeline.put(_spans(1, 5), mine)
    _wait(lambda: collector.tries > 0)
    pipeline.put(_spans(11, 15), other)
    pipeline.put(_spans(21, 25), mine)
    pipeline.give_up(mine)
    pipeline.give_up(mine)
    assert pipeline.stats(mine) == PipelineStats(10, 0, 0, {"shutdown": 10})
    pipeline.put(_spans(31, 32), mine)
    pipeline.put(_spans(41, 45), other)
    assert pipeline.stats(mine) == PipelineStats(12, 0, 0, {"shutdown": 12})
    assert pipeline.stats(other).pending == 10 and _balanced(pipeline.stats())
    down[0] = False
    assert pipeline.flush(DEADLINE_S)
    assert collector.received == [*range(11, 16), *range(41, 46)]
    assert pipeline.stats(mine) == PipelineStats(12, 0, 0, {"shutdown": 12})
    assert pipeline.stats() == PipelineStats(22, 10, 0, {"shutdown": 12}) and pipeline._nbytes == 0
    assert sum("10 spans are lost" in record.getMessage() for record in caplog.records) == 1


def test_close_sends_what_waits(pipelines: Make) -> None:
    """`close` sends at once, without lingering for more."""
    collector = Collector()
    pipeline = pipelines(collector, linger_s=1000.0)
    pipeline.put(_spans(1, 5))
    pipeline.close(DEADLINE_S)
    assert pipeline.stats() == PipelineStats(5, 5, 0, {})


def test_the_accounts_balance_at_any_moment(pipelines: Make) -> None:
    """Under concurrent puts, failures, refusals and reads, recorded is always the sum of the others."""
    turn = iter(range(10**9))

    def answer(ids: list[int]) -> Outcome:
        return (Outcome(ACCEPTED), Outcome(RETRY), Outcome(ACCEPTED, rejected=1), Outcome(TOO_LARGE))[next(turn) % 4]

    pipeline = pipelines(Collector(answer), on_full="drop", max_bytes=60 * _size(), max_batch_spans=9)
    seen: list[PipelineStats] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(pipeline.stats())

    reader = threading.Thread(target=read)
    writers = [
        threading.Thread(target=lambda: [pipeline.put(_spans(n, n + 20)) for n in range(1, 2000, 21)]) for _ in range(3)
    ]
    for thread in [reader, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    pipeline.close(0.2)
    done.set()
    reader.join()
    assert all(map(_balanced, seen))
    end = pipeline.stats()
    assert _balanced(end)
    assert end.recorded == 3 * 96 * 21
    assert end.pending == 0


def test_an_error_of_the_transport_costs_its_batch_only(pipelines: Make, caplog: pytest.LogCaptureFixture) -> None:
    """A transport that breaks its promise not to raise loses that batch; the thread lives on."""

    def answer(ids: list[int]) -> Outcome:
        if 1 in ids:
            raise RuntimeError("broken")
        return Outcome(ACCEPTED)

    collector = Collector(answer)
    pipeline = pipelines(collector)
    pipeline.put(_spans(1, 3))
    assert pipeline.flush(DEADLINE_S)
    pipeline.put(_spans(4, 6))
    assert pipeline.flush(DEADLINE_S)
    assert pipeline.stats() == PipelineStats(6, 3, 0, {"failed": 3})


@pytest.mark.parametrize(
    "options",
    [{"on_full": "wait"}, {"max_bytes": 0}, {"max_bytes": 1.5}, {"block_timeout_s": -1}, {"exit_timeout_s": "5"}],
)
def test_options_that_can_not_work_are_refused(options: dict[str, Any]) -> None:
    """The error names the option."""
    with pytest.raises(InvalidOptionError, match=next(iter(options))):
        SpanPipeline(Collector(), resource=RESOURCE, scope=SCOPE, **options)


_PROGRAM = """
import os, signal, sys, threading
sys.path.insert(0, os.getcwd())
from tests.otel.test_pipeline import RESOURCE, SCOPE, Collector, PipelineStats, SpanPipeline, _spans
mode = sys.argv[1]
class Printer(Collector):
    def _take(self, ids):
        outcome = super()._take(ids)
        os.write(1, f"{mode} {sorted(ids)}\\n".encode())
        return outcome
pipeline = SpanPipeline(Printer(), resource=RESOURCE, scope=SCOPE, linger_s=1000.0, exit_timeout_s=10.0)
if mode == "late":
    from otel_timespan.otel.export.shutdown import SOURCES, on_exit
    on_exit(lambda left_s: pipeline.put(_spans(1, 3)), SOURCES)
    sys.exit()
pipeline.put(_spans(1, 3))
if mode == "sigterm at exit":
    from otel_timespan.otel.export.shutdown import SOURCES, on_exit
    on_exit(lambda left_s: os.kill(os.getpid(), signal.SIGTERM), SOURCES)
if mode == "sigterm":
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(30)
if mode == "fork":
    if os.fork() == 0:
        assert pipeline.stats() == PipelineStats(0, 0, 0, {}) and pipeline.transport.forked
        mode = "child"
        pipeline.put(_spans(4, 5))
        pipeline.close(10)
        os._exit(0 if pipeline.stats() == PipelineStats(2, 2, 0, {}) else 1)
    assert os.wait()[1] == 0
"""


@pytest.mark.parametrize(
    ("mode", "code", "output"),
    [
        ("exit", 0, "exit [1, 2, 3]\n"),
        ("late", 0, "late [1, 2, 3]\n"),
        ("sigterm", -15, "sigterm [1, 2, 3]\n"),
        ("sigterm at exit", -15, "sigterm at exit [1, 2, 3]\n"),
        ("fork", 0, "child [4, 5]\nfork [1, 2, 3]\n"),
    ],
)
def test_the_end_of_the_process_flushes(mode: str, code: int, output: str) -> None:
    """At exit, late in it, at SIGTERM (during exit too), and in a forked child, what waits is sent exactly once."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, mode], capture_output=True, text=True, timeout=60, env=environment
    )
    assert (done.returncode, done.stdout) == (code, output), done.stderr
