"""Graphics processors as processors of the scheduler, over CuPy or PyTorch.

`enable()` looks for a library and for devices; where there are none it does nothing. From then on each device is
a `GPUProc`: a task that is sent there (`scope=gpu_scope()`) gets its numpy arrays as arrays of the device, runs
with the device and a stream of its own current, and leaves its result on the device, for the next task there
or, moved back, for one on a thread.

It is also the worked example of docs/processors.md: how to write a processor of your own.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import forks
from ..dagger.bodies.interrupts import see_through
from ..dagger.places.processors import (
    MemorySpace,
    OSProc,
    Processor,
    add_processor_callback,
    delete_processor_callback,
    move,
    myid,
)
from ..dagger.places.scopes import ProcessorTypeScope, Scope
from ..errors import InvalidOptionError

__all__ = ["GPUMemorySpace", "GPUProc", "disable", "enable", "gpu_scope"]

NAME = "otel_timespan.gpu"
"""Under this name the devices are discovered."""

# --- the libraries --------------------------------------------------------------------------------------


class _Library:
    """What a processor needs of CuPy or PyTorch. Made for a module that was imported."""

    array: type
    """The type of its arrays."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._streams: dict[int, Any] = {}
        self._lock = forks.lock()

    def count(self) -> int:
        """How many devices there are."""
        raise NotImplementedError

    def device(self, number: int) -> Any:
        """A context in which this device is current."""
        raise NotImplementedError

    def new_stream(self, number: int) -> Any:
        """A stream of this device."""
        raise NotImplementedError

    def current(self, stream: Any) -> Any:
        """A context in which this stream is current."""
        raise NotImplementedError

    def put(self, x: Any, number: int) -> Any:
        """The array, of the device or of main memory, as one of this device."""
        raise NotImplementedError

    def get(self, x: Any) -> Any:
        """An array of a device as one of numpy."""
        raise NotImplementedError

    def stream(self, number: int) -> Any:
        """The stream of this device that all its tasks use."""
        with self._lock:
            if number not in self._streams:
                self._streams[number] = self.new_stream(number)
            return self._streams[number]


class _CuPy(_Library):
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.array = module.ndarray

    def count(self) -> int:
        return int(self.module.cuda.runtime.getDeviceCount())

    def device(self, number: int) -> Any:
        return self.module.cuda.Device(number)

    def new_stream(self, number: int) -> Any:
        with self.device(number):
            return self.module.cuda.Stream(non_blocking=True)

    def current(self, stream: Any) -> Any:
        return stream

    def put(self, x: Any, number: int) -> Any:
        with self.device(number):
            return self.module.asarray(x)

    def get(self, x: Any) -> Any:
        return self.module.asnumpy(x)


class _Torch(_Library):
    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.array = module.Tensor

    def count(self) -> int:
        return int(self.module.cuda.device_count()) if self.module.cuda.is_available() else 0

    def device(self, number: int) -> Any:
        return self.module.cuda.device(number)

    def new_stream(self, number: int) -> Any:
        return self.module.cuda.Stream(device=number)

    def current(self, stream: Any) -> Any:
        return self.module.cuda.stream(stream)

    def put(self, x: Any, number: int) -> Any:
        return self.module.as_tensor(x, device=f"cuda:{number}")

    def get(self, x: Any) -> Any:
        return x.detach().cpu().numpy()


_KINDS: dict[str, type[_Library]] = {"cupy": _CuPy, "torch": _Torch}
_found: dict[str, _Library] = {}
_rules: list[tuple[type, type, Any]] = []
_lock = forks.lock()


def _load(name: str) -> _Library | None:
    """The library, if it is installed and has a device."""
    if name in _found:
        return _found[name]
    try:
        library = _KINDS[name](importlib.import_module(name))
        if not library.count():
            return None
    except Exception:  # not installed, or installed without a driver: either way there is no device
        return None
    return _found.setdefault(name, library)


