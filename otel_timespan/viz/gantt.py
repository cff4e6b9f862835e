"""Gantt charts: a standalone SVG document, and a matplotlib figure of the same chart.

See docs/pictures.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from ..errors import InvalidOptionError, MissingExtraError
from ..timespans.texts import printable
from .colors import PALETTE, NameToColor, text_color
from .gantt_layout import Bar, Chart, ChartRow, lay_out
from .rows import read_logs

__all__ = ["Gantt", "gantt"]

_FIGURE_OPTIONS = ("figsize", "dpi", "facecolor", "edgecolor", "linewidth", "frameon", "layout")
_FONT = "font-family='Helvetica, Arial, sans-serif'"
_LANE, _GAP, _TOP, _RIGHT = 20, 7, 52, 24
_CHAR = 6.3
"""Width of a letter at font size 11, roughly: SVG can't measure text."""
_LEGEND_MOST = 24
_INK, _PALE, _GRID, _FAILED = "#1f2933", "#66727f", "#e4e8ec", "#c81e1e"


class Gantt(str):
    """A gantt chart. It *is* its SVG document, a text; `figure()` gives it as a matplotlib figure.

    `chart` is the layout: rows, bars, legend, and `note`, what is shown and what is not.
    """

    __slots__ = ("chart", "figure_options")
    chart: Chart
    figure_options: dict[str, Any]

    def __new__(cls, chart: Chart, width: int, figure_options: dict[str, Any]) -> Gantt:
        """Draw the chart `width` pixels wide."""
        made = super().__new__(cls, "".join(_svg(chart, width)))
        made.chart, made.figure_options = chart, figure_options
        return made

    def svg(self) -> str:
        """The SVG document as a plain text."""
        return str.__str__(self)

    def figure(self) -> Any:
        """A `matplotlib.figure.Figure`. Raises `MissingExtraError` without matplotlib."""
        return _figure(self.chart, self.figure_options)

    def _repr_html_(self) -> str:
        return f"<div style='overflow-x:auto'>{self.svg()}</div>"


def gantt(
    logs: Any,
    *,
    target: str = "execution",
    colors: Sequence[str] | None = PALETTE,
    name_to_color: NameToColor | None = None,
    color_by: str = "fn",
    limit: int = 5000,
    path: bool = True,
    title: str | None = None,
    width: int = 1200,
    **figure_options: Any,
) -> Gantt:
    """The chart of a log of any kind; time runs in seconds from the log's first event.

    `target`: "execution" (bodies, a row a processor), "processor" (what each processor did) or
    "scheduler" (a row a category). `colors` None draws in black; `color_by`: "fn" or "proc". At most
    `limit` bars are drawn one by one, the shorter ones together; the chart's note says so. `path` outlines
    the realised slowest path. `width` is that of the SVG in pixels; other options go to matplotlib's
    `Figure` (figsize, dpi, facecolor, ...).

    Raises `InvalidOptionError` for other options and values.
    """
    if unknown := sorted(set(figure_options) - set(_FIGURE_OPTIONS)):
        allowed = "target, colors, name_to_color, color_by, limit, path, title, width, " + ", ".join(_FIGURE_OPTIONS)
        raise InvalidOptionError(f"gantt has no option {', '.join(unknown)}; allowed are {allowed}")
    if not isinstance(width, int) or width < 300:
        raise InvalidOptionError(f"gantt: width is a number of pixels of at least 300, not {width!r}")
    chart = lay_out(
        read_logs(logs),
        target=target,
        colors=colors,
        name_to_color=name_to_color,
        color_by=color_by,
        limit=limit,
        path=path,
        title=None if title is None else printable(title),
    )
    return Gantt(chart, width, figure_options)


# ---- SVG -------------------------------------------------------------------------------------------


