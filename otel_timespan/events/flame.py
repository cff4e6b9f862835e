"""Profiler samples as pictures: a flame graph (SVG) and a speedscope profile (JSON).

A sample is (thread, frames from the root, monotonic ns), as timespans/profiler.py takes them.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from itertools import pairwise

from ..timespans.texts import printable

__all__ = ["flame_svg", "speedscope"]

_WIDTH, _ROW, _LETTER = 1200.0, 17.0, 7.0
_MIN_WIDTH = 0.5


def speedscope(samples: Iterable[tuple[int, tuple[str, ...], int]], name: str) -> str:
    """The text of a speedscope file (https://www.speedscope.app), one profile a thread, in nanoseconds."""
    frames: dict[str, int] = {}
    threads: dict[int, list[tuple[tuple[str, ...], int]]] = {}
    for thread, stack, time_ns in samples:
        threads.setdefault(thread, []).append((stack, time_ns))
    profiles = []
    for thread, taken in threads.items():
        times = [time_ns for _, time_ns in taken]
        weights = [later - earlier for earlier, later in pairwise(times)]
        weights.append(weights[-1] if weights else 1)
        profiles.append(
            {
                "type": "sampled",
                "name": printable(f"{name} (thread {thread})"),
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": sum(weights),
                "samples": [[frames.setdefault(frame, len(frames)) for frame in stack] for stack, _ in taken],
                "weights": weights,
            }
        )
    return json.dumps(
        {
            "$schema": "https://www.speedscope.app/file-format-schema.json",
            "name": printable(name),
            "exporter": "otel-timespan",
            "shared": {"frames": [{"name": printable(frame)} for frame in frames]},
            "profiles": profiles,
        }
    )


def flame_svg(samples: Iterable[tuple[int, tuple[str, ...], int]], title: str) -> str:
    """A flame graph: width is the share of samples, the root is at the bottom. Texts are escaped."""
    stacks = Counter(stack for _, stack, _ in samples)
    total = sum(stacks.values())
    boxes = list(_boxes(stacks, max(total, 1)))
    depth = max((level for level, *_ in boxes), default=0) + 1
    height = (depth + 2) * _ROW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:g} {height:g}" '
        'font-family="monospace" font-size="12">',
        f'<text x="4" y="{_ROW - 4:g}">{_text(title)} ({total} samples)</text>',
    ]
    for level, left, width, frame, count in boxes:
        y = height - (level + 1) * _ROW
        shown = frame if len(frame) * _LETTER < width else frame[: max(0, int(width / _LETTER) - 1)]
        label = f'<text x="{left + 2:.1f}" y="{y + 12:.1f}">{_text(shown)}</text>' if shown else ""
        parts.append(
            f"<g><title>{_text(frame)}: {count} samples, {100 * count / total:.1f} %</title>"
            f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_ROW - 1:g}" fill="{_color(frame)}"/>'
            f"{label}</g>"
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _boxes(stacks: Counter[tuple[str, ...]], total: int) -> Iterator[tuple[int, float, float, str, int]]:
    """(level, left, width, frame, samples) of each box; sorted stacks put equal prefixes side by side."""
    todo: list[tuple[int, float, list[tuple[tuple[str, ...], int]]]] = [(0, 0.0, sorted(stacks.items()))]
    while todo:
        level, left, here = todo.pop()
        groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for stack, count in here:
            if len(stack) > level:
                groups.setdefault(stack[level], []).append((stack, count))
        for frame, group in groups.items():
            count = sum(n for _, n in group)
            width = _WIDTH * count / total
            if width >= _MIN_WIDTH:
                yield level, left, width, frame, count
                todo.append((level + 1, left, group))
            left += width


def _text(text: str) -> str:
    return escape(printable(text))


def _color(frame: str) -> str:
    shade = zlib.crc32(frame.encode("utf-8", "replace"))
    return f"hsl({shade % 45}, 80%, {60 + shade // 45 % 15}%)"
