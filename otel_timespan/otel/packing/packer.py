"""Packers: functions that give the OTLP bytes of a task's spans in one step, one a shape of task.

Tasks of one shape (function, processor, thread, positions of their dependencies ...) have spans that differ in ids,
times and a few numbers only. So a packer is made from an example: the spans that the general way built of a task
of its shape. What varies is put in where the catalogue of spans says that it does (`tasks.SPANS`,
`tasks.SECONDS`), what it says that a shape shares (`tasks.OF_SHAPE`) is a constant; one `struct` call writes both. A
packer that does not give the very bytes of its example is refused, and its shape goes the general way for good: nothing
that the catalogue does not know can be lost.

About 2 µs for the three spans of a task. See trace.proto, message Span.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .. import semconv
from ..export.wire import (
    SPAN_TAG,
    encode_link_attribute,
    encode_name,
    encode_span,
    encode_span_attribute,
    framed,
    link_tail,
    span_tail,
    varint,
)
from ..spans import ids
from ..spans.spandata import LinkData, SpanData
from ..spans.tasks import BOUNDARIES, OF_SHAPE, SECONDS, SPANS, Definition

__all__ = ["Facts", "Packer", "compile_packer"]


class Facts(NamedTuple):
    """What a packer is called with, in this order; then the derived ids of the upstreams that are linked to.

    `trace` and the ids are as the bytes of the message have them, ids as little-endian numbers (`ids.mixed`).
    `id_bytes` and `size_bytes` are varints; `offset` is wall clock minus monotonic clock; `times` are the seven
    boundaries of `OpenTask.bounds`, monotonic ns. `moves`: (position, size as a varint) of each move that is a span.
    """

    trace: bytes
    base: int
    parent: int
    id_bytes: bytes
    offset: int
    cpu_ns: int
    size_bytes: bytes
    spawned_by: bytes
    times: tuple[int, ...]
    moves: tuple[tuple[Any, bytes], ...] = ()


Packer = Callable[..., bytes]
"""`pack(*facts[:-2], *facts.times, *sizes, *upstreams) -> bytes`: fields `spans` of a ScopeSpans message, one a span.

`sizes`: those of the moves.
"""

MOVE = Definition(ids.MOVE, "taken + 1", "body_start - 1")
"""The span of each argument that came from elsewhere."""

_ARGUMENTS = (*Facts._fields[:-2], *BOUNDARIES)


class _Slot(NamedTuple):
    """A part that varies: its code for `struct`, its bytes, and how it follows from the arguments."""

    code: str
    size: int
    source: str


_Part = bytes | _Slot


def compile_packer(spans: Sequence[SpanData], facts: Facts, upstreams: Sequence[int]) -> Packer | None:
    """The packer of the shape of which `spans` is an example; None where these hold what can't be packed.

    `facts` are the example's; `upstreams` the mixed ids of the tasks that it may link to.
    """
    try:
        parts = [part for span in spans for part in _framed(SPAN_TAG, list(_span(span, facts, upstreams)))]
    except _UnknownError:
        return None
    pack = _generate(parts, len(facts.moves), len(upstreams))
    made = pack(*facts[:-2], *facts.times, *[size for _, size in facts.moves], *upstreams)
    wanted = b"".join([framed(SPAN_TAG, encode_span(span)) for span in spans])
    return pack if made == wanted else None


class _UnknownError(Exception):
    """The example holds something that is neither constant nor in the catalogue."""


def _span(span: SpanData, facts: Facts, upstreams: Sequence[int]) -> Iterator[_Part]:
    """The parts of one Span message, in the order in which `encode_span` writes them."""
    definition = SPANS.get(span.name) if span.span_id != ids.swapped(facts.base) else SPANS[semconv.TASK_SPAN]
    position: Any = 0
    varying = _VARYING
    for n, (place, _) in enumerate(facts.moves):
        if span.span_id == ids.of(facts.base, ids.MOVE, str(place)):
            definition, position = MOVE, str(place)
            varying = {**_VARYING, semconv.MOVE_SIZE: f"size{n}"}
    if definition is None or span.events or span.dropped_links or span.dropped_attributes or span.trace_state:
        raise _UnknownError(span.name)
    mask = ids.mask(definition.phase, position)
    yield b"\x0a\x10"
    yield _Slot("16s", 16, "trace")
    yield b"\x12\x08"
    yield _Slot("Q", 8, f"base ^ {mask}" if mask else "base")
    yield b"\x22\x08"
    yield _Slot("Q", 8, "parent" if definition.phase == ids.TASK else "base")
    yield encode_name(span.name) + b"\x39"
    yield _Slot("Q", 8, f"{definition.start} + offset")
    yield b"\x41"
    yield _Slot("Q", 8, f"{definition.end} + offset")
    for key, value in span.attributes.items():
        yield from _attribute(key, value, facts, varying.get(key))
    for link in span.links:
        yield from _framed(b"\x6a", list(_link(link, facts, upstreams)))
    yield span_tail(span)


def _attribute(key: str, value: Any, facts: Facts, slot: str | None) -> Iterator[_Part]:
    """One attribute: a varying one's value is the last field of it, always."""
    encoded = encode_span_attribute(key, value)
    if key in OF_SHAPE:
        yield encoded
        return
    if slot is None:
        raise _UnknownError(key)
    if type(value) is float:
        size, code = 8, "d"
    else:
        sizes = {f"size{n}": size for n, (_, size) in enumerate(facts.moves)}
        known: Mapping[str, bytes] = {**facts._asdict(), **sizes}
        size = len(known[slot])
        code = f"{size}s"
    yield encoded[:-size]
    yield _Slot(code, size, slot)