# --- the processor --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GPUMemorySpace(MemorySpace):
    """The memory of one device of a worker."""

    owner: int
    number: int
    library: str

    def processors(self) -> frozenset[Processor]:
        """The one that has it."""
        return frozenset((GPUProc(self.owner, self.number, self.library),))


@dataclass(frozen=True)
class GPUProc(Processor):
    """One device of a worker: `number` as the library (`cupy` or `torch`) counts them, from 0.

    Takes part only where a scope or `proclist` asks for it.
    """

    owner: int
    number: int
    library: str

    def get_parent(self) -> OSProc:
        """Its worker."""
        return OSProc(self.owner)

    def iscompatible_func(self, opts: Any, f: Any) -> bool:
        """True: what a function does with the arrays of a device is its own affair."""
        return True

    def iscompatible_arg(self, opts: Any, argtype: type) -> bool:
        """True: what is no array stays as it is."""
        return True

    @see_through
    def execute(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call `f` with the device and its stream current; wait for what it started there."""
        library = _loaded(self.library)
        stream = library.stream(self.number)
        with library.device(self.number), library.current(stream):
            try:
                return f(*args, **kwargs)
            finally:
                # A task is done when its result is: others may read it from any stream.
                stream.synchronize()

    def memory_spaces(self) -> frozenset[MemorySpace]:
        """The memory of the device."""
        return frozenset((GPUMemorySpace(self.owner, self.number, self.library),))

    def short_name(self) -> str:
        """`W: <owner>, GPU: <number>`."""
        return f"W: {self.owner}, GPU: {self.number}"


def _loaded(name: str) -> _Library:
    library = _load(name)
    if library is None:
        raise InvalidOptionError(f"there is no device of {name} in this process: call gpu.enable() on its worker")
    return library


def gpu_scope(inner: Scope | None = None) -> Scope:
    """Where graphics processors are, all or those within `inner`: `Options(scope=gpu_scope())`."""
    return ProcessorTypeScope(GPUProc) if inner is None else ProcessorTypeScope(GPUProc, inner)


# --- switching on and off -------------------------------------------------------------------------------


def enable(library: str | None = None) -> list[GPUProc]:
    """Have the devices of this worker found from now on: the list of them, empty where there are none.

    `library`: "cupy" or "torch"; None takes the first that is there. Arrays of numpy move to a device, and its
    arrays back, as tasks need them. Idempotent and thread-safe; never fails for want of a library or device.
    Raises `InvalidOptionError` for another name.
    """
    if library is not None and library not in _KINDS:
        raise InvalidOptionError(f"library must be one of {', '.join(_KINDS)} or None, not {library!r}")
    with _lock:
        name = next((each for each in ([library] if library else _KINDS) if _load(each) is not None), None)
        if name is None:
            return []
        _add_rules(_found[name].array)
        add_processor_callback(lambda: _devices(name), NAME)
        return _devices(name)


def disable() -> None:
    """Forget the devices of this worker, and how arrays move to them."""
    with _lock:
        delete_processor_callback(NAME)
        for rule in _rules:
            move.unregister(*rule)
        _rules.clear()
        _found.clear()


def _devices(name: str) -> list[GPUProc]:
    return [GPUProc(myid(), number, name) for number in range(_loaded(name).count())]


def _add_rules(array: type) -> None:
    if _rules:
        return
    wanted: list[tuple[type, type, Any, Any]] = [
        (Processor, GPUProc, array, _to_device),
        (GPUProc, Processor, array, _to_host),
        (GPUProc, GPUProc, array, _to_device),
    ]
    with contextlib.suppress(ImportError):
        wanted.append((Processor, GPUProc, importlib.import_module("numpy").ndarray, _to_device))
    for source, target, kind, rule in wanted:
        move.register(source, target, kind)(rule)
        _rules.append((source, target, kind))


def _to_device(source: Processor, target: GPUProc, x: Any) -> Any:
    return _loaded(target.library).put(x, target.number)


def _to_host(source: GPUProc, target: Processor, x: Any) -> Any:
    return _loaded(source.library).get(x)