def _svg(chart: Chart, width: int) -> Iterator[str]:
    left = 24 + min(260, _CHAR * max((len(row.name) for row in chart.rows), default=8))
    tops, y = [], float(_TOP)
    for row in chart.rows:
        tops.append(y)
        y += row.lanes * _LANE + _GAP
    bottom = y
    legend = list(_legend(chart, left, bottom + 38, width))
    height = bottom + 38 + (18 * legend[-1][0] if legend else -12) + 14
    scale = (width - left - _RIGHT) / (chart.end - chart.start)
    yield (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height:.0f}' "
        f"viewBox='0 0 {width} {height:.0f}' {_FONT} font-size='11'>"
        f"<rect width='100%' height='100%' fill='#ffffff'/>"
        f"<text x='24' y='22' font-size='15' font-weight='bold' fill='{_INK}'>{escape(chart.title)}</text>"
        f"<text x='24' y='40' fill='{_PALE}'>{escape(chart.note)}</text>"
    )
    yield from _axis(chart, left, scale, bottom)
    for top, row in zip(tops, chart.rows, strict=False):
        yield from _row(row, chart, top, left, scale, width)
    for _, text in legend:
        yield text
    yield "</svg>\n"


def _axis(chart: Chart, left: float, scale: float, bottom: float) -> Iterator[str]:
    step = _tick_step((chart.end - chart.start) * 110 / max(110.0, (chart.end - chart.start) * scale))
    tick = math.ceil(chart.start / step - 1e-9)
    while tick * step <= chart.end * (1 + 1e-12):
        x = left + (tick * step - chart.start) * scale
        yield (
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{_TOP - 4}' y2='{bottom:.0f}' stroke='{_GRID}'/>"
            f"<text x='{x:.1f}' y='{bottom + 14:.0f}' text-anchor='middle' fill='{_PALE}'>"
            f"{_tick_label(tick * step, step, chart.end)}</text>"
        )
        tick += 1


