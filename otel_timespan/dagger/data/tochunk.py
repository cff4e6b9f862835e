"""`tochunk`: a value that is here, as a chunk.

See docs/data.md.
"""

from __future__ import annotations

from types import NoneType
from typing import Any, TypeVar, overload

from ...errors import InvalidOptionError
from ..places.processors import OSProc, Processor
from ..places.scopes import AnyScope, Scope
from .chunks import Chunk, new_handle
from .spilling import keep_chunk

__all__ = ["tochunk"]

_T = TypeVar("_T")


@overload
def tochunk(
    x: Chunk[_T],
    proc: Processor | None = None,
    scope: Scope | None = None,
    *,
    device: Any = None,
    type: type | None = None,
    rewrap: bool = False,
    tag: Any = None,
    leaf_tag: Any = None,
    retain: bool = False,
) -> Chunk[_T]: ...
@overload
def tochunk(
    x: _T,
    proc: Processor | None = None,
    scope: Scope | None = None,
    *,
    device: Any = None,
    type: type | None = None,
    rewrap: bool = False,
    tag: Any = None,
    leaf_tag: Any = None,
    retain: bool = False,
) -> Chunk[_T]: ...
def tochunk(
    x: Any,
    proc: Processor | None = None,
    scope: Scope | None = None,
    *,
    device: Any = None,
    type: type | None = None,
    rewrap: bool = False,
    tag: Any = None,
    leaf_tag: Any = None,
    retain: bool = False,
) -> Chunk:
    """Wrap a value that is here as a chunk of `proc` (default: this worker's `OSProc`), usable in `scope`.

    A chunk passed in is returned unchanged unless `rewrap`. `device`: the storage device that keeps the
    value; by default plain memory, or where `enable_disk_caching` is in force its device, except for small
    values and those that refer to something of this process (tasks, chunks, raw pointers). `tag`,
    `leaf_tag` and `retain` are for the device (see `StorageRef`).

    Raises `InvalidOptionError` where `type` says that there is no value although there is one, and for
    wrong values; `StorageError` where the device can't keep it.
    """
    if not isinstance(proc, (Processor, NoneType)):
        raise InvalidOptionError(f"tochunk: proc must be a Processor, not {proc!r}")
    if not isinstance(scope, (Scope, NoneType)):
        raise InvalidOptionError(f"tochunk: scope must be a Scope, not {scope!r}")
    if isinstance(x, Chunk):
        if not rewrap:
            return x
        return Chunk(x.handle, proc or x.processor, scope or x.scope, type or x.chunktype)
    if type is NoneType and x is not None:
        raise InvalidOptionError(f"tochunk: type=NoneType was given for a {x.__class__.__name__}")
    ref = keep_chunk(x, device, tag, leaf_tag, retain) or new_handle(x)
    _ = ref.nbytes  # estimated now: the caller may change the value later
    return Chunk(ref, proc or OSProc(), scope or AnyScope(), type)
