"""What users may hand a span, at the other end: no value makes a trace unreadable in Jaeger."""

from __future__ import annotations

from typing import Any

from tests.backends import Stack, eventually, get_json
from tests.stack.running import environment, finished, new_service

PROGRAM = r"""
import math
import otel_timespan as ts
from opentelemetry import trace
ts.eager_context().log_sink = log = ts.OTelLog(metrics=False)
class Mute:
    def __str__(self): raise RuntimeError
VALUES = {"nan": math.nan, "inf": [1.0, -math.inf], "nul": "a\0b", "big": 2 ** 70, "least": -2 ** 63, "bytes": b"\xff",
          "none": [None], "mixed": [1, "a"], "dict": {"a": {"b": 1}}, "surrogate": "caf\udce9", "mute": Mute()}
def body():
    current = trace.get_current_span()
    current.set_attributes(VALUES)
    current.add_event("event \udce9 \x1b", VALUES)
with ts.dag("odd \0 \udce9", **VALUES) as root:
    ts.fetch(ts.spawn(body))
    print(format(root.get_span_context().trace_id, "032x"))
log.close()
"""


def test_every_odd_value_can_be_read_in_jaeger(stack: Stack) -> None:
    """Jaeger's page asks for the whole trace as JSON, and gets it, with each of the values."""
    trace_id = finished(["-c", PROGRAM], environment(stack, new_service())).split()[-1]

    def found() -> dict[str, Any]:
        (trace,) = get_json(f"{stack.jaeger}/api/traces/{trace_id}")["data"]
        return {span["operationName"]: {tag["key"]: tag["value"] for tag in span["tags"]} for span in trace["spans"]}

    names = ("compute", "dag odd \0 ?")
    spans = eventually(lambda: (spans := found()) and spans.keys() >= set(names) and spans)
    for name in names:
        tags = spans[name]
        assert (tags["nan"], tags["inf"], tags["nul"], tags["surrogate"]) == ("nan", '[1,"-inf"]', "a\0b", "caf?")
        assert tags["big"] == str(2**70) and tags["mute"] == "<unreadable Mute>"
