"""A counting OTLP receiver, in a process of its own so that its CPU is nobody's but its own.

It stands in for a collector where only the number of spans matters. It speaks OTLP over gRPC, counts
distinct span ids and answers on its standard input and output: `count` → spans so far.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

__all__ = ["Receiver", "receiving"]

_SERVICES = {
    "/opentelemetry.proto.collector.trace.v1.TraceService/Export": "trace",
    "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export": "metrics",
}
_MAX_MESSAGE = 64 << 20


class Receiver:
    """The other side of the process: `endpoint` for OTLP over gRPC, `count()` of distinct span ids."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.endpoint = f"http://127.0.0.1:{self._line()}"

    def count(self) -> int:
        """Distinct spans received so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("count\n")
        self._process.stdin.flush()
        return int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"the counting receiver ended with {self._process.wait()}; see its error output above")
        return line


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver for the length of a block."""
    command = [sys.executable, "-m", "bench.collector"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Receiver(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the end of its input is the end of the process


def _serve() -> None:
    import grpc

    seen: set[bytes] = set()

    class Handler(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            kind = _SERVICES.get(details.method)
            if kind is None:
                return None
            return grpc.unary_unary_rpc_method_handler(_counter(seen) if kind == "trace" else lambda body, context: b"")

    options = [("grpc.max_receive_message_length", _MAX_MESSAGE)]
    server = grpc.server(ThreadPoolExecutor(1), handlers=(Handler(),), options=options)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    for _ in sys.stdin:
        print(len(seen), flush=True)
    server.stop(None)


def _counter(seen: set[bytes]) -> Any:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    def take(body: bytes, context: Any) -> bytes:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                seen.update(span.span_id for span in scope.spans)
        return b""  # an empty response: everything was accepted

    return take


if __name__ == "__main__":
    _serve()
