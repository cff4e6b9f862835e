"""`ProfileMetrics`: a flame graph of each profiled body."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref

from .. import forks
from ..timespans.model import Event, function_name
from .base import thunk_id
from .flame import flame_svg, speedscope

__all__ = ["ProfileHandle", "ProfileMetrics"]


class ProfileHandle:
    """The files of one profile: `str(handle)` is the flame graph's (SVG), `speedscope` the other's (JSON).

    They are removed when the handle dies, at the latest when the interpreter ends.
    """

    __slots__ = ("__weakref__", "path", "speedscope")

    def __init__(self, path: str, speedscope: str) -> None:
        self.path, self.speedscope = path, speedscope
        weakref.finalize(self, _remove, path, speedscope)

    def __str__(self) -> str:
        return self.path

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"ProfileHandle({self.path!r})"


class ProfileMetrics:
    """At the finish of a profiled `compute`: a `ProfileHandle`; "" for every other event.

    Profiling is on where the context's `profile` is. `folder`: where the files go (default: the system's
    folder for temporary files); only the user may read them. Bodies shorter than the profiler's
    interval of 5 ms mostly have no samples, and no files.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = folder

    def __call__(self, event: Event) -> ProfileHandle | str:
        """See the class."""
        samples = event.profiler_samples.samples
        if event.category != "compute" or event.phase != "finish" or not samples:
            return ""
        name = f"{function_name(getattr(event.timeline, 'f', None))} [{thunk_id(event)}]"
        svg, path = _write(".svg", flame_svg(samples, name), self.folder), ""
        try:
            path = _write(".speedscope.json", speedscope(samples, name), self.folder)
        finally:
            if not path:
                _remove(svg)
        return ProfileHandle(svg, path)


def _write(suffix: str, text: str, folder: str | os.PathLike[str] | None) -> str:
    with forks.held_off:
        fd, path = tempfile.mkstemp(suffix, "otel-timespan-", folder)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            os.unlink(path)
