"""`otel-timespan stack check`: one tiny run through the real sink, looked for at the other end."""

from __future__ import annotations

import json
import os
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .session import jaeger_url, otlp_endpoint, trace_id_of, why_not_exported

__all__ = ["CheckStep", "check_stack", "prometheus_url"]

_POLL_S = 0.25
_REQUEST_TIMEOUT_S = 5.0
_COMPOSE = "start the back ends with `docker compose up -d`"


class CheckStep(NamedTuple):
    """One answer: what was looked at, whether it is fine, and where or why not (with the cure)."""

    what: str
    passed: bool
    detail: str


def prometheus_url(environ: Mapping[str, str] = os.environ) -> str:
    """Where Prometheus answers: PROMETHEUS_URL, by default http://localhost:9090."""
    return (environ.get("PROMETHEUS_URL") or "http://localhost:9090").rstrip("/")


def check_stack(timeout_s: float = 30.0) -> Iterator[CheckStep]:
    """CheckStep collector, Jaeger and Prometheus, then send a test run and wait `timeout_s` for it to arrive.

    Steps are yielded as they are known. What can't be reached is not waited for. Raises
    `InvalidOptionError` for a bad OTLP endpoint.
    """
    reason = why_not_exported()
    endpoint = otlp_endpoint()
    cure = f"{reason}; {_COMPOSE}, or name another one in OTEL_EXPORTER_OTLP_ENDPOINT"
    yield CheckStep("collector", reason is None, endpoint.url if reason is None else cure)
    jaeger, prometheus = jaeger_url(), prometheus_url()
    sees_spans = _refusal(f"{jaeger}/api/services")
    detail = jaeger if sees_spans is None else f"{jaeger}: {sees_spans}; set JAEGER_UI"
    yield CheckStep("Jaeger", sees_spans is None, detail)
    sees_metrics = _refusal(f"{prometheus}/-/ready")
    detail = prometheus if sees_metrics is None else f"{prometheus}: {sees_metrics}; set PROMETHEUS_URL"
    yield CheckStep("Prometheus", sees_metrics is None, detail)
    if reason is not None:
        return
    name = f"stack_check_{secrets.token_hex(4)}"
    run = _send(name)
    yield CheckStep("delivery", run.delivered, f"the collector took {run.exported} of {run.recorded} spans")
    if sees_spans is None:
        yield _arrival(
            "test span", timeout_s, f"{jaeger}/trace/{run.trace_id}", lambda: _trace_known(jaeger, run.trace_id)
        )
    if sees_metrics is None:
        query = f'timespan_task_count_total{{code_function_name=~".*{name}"}}'
        yield _arrival("test metric", timeout_s, f"{prometheus}: {query}", lambda: _series(prometheus, query))


class _Sent(NamedTuple):
    trace_id: str | None
    delivered: bool
    exported: int
    recorded: int


def _send(name: str) -> _Sent:
    """One run of one task; the task's function has a name that no other run has."""
    from .dagger import eager_context, fetch, spawn
    from .otel import OTelLog, dag

    def body() -> None:
        """The task."""

    body.__name__ = body.__qualname__ = name
    context = eager_context()
    before = context.log_sink
    log = OTelLog()
    context.log_sink = log
    try:
        with dag("stack check") as run:
            fetch(spawn(body))
    finally:
        context.log_sink = before
        delivered = log.flush()
        log.close()
    stats = log.stats()
    return _Sent(trace_id_of(run), delivered and not stats["pending"], stats["exported"], stats["recorded"])


def _arrival(what: str, timeout_s: float, where: str, look: Callable[[], bool]) -> CheckStep:
    """Look until it is there or the time is over."""
    deadline = time.monotonic() + timeout_s
    last = "not there"
    while True:
        try:
            if look():
                return CheckStep(what, True, where)
        except (OSError, ValueError) as error:
            last = str(error)
        if time.monotonic() > deadline:
            return CheckStep(what, False, f"{last} after {timeout_s:g} s: {where}; look at the collector's own log")
        time.sleep(_POLL_S)


def _trace_known(jaeger: str, trace_id: str | None) -> bool:
    return bool(_get(f"{jaeger}/api/traces/{trace_id}")["data"])


def _series(prometheus: str, query: str) -> bool:
    return bool(_get(f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}")["data"]["result"])


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=_REQUEST_TIMEOUT_S) as reply:
        return json.load(reply)


def _refusal(url: str) -> str | None:
    """None when the address answers without an error, else why not."""
    try:
        urllib.request.urlopen(url, timeout=_REQUEST_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return f"answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return None
