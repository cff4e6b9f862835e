"""The size of what refers to many objects, by looking at some of them.

Level by level: what the values of one level refer to is the next one. Of a container a few elements are looked at,
which stand for all; of a level a few values are looked into, chosen in proportion to what they take, each standing
for its share. So a tree of any shape comes out well: no branch is left out because another was looked at first.

An object that is met over several ways counts once for what these have in common: once in all if two elements of a
list refer to it, once an element if an element refers to it twice.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from typing import Any

from .layout import Layout, layout_of, layouts, said_by_field, spread

__all__ = ["sampled_size"]

LEAST_TAKEN = 16
"""Elements of a container that are looked at, where there are so many."""
MOST_TAKEN = 64
"""The same for a container that is alone on its level, and does not just hold numbers."""
LOOKED_INTO = 48
"""Values of a level that are looked into."""
ENOUGH = 4000
"""When so many objects were looked at, no further level is: a chain is longer than that, or without end."""
FEW = 256
"""Up to so many objects are counted one by one, before it is seen whether there are more."""
_NUMBERS = {int, float, complex, bool}


class _Sample:
    """The objects that were met, by number, in the order in which they were; 0 is the value itself."""

    def __init__(self, value: Any, own: int) -> None:
        self.number = {id(value): 0}
        self.own = [own]
        self.above = [0]  # what refers to it; of several, what all ways to it have in common
        self.share = [1.0]  # how many it stands for, of those that what is above refers to
        self.factor: dict[int, float] = {}  # how many of its level it stands for, where it was chosen from many

    def add_all(self, taken: Sequence[Any], share: float, above: int) -> list[tuple[Any, Layout, int]]:
        """What an object refers to, `share` times as much of it as was taken: what of it must be looked into."""
        number, sizes, aboves, shares = self.number, self.own, self.above, self.share
        further = []
        for value in taken:
            known = number.get(id(value))
            if known is not None:
                self._meet_again(known, above)
                continue
            layout = layouts.get(id(type(value))) or layout_of(type(value))
            if layout.free:
                continue
            if layout.plain:
                own = layout.own(value)
            else:
                own, further_in = _own(value, layout)
                if further_in:
                    further.append((value, layout, len(sizes)))
            if own:
                number[id(value)] = len(sizes)
                sizes.append(own)
                aboves.append(above)
                shares.append(share)
        return further

    def _meet_again(self, number: int, above: int) -> None:
        """Another way to it was found."""
        other = self.above[number]
        while above not in (other, number):
            if above > other:
                above = self.above[above]
            else:
                other = self.above[other]
        if above != number:  # else it is referred to by what it holds itself
            self.above[number], self.share[number] = above, 1.0

    def total(self) -> int:
        """The estimate."""
        inside = [self.factor.get(0, 1.0)]  # how many things in it each one stands for
        total = float(self.own[0])
        for n in range(1, len(self.own)):
            stands_for = inside[self.above[n]] * self.share[n]
            total += stands_for * self.own[n]
            inside.append(stands_for * self.factor.get(n, 1.0))
        return int(total)


_Level = list[tuple[Any, Layout, int, float]]
"""Values to look into: with their layout, number, and how many they stand for."""


def sampled_size(value: Any, layout: Layout) -> int | None:
    """Estimated bytes of a value whose layout says that it refers to others."""
    if layout.has_fields and (said := said_by_field(value)) is not None:
        return said
    whole = _size_of_all(value, layout)
    if whole is not None:
        return whole
    sample = _Sample(value, layout.own(value))
    level: _Level = [(value, layout, 0, 1.0)]
    while level and len(sample.own) < ENOUGH:
        level = _choose(sample, _next_level(sample, level))
    return sample.total()


def _size_of_all(value: Any, layout: Layout) -> int | None:
    """The same where that is so little that all of it is counted, each object once: most arguments of tasks are such.

    None where there is more, to be sampled. (To sample takes twice as long: a Dask graph's tasks cost more to measure
    than to run and to log.)
    """
    seen, total, layout_at = {id(value)}, layout.own(value), layouts.get
    level, layouts_of_level = [value], [layout]
    while level:
        if len(seen) > FEW:
            return None
        keys: list[Any] = []  # which the collector does not see where all are texts
        for holder, layout in zip(level, layouts_of_level, strict=True):
            if layout.length is None or layout.length(holder) > LEAST_TAKEN:
                return None
            if type(holder) is dict:
                keys += holder
        held = gc.get_referents(*level) + keys
        if len(held) > FEW:
            return None
        level, layouts_of_level = [], []
        for each in held:
            layout = layout_at(id(type(each))) or layout_of(type(each))
            if layout.free:
                continue
            number = id(each)
            if number in seen:
                continue
            if layout.plain:
                own = layout.own(each)
                if not own:
                    continue
            else:
                own, is_further = _own(each, layout)
                if is_further:
                    level.append(each)
                    layouts_of_level.append(layout)
            seen.add(number)
            total += own
    return total


def _next_level(sample: _Sample, level: _Level) -> _Level:
    found: _Level = []
    most = max(LEAST_TAKEN, MOST_TAKEN // len(level))
    for value, layout, number, stands_for in level:
        try:
            groups = _take(value, layout.inside, most, number)
        except (IndexError, RuntimeError):  # another thread changes it meanwhile
            continue
        for taken, count in groups:
            if taken:
                share = count / len(taken)
                for each, inner, index in sample.add_all(taken, share, number):
                    found.append((each, inner, index, stands_for * share))
    return found


def _take(value: Any, inside: Any, most: int, number: int) -> list[tuple[Any, int]]:
    groups: list[tuple[Any, int]] = inside(value, LEAST_TAKEN, number)
    if most > LEAST_TAKEN:
        for taken, count in groups:
            if len(taken) < count and not _NUMBERS.issuperset(map(type, taken)):  # numbers are all alike
                return inside(value, most, number)  # type: ignore[no-any-return]
    return groups


def _own(value: Any, layout: Layout) -> tuple[int, bool]:
    """The bytes of a part, and whether it must be looked into for the rest."""
    said = None
    if layout.whole is not None:
        try:
            said = layout.whole(value) or 0
        except Exception:  # what says its size raised: unknown
            said = 0
    elif layout.has_fields:
        said = said_by_field(value)
    if said is not None:
        return said + layout.base, False
    return layout.own(value), True


def _choose(sample: _Sample, found: _Level) -> _Level:
    """At most `LOOKED_INTO` of them, in proportion to what each takes and stands for."""
    if len(found) <= LOOKED_INTO:
        return found
    masses = [stands_for * sample.own[number] for _, _, number, stands_for in found]
    step = sum(masses) / LOOKED_INTO
    chosen: _Level = []
    at = [n * step for n in spread(LOOKED_INTO, len(sample.own))]
    at.append(math.inf)
    reached, n = 0.0, 0
    for (value, layout, number, stands_for), mass in zip(found, masses, strict=True):
        reached += mass
        first = n
        while at[n] < reached:
            n += 1
        if n > first:
            factor = sample.factor[number] = (n - first) * step / mass
            chosen.append((value, layout, number, stands_for * factor))
    return chosen
