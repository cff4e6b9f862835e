"""The options of a task as keywords, for type checkers: what `**options` takes in `map` and its like.

Made from options.py by `python -m otel_timespan.dagger.options keywords`; a test compares. Not loaded at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypedDict

from ..places.devices import StorageDevice
from ..places.processors import Processor
from ..places.scopes import Scope

__all__ = ["TaskKeywords"]


class TaskKeywords(TypedDict, total=False):
    """The names of `Options`; see there."""

    propagates: Iterable[str] | None
    processor: Processor | None
    scope: Scope | None
    compute_scope: Scope | None
    result_scope: Scope | None
    exec_scope: Scope | None
    single: int | None
    proclist: Iterable[type[Processor]] | Callable[[Processor], Any] | None
    get_result: bool | None
    meta: bool | None
    syncdeps: Collection[Any] | None
    time_util: Mapping[Any, float] | None
    alloc_util: Mapping[Any, float] | None
    occupancy: Mapping[Any, float] | None
    checkpoint: Callable[..., Any] | None
    restore: Callable[..., Any] | None
    storage: StorageDevice | None
    storage_root_tag: Any
    storage_leaf_tag: Any
    storage_retain: bool | None
    name: str | None
    tag: int | None
    stream_input_buffer_amount: int | None
    stream_output_buffer_amount: int | None
    stream_buffer_type: Callable[..., Any] | None
    stream_max_evals: int | None
    acceleration: Any
    return_type: Any
    retries: int | None
    retry_delay: float | Callable[[int], float] | None
    retry_on: type[Exception] | Collection[type[Exception]] | None
    worker_losses: int | None
    timeout: float | None
    limit: str | Iterable[str] | None