_VARYING = {
    semconv.TASK_ID: "id_bytes",
    semconv.RESULT_SIZE: "size_bytes",
    semconv.TASK_SPAWNED_BY: "spawned_by",
    semconv.RUN_CPU: "cpu_ns / 1e9",
    **{key: f"({end} - {start}) / 1e9" for key, start, end in SECONDS},
}
"""How the value of an attribute follows from a packer's arguments. All others are constants of their shape."""


def _link(link: LinkData, facts: Facts, upstreams: Sequence[int]) -> Iterator[_Part]:
    mixed = ids.swapped(link.span_id)
    if mixed not in upstreams or link.trace_state or link.dropped_attributes:
        raise _UnknownError("link")
    yield b"\x0a\x10"
    yield _Slot("16s", 16, "trace")
    yield b"\x12\x08"
    yield _Slot("Q", 8, f"up{upstreams.index(mixed)}")
    yield b"".join([encode_link_attribute(key, value) for key, value in link.attributes.items()])
    yield link_tail(link)


def _framed(tag: bytes, parts: list[_Part]) -> list[_Part]:
    size = sum(part.size if isinstance(part, _Slot) else len(part) for part in parts)
    return [tag + varint(size), *parts]


def _generate(parts: Sequence[_Part], moves: int, upstreams: int) -> Packer:
    """The function: one `struct` call, with the constants that lie side by side joined."""
    joined: list[_Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, bytes) and isinstance(last, bytes):
            joined[-1] = last + part
        else:
            joined.append(part)
    constants = {f"c{n}": part for n, part in enumerate(joined) if isinstance(part, bytes)}
    layout = "<" + "".join(part.code if isinstance(part, _Slot) else f"{len(part)}s" for part in joined)
    given = [part.source if isinstance(part, _Slot) else f"c{n}" for n, part in enumerate(joined)]
    parameters = [*_ARGUMENTS, *(f"size{n}" for n in range(moves)), *(f"up{n}" for n in range(upstreams))]
    fixed = [f"{name}={name}" for name in ("write", *constants)]
    source = f"def pack({', '.join(parameters + fixed)}):\n return write({', '.join(given)})\n"
    names: dict[str, Any] = {"write": struct.Struct(layout).pack, **constants}
    exec(source, names)
    packer: Packer = names["pack"]
    return packer
