"""What the answers of a receiver cost: a culprit is found and costs itself, one that is away costs nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from otel_timespan.otel.export import delivery
from otel_timespan.otel.export.accounts import PipelineStats
from otel_timespan.otel.export.objects import ProcessorTransport, ReadableTransport, halve_exports
from otel_timespan.otel.export.pipeline import SpanPipeline
from otel_timespan.otel.export.transport import ACCEPTED, REJECTED, RETRY, TOO_LARGE, Outcome
from tests.backends import eventually
from tests.otel.test_pipeline import DEADLINE_S, RESOURCE, SCOPE, Collector, _spans


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_BACKOFF_S", "_LONGEST_BACKOFF_S", "_SEARCH_BACKOFF_S"):
        monkeypatch.setattr(delivery, name, 0.001)


@contextmanager
def _pipeline(transport: Any, **options: Any) -> Iterator[SpanPipeline]:
    pipeline = SpanPipeline(transport, resource=RESOURCE, scope=SCOPE, linger_s=0.0, **options)
    try:
        yield pipeline
    finally:
        pipeline.close(0)


def _refusing(bad: set[int], refusal: Outcome) -> Callable[[list[int]], Outcome]:
    return lambda ids: refusal if bad & set(ids) else Outcome(ACCEPTED)


@pytest.mark.parametrize(
    "refusal",
    [Outcome(REJECTED), Outcome(TOO_LARGE), Outcome(RETRY), Outcome(RETRY, reached=False)],
    ids=["never", "too large", "later", "no answer"],
)
@pytest.mark.parametrize("bad", [{1}, {100}, {7, 8, 60}, {99, 100}, set(range(2, 100, 3))])
def test_culprits_cost_themselves(refusal: Outcome, bad: set[int]) -> None:
    """Whatever the answer to a request is with a span that can't be taken: all others arrive, it is counted."""
    collector = Collector(_refusing(bad, refusal))
    with _pipeline(collector) as pipeline:
        pipeline.put(_spans(1, 100))
        assert pipeline.flush(DEADLINE_S)
        assert sorted(collector.received) == [number for number in range(1, 101) if number not in bad]
        assert pipeline.stats() == PipelineStats(100, 100 - len(bad), 0, {"rejected": len(bad)})


def test_a_culprit_alone_does_not_hold_up_others() -> None:
    """A span that is refused "later" waits where nothing else is to be sent; others pass, and then it is dropped."""
    collector = Collector(_refusing({1}, Outcome(RETRY)))
    with _pipeline(collector) as pipeline:
        pipeline.put(_spans(1, 1))
        eventually(lambda: collector.tries >= 5)
        assert pipeline.stats().pending == 1
        pipeline.put(_spans(2, 9))
        assert pipeline.flush(DEADLINE_S)
        assert collector.received == list(range(2, 10))
        assert pipeline.stats().dropped == {"rejected": 1}


def test_an_outage_of_any_length_loses_nothing() -> None:
    """Where everything is refused "later" it is about no span, however often: all arrive in the end."""
    away = True
    collector = Collector(lambda ids: Outcome(RETRY) if away else Outcome(ACCEPTED))
    with _pipeline(collector, max_batch_spans=10) as pipeline:
        pipeline.put(_spans(1, 50))
        eventually(lambda: collector.tries >= 300)
        away = False
        assert pipeline.flush(DEADLINE_S)
        assert sorted(collector.received) == list(range(1, 51))
        assert pipeline.stats() == PipelineStats(50, 50, 0, {})


def test_a_receiver_that_is_overloaded_loses_nothing() -> None:
    """Where two of three requests are refused "later", whatever is in them, nothing is dropped."""
    turn = iter(range(10**9))
    collector = Collector(lambda ids: Outcome(RETRY) if next(turn) % 3 else Outcome(ACCEPTED))
    with _pipeline(collector, max_batch_spans=5) as pipeline:
        pipeline.put(_spans(1, 200))
        assert pipeline.flush(DEADLINE_S)
        assert sorted(collector.received) == list(range(1, 201))


def test_a_receiver_that_takes_nothing_is_not_pounded() -> None:
    """What is refused whole for who sends it is refused at once; what is refused always is not halved for ever."""
    whole = Collector(lambda ids: Outcome(REJECTED, whole=True))
    with _pipeline(whole) as pipeline:
        pipeline.put(_spans(1, 1000))
        assert pipeline.flush(DEADLINE_S)
        assert (whole.tries, pipeline.stats().dropped) == (1, {"rejected": 1000})
    always = Collector(lambda ids: Outcome(REJECTED))
    with _pipeline(always) as pipeline:
        pipeline.put(_spans(1, 1000))
        assert pipeline.flush(DEADLINE_S)
        assert always.tries < 100
        assert pipeline.stats().dropped == {"rejected": 1000}


class Picky(InMemorySpanExporter):
    """Raises, or says FAILURE, for a batch with span 5 in it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Take all or nothing."""
        if any(span.context is not None and span.context.span_id == 5 for span in spans):
            if self.how == "raises":
                raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")
            return SpanExportResult.FAILURE
        return super().export(spans)


def _ids(exporter: InMemorySpanExporter) -> list[int]:
    return sorted(span.context.span_id for span in exporter.get_finished_spans() if span.context is not None)


@pytest.mark.parametrize("how", ["raises", "fails"])
def test_an_exporter_of_the_users_loses_the_culprit_alone(how: str) -> None:
    """One that can't take one span of a batch gets all others."""
    exporter = Picky(how)
    with _pipeline(ReadableTransport(exporter, RESOURCE, SCOPE)) as pipeline:
        pipeline.put(_spans(1, 40))
        assert pipeline.flush(DEADLINE_S)
        assert _ids(exporter) == [number for number in range(1, 41) if number != 5]
        assert pipeline.stats().dropped == {"rejected": 1}


@pytest.mark.parametrize("kind", [BatchSpanProcessor, SimpleSpanProcessor])
def test_a_processor_of_the_users_loses_the_culprit_alone(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An exporter behind the SDK's processors that raises for one span gets the others of its batch, the user's too."""
    exporter = Picky("raises")
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    provider.add_span_processor(kind(exporter))
    halve_exports(provider)
    halve_exports(provider)
    provider.get_tracer("mine").start_span("theirs").end()
    with _pipeline(ProcessorTransport(provider, SCOPE)) as pipeline:
        pipeline.put(_spans(1, 40))
        assert pipeline.flush(DEADLINE_S)
    provider.shutdown()
    names = [span.name for span in exporter.get_finished_spans()]
    assert (names.count("name"), names.count("theirs")) == (39, 1)


def test_what_lies_behind_is_not_waited_for_beyond_the_time() -> None:
    """A provider whose flush hangs is left alone: `flush` is False, and `close` comes back."""
    gate, entered = threading.Event(), threading.Event()
    provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
    processor = SimpleSpanProcessor(InMemorySpanExporter())
    processor.force_flush = lambda timeout_millis=0: entered.set() or gate.wait()  # type: ignore
    provider.add_span_processor(processor)
    with _pipeline(ProcessorTransport(provider, SCOPE)) as pipeline:
        pipeline.put(_spans(1, 2))
        assert not pipeline.flush(0.05)
        assert entered.wait(DEADLINE_S)
        assert pipeline.stats().exported == 2
    gate.set()