def _tick_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... that is no smaller than `least`, at least a nanosecond."""
    power = 10.0 ** math.floor(math.log10(max(least, 1e-9)))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def _tick_label(seconds: float, step: float, end: float) -> str:
    """All ticks of an axis in one unit: the largest of which the axis has more than one."""
    units = (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9))
    unit, factor = next(((unit, factor) for unit, factor in units if end * factor > 1), units[-1])
    decimals = max(0, -math.floor(math.log10(step * factor) + 1e-9))
    return f"{seconds * factor:,.{decimals}f} {unit}"


def _row(row: ChartRow, chart: Chart, top: float, left: float, scale: float, width: int) -> Iterator[str]:
    height = row.lanes * _LANE
    shown = row.name if len(row.name) <= 41 else row.name[:40] + "…"
    yield (
        f"<text x='{left - 10:.0f}' y='{top + height / 2 + 4:.0f}' text-anchor='end' fill='{_INK}'>"
        f"{escape(shown)}</text>"
        f"<line x1='{left:.0f}' x2='{width - _RIGHT}' y1='{top + height + _GAP / 2:.1f}' "
        f"y2='{top + height + _GAP / 2:.1f}' stroke='{_GRID}'/>"
    )
    for part in row.stretches:
        x = left + (part.start - chart.start) * scale
        yield (
            f"<rect x='{x:.2f}' y='{top + part.lane * _LANE + 1:.0f}' width='{(part.end - part.start) * scale:.2f}' "
            f"height='{_LANE - 2}' fill='{escape(part.color)}' fill-opacity='{part.share}'/>"
        )
    for bar in row.bars:
        yield _bar_svg(bar, top, left + (bar.start - chart.start) * scale, (bar.end - bar.start) * scale)


def _bar_svg(bar: Bar, top: float, x: float, length: float) -> str:
    y = top + bar.lane * _LANE + 1
    # Bars that follow each other at once are told apart by a hair of white, where there is room for it.
    drawn = max(1.0, length - 0.6 if length > 4 else length)
    stroke = f" stroke='{_FAILED}' stroke-width='2'" if bar.failed else ""
    if bar.on_path and not bar.failed:
        stroke = f" stroke='{_INK}' stroke-width='1.6'"
    rounded = " rx='2'" if drawn > 6 else ""
    text = ""
    letters = int((drawn - 8) / _CHAR)
    if letters >= 3:
        shown = bar.text if len(bar.text) <= letters else bar.text[: letters - 1] + "…"
        fill = text_color(bar.color)
        text = f"<text x='{x + 4:.1f}' y='{y + 13:.1f}' fill='{fill}' pointer-events='none'>{escape(shown)}</text>"
    return (
        f"<rect x='{x:.2f}' y='{y:.0f}' width='{drawn:.2f}' height='{_LANE - 2}'{rounded} "
        f"fill='{escape(bar.color)}'{stroke}><title>{escape(bar.hint)}</title></rect>{text}"
    )


def _legend(chart: Chart, left: float, y: float, width: int) -> Iterator[tuple[int, str]]:
    """(line, text) of each entry."""
    entries = list(chart.legend.items())[:_LEGEND_MOST]
    marks = [(name, f"fill='{escape(color)}'") for name, color in entries]
    if len(chart.legend) > _LEGEND_MOST:
        marks.append((f"and {len(chart.legend) - _LEGEND_MOST} more", "fill='none'"))
    bars = [bar for row in chart.rows for bar in row.bars]
    if any(bar.on_path for bar in bars):
        marks.append(("slowest path", f"fill='#ffffff' stroke='{_INK}' stroke-width='1.6'"))
    if any(bar.failed for bar in bars):
        marks.append(("failed or cancelled", f"fill='#ffffff' stroke='{_FAILED}' stroke-width='2'"))
    x, line = left, 0
    for name, style in marks:
        room = 30 + _CHAR * len(name)
        if x > left and x + room > width - _RIGHT:
            x, line = left, line + 1
        at = y + 18 * line
        yield (
            line,
            f"<rect x='{x:.0f}' y='{at - 10:.0f}' width='12' height='12' rx='2' {style}/>"
            f"<text x='{x + 17:.0f}' y='{at:.0f}' fill='{_INK}'>{escape(name)}</text>",
        )
        x += room


# ---- matplotlib ------------------------------------------------------------------------------------


def _figure(chart: Chart, options: dict[str, Any]) -> Any:
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise MissingExtraError("matplotlib", "viz") from error
    lanes = sum(row.lanes for row in chart.rows)
    figure = Figure(**{"figsize": (12, 1.8 + 0.32 * max(2, lanes)), "layout": "constrained", **options})
    axes = figure.subplots()
    ticks, at = [], 0.0
    for row in chart.rows:
        ticks.append(at + row.lanes / 2)
        for color, share, lane, spans in _colored(row):
            look: dict[str, Any] = {
                "facecolors": color,
                "alpha": share,
                "edgecolors": "#ffffff",
                "linewidth": 0.3 if share == 1 else 0,
            }
            axes.broken_barh(spans, (at + lane + 0.06, 0.88), **look)
        for edge, wanted in ((_INK, "on_path"), (_FAILED, "failed")):
            for bar in row.bars:
                if getattr(bar, wanted):
                    outline = [(bar.start, bar.end - bar.start)]
                    axes.broken_barh(outline, (at + bar.lane + 0.06, 0.88), facecolors="none", edgecolors=edge)
        at += row.lanes + 0.3
    axes.set_yticks(ticks, [_plain(row.name) for row in chart.rows])
    axes.set_ylim(max(at, 1.0), -0.2)
    axes.set_xlim(chart.start, chart.end)
    axes.set_xlabel("seconds since the first event")
    axes.set_title(_plain(f"{chart.title}: {chart.note}"), fontsize=10, loc="left")
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    patches = [Patch(color=color, label=_plain(name)) for name, color in list(chart.legend.items())[:_LEGEND_MOST]]
    if patches:
        columns = min(6, len(patches))
        figure.legend(handles=patches, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def _plain(text: str) -> str:
    """For matplotlib, which takes what is between dollars for a formula, and leaves labels like `_name` out."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _colored(row: ChartRow) -> Iterator[tuple[str, float, int, list[tuple[float, float]]]]:
    """(colour, opacity, lane, [(start, length)]): one collection each, as matplotlib likes it."""
    groups: dict[tuple[str, float, int], list[tuple[float, float]]] = {}
    for part in row.stretches:
        groups.setdefault((part.color, part.share, part.lane), []).append((part.start, part.end - part.start))
    for bar in row.bars:
        groups.setdefault((bar.color, 1.0, bar.lane), []).append((bar.start, bar.end - bar.start))
    for (color, share, lane), spans in sorted(groups.items()):
        yield color, share, lane, spans
