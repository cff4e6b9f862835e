"""Colours of names: the same name gets the same colour in every picture of a log, and in every run.

The palette has ten strong colours and a lighter twin of each; a name's hash says where to begin, and
the next free colour is taken, so that no two names share one while there are colours left.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence

from ..errors import InvalidOptionError

__all__ = ["PALETTE", "assign_colors", "name_to_color", "text_color"]

PALETTE = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccaa33",
    "#2aa5c7",
    "#aa3377",
    "#ee7733",
    "#117766",
    "#7b61c4",
    "#8c6d46",
    "#88aadd",
    "#f4a3ac",
    "#7cc48a",
    "#e6d27a",
    "#8fd3e6",
    "#d28cb5",
    "#f7b48c",
    "#77b8ab",
    "#b9a8e6",
    "#c4ab8a",
)
BLACK = "#000000"

NameToColor = Callable[[str, Sequence[str]], str]


def name_to_color(name: str, colors: Sequence[str] | None = PALETTE) -> str:
    """The colour that a name's hash picks from `colors`; black when `colors` is None or empty."""
    return colors[zlib.crc32(name.encode("utf-8", "surrogatepass")) % len(colors)] if colors else BLACK


def assign_colors(
    names: Iterable[str], colors: Sequence[str] | None = PALETTE, choose: NameToColor | None = None
) -> dict[str, str]:
    """A colour for each name. With `choose(name, colors)` that decides, else no two names share one
    while there are enough colours. Depends on the set of names only, not on their order.

    Raises `InvalidOptionError` when `colors` is not a sequence of texts or `choose` can't be called.
    """
    if colors is not None and (isinstance(colors, str) or not all(isinstance(c, str) for c in colors)):
        raise InvalidOptionError(f"colors is a list of colours such as '#4477aa', or None for black, not {colors!r}")
    if choose is not None and not callable(choose):
        raise InvalidOptionError(f"name_to_color is a function (name, colors) -> colour, not {choose!r}")
    ordered = sorted(set(names))
    if choose is not None:
        return {name: choose(name, colors or ()) for name in ordered}
    if not colors:
        return dict.fromkeys(ordered, BLACK)
    chosen: dict[str, str] = {}
    # Few names get the first, strong half of the palette: the lighter twins are for when it is used up.
    count = len(colors) // 2 if len(ordered) <= len(colors) // 2 else len(colors)
    free: list[int] = []
    for name in ordered:
        free = free or list(range(count))
        wish = zlib.crc32(name.encode("utf-8", "surrogatepass")) % count
        index = next((i for i in free if i >= wish), free[0])
        free.remove(index)
        chosen[name] = colors[index]
    return chosen


def text_color(background: str) -> str:
    """Black or white, whichever can be read on `background` ("#rrggbb"; black for other notations)."""
    if len(background) != 7 or not background.startswith("#"):
        return "#111111"
    try:
        red, green, blue = (int(background[i : i + 2], 16) for i in (1, 3, 5))
    except ValueError:
        return "#111111"
    return "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"
