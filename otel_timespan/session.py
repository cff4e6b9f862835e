"""One program under full logging: what `otel-timespan demo` and `otel-timespan run` share.

A `MultiEventLog` keeps everything for the pictures. Where a collector answers at the OTLP endpoint,
an `OTelLog` exports the same events as one run; where none does, that is said and nothing else changes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import InvalidOptionError

__all__ = [
    "Endpoint",
    "Session",
    "check_writable",
    "jaeger_url",
    "logged",
    "otlp_endpoint",
    "trace_id_of",
    "why_not_exported",
    "workers",
]

PROBE_TIMEOUT_S = 1.0
FLUSH_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Endpoint:
    """Where traces go: an OTLP address as the standard variables name it, `variable` the one that did."""

    url: str
    host: str
    port: int
    variable: str

    def refusal(self, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
        """None when a TCP connection succeeds, else why it does not."""
        try:
            socket.create_connection((self.host, self.port), timeout_s).close()
        except OSError as error:
            return error.strerror or str(error)
        return None


def otlp_endpoint(environ: Mapping[str, str] = os.environ) -> Endpoint:
    """The endpoint of traces: OTEL_EXPORTER_OTLP_[TRACES_]ENDPOINT, else localhost with the protocol's port.

    Raises `InvalidOptionError` for a value that is no address.
    """
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    protocol = protocol.strip().lower()
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        if environ.get(variable):
            return _endpoint(environ[variable], variable)
    return _endpoint(f"http://localhost:{4317 if protocol == 'grpc' else 4318}", "the default")


def _endpoint(url: str, variable: str) -> Endpoint:
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError:
        host, port = None, 0
    if not host:
        raise InvalidOptionError(f"{variable}={url!r} is no address; it looks like http://localhost:4317")
    return Endpoint(url, host, port, variable)


def why_not_exported(environ: Mapping[str, str] = os.environ) -> str | None:
    """None when spans can be exported, else the reason, in one line."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "OTEL_SDK_DISABLED is set"
    exporter = environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower() or "otlp"
    if exporter == "none":
        return "OTEL_TRACES_EXPORTER is none"
    if exporter != "otlp":
        return None
    endpoint = otlp_endpoint(environ)
    refusal = endpoint.refusal()
    return None if refusal is None else f"no collector at {endpoint.url} ({refusal})"


def jaeger_url(environ: Mapping[str, str] = os.environ) -> str:
    """Where Jaeger's pages are: JAEGER_UI, by default http://localhost:16686."""
    return (environ.get("JAEGER_UI") or "http://localhost:16686").rstrip("/")


def trace_id_of(span: Any) -> str | None:
    """The trace of a root span that `dag` gave, as Jaeger writes it; None where nothing is traced."""
    trace_id: int = span.get_span_context().trace_id
    return f"{trace_id:032x}" if trace_id else None


def check_writable(path: Path) -> None:
    """Raise `InvalidOptionError` now when `path` can't be written later; leaves no file behind."""
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
        if not existed:
            path.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidOptionError(
            f"can't write the trace to {path} ({reason}): give another file with --trace"
        ) from None


@dataclass
class Session:
    """What a `logged` block gives. `logs`, `stats` and `delivered` are there when the block has ended.

    `error` is what ended the program, for the root of the run; to be set in the block, by who caught it.
    `take_logs` empties the log into `logs` before that, for who can't wait until all is exported.
    `not_exported` is the reason why nothing is exported, None when it is. `stats` are those of the
    `OTelLog`; `delivered` says whether all was handed over in time.
    """

    name: str
    not_exported: str | None = None
    trace_id: str | None = None
    sink: Any = None
    replaced: bool = False
    error: BaseException | None = None
    delivered: bool = True
    logs: Any = None
    kept: Any = None
    stats: Mapping[str, Any] = field(default_factory=dict)

    def take_logs(self) -> Any:
        """What was logged so far: `{worker: {stream: list}}`; once, the log is empty afterwards."""
        from .timespans import get_logs

        if self.logs is None:
            self.logs = get_logs(self.kept)
        return self.logs

    @property
    def link(self) -> str | None:
        """The run's page in Jaeger, None when nothing was exported."""
        return f"{jaeger_url()}/trace/{self.trace_id}" if self.trace_id else None


@contextmanager
def workers(count: int) -> Iterator[list[int]]:
    """In the block there are so many worker processes, for every context that uses all there are: their ids."""
    from .dagger import cluster

    ids = cluster.add_workers(count) if count else []
    try:
        yield ids
    finally:
        cluster.remove_workers(ids, timeout_s=0)


@contextmanager
def logged(name: str, **attributes: Any) -> Iterator[Session]:
    """Log all tasks of the block, as one run called `name`; the context's own sink is put back at the end.

    Raises `InvalidOptionError` for a bad OTLP endpoint, before anything is changed.
    """
    from .dagger import eager_context, enable_logging
    from .otel import OTelLog, dag
    from .timespans import TeeLog

    session = Session(name, why_not_exported())
    context = eager_context()
    before = context.log_sink
    exported = OTelLog() if session.not_exported is None else None
    enable_logging(metrics=True, timeline=True)
    session.kept = kept = context.log_sink
    kept.recorder.wants_cpu = True
    session.sink = context.log_sink = TeeLog(kept, exported) if exported else TeeLog(kept)
    try:
        with dag(name, **attributes) as run:
            session.trace_id = trace_id_of(run)
            yield session
            if session.error is not None:
                raise session.error
    except BaseException as error:
        if error is not session.error:
            raise
    finally:
        session.replaced = context.log_sink is not session.sink
        if not session.replaced:
            context.log_sink = before
        session.take_logs()
        kept.close()
        if exported:
            session.delivered = exported.flush(FLUSH_TIMEOUT_S)
            exported.close()
            session.stats = exported.stats()
