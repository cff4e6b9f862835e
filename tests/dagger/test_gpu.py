"""Graphics processors. There is none here: a fake of CuPy's interface, over numpy, stands for the library."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.errors import InvalidOptionError
from otel_timespan.integrations import gpu

np = pytest.importorskip("numpy")

DEADLINE_S = 60.0


class FakeArray:
    """An array of a device: numpy's, and where it is said to be."""

    def __init__(self, data: Any, device: int) -> None:
        self.data, self.device = data, device

    def __mul__(self, factor: float) -> FakeArray:
        return FakeArray(self.data * factor, FakeCuPy.current_device())

    def sum(self) -> FakeArray:
        return FakeArray(self.data.sum(keepdims=True), self.device)


class FakeCuPy(types.ModuleType):
    """A fake of the module `cupy`: devices that are counted, streams that are remembered, arrays that are tagged."""

    ndarray = FakeArray
    _local = threading.local()

    def __init__(self, devices: int) -> None:
        super().__init__("cupy")
        self.copies: list[str] = []
        self.synchronized: list[int] = []
        fake = self

        class Device:
            def __init__(self, number: int) -> None:
                self.number = number

            def __enter__(self) -> Device:
                self.before = FakeCuPy.current_device()
                FakeCuPy._local.device = self.number
                return self

            def __exit__(self, *error: object) -> None:
                FakeCuPy._local.device = self.before

        class Stream:
            def __init__(self, non_blocking: bool = False) -> None:
                self.device = FakeCuPy.current_device()

            def __enter__(self) -> Stream:
                FakeCuPy._local.stream = self
                return self

            def __exit__(self, *error: object) -> None:
                FakeCuPy._local.stream = None

            def synchronize(self) -> None:
                fake.synchronized.append(self.device)

        def count() -> int:
            if devices < 0:
                raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
            return devices

        runtime = types.SimpleNamespace(getDeviceCount=count)
        self.cuda = types.SimpleNamespace(runtime=runtime, Device=Device, Stream=Stream)

    @classmethod
    def current_device(cls) -> int:
        return int(getattr(cls._local, "device", 0))

    def asarray(self, x: Any) -> FakeArray:
        here = self.current_device()
        if isinstance(x, FakeArray):
            if x.device != here:
                self.copies.append(f"{x.device} to {here}")
            return x if x.device == here else FakeArray(x.data, here)
        self.copies.append(f"host to {here}")
        return FakeArray(np.asarray(x), here)

    def asnumpy(self, x: FakeArray) -> Any:
        self.copies.append(f"{x.device} to host")
        return x.data


@pytest.fixture
def switched_off() -> Iterator[None]:
    """No device is left behind."""
    gpu.disable()
    yield
    gpu.disable()


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, switched_off: None) -> Iterator[FakeCuPy]:
    """The fake with two devices in the place of `cupy`, enabled."""
    fake = FakeCuPy(2)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    assert gpu.enable() == [gpu.GPUProc(1, 0, "cupy"), gpu.GPUProc(1, 1, "cupy")]
    yield fake


@pytest.fixture
def context(cupy: FakeCuPy) -> Iterator[D.Context]:
    """Two threads, beside the devices."""
    with D.Context(threads=2) as entered:
        yield entered


def on(number: int) -> D.Options:
    """Options of tasks of this device."""
    return D.Options(scope=D.ExactScope(gpu.GPUProc(1, number, "cupy")))


def double(a: Any) -> Any:
    """Twice, and where that was."""
    assert type(D.task_processor()) is gpu.GPUProc
    assert FakeCuPy.current_device() == D.task_processor().number
    assert FakeCuPy._local.stream.device == D.task_processor().number
    return a * 2


def test_arrays_go_there_stay_there_and_come_back(cupy: FakeCuPy, context: D.Context) -> None:
    """numpy's arrays become the device's for a body, results stay, and a task on a thread gets numpy's again."""
    first = D.spawn(double, on(1), np.arange(3))
    second = D.spawn(double, on(1), first)
    total = D.spawn(lambda a: a.tolist(), second)
    assert D.fetch(total, timeout=DEADLINE_S) == [0, 4, 8]
    assert cupy.copies == ["host to 1", "1 to host"]
    assert cupy.synchronized == [1, 1]
    assert D.fetch(first).device == 1


def test_devices_hand_on_to_each_other(cupy: FakeCuPy, context: D.Context) -> None:
    """From one device to another there is one copy, and none through main memory."""
    first = D.spawn(double, on(0), np.ones(2))
    second = D.spawn(double, on(1), first)
    assert D.fetch(second, timeout=DEADLINE_S).data.tolist() == [4.0, 4.0]
    assert cupy.copies == ["host to 0", "0 to 1"]


def test_any_device_will_do(cupy: FakeCuPy, context: D.Context) -> None:
    """`gpu_scope()` is all devices; tasks that do not ask for one run on threads, as before."""
    with D.with_options(scope=gpu.gpu_scope()):
        tasks = [D.spawn(double, np.ones(1)) for _ in range(20)]
    assert {type(task._slot.processor) for task in tasks if D.wait(task) is None} == {gpu.GPUProc}
    assert type(D.fetch(D.spawn(D.task_processor))) is D.ThreadProc


def test_what_is_no_array_stays_as_it_is(cupy: FakeCuPy, context: D.Context) -> None:
    """Numbers, texts and functions are not copied."""
    assert D.fetch(D.spawn(max, on(0), 3, 5), timeout=DEADLINE_S) == 5
    assert cupy.copies == []


def test_a_failing_kernel_fails_its_task(cupy: FakeCuPy, context: D.Context) -> None:
    """The error of a body on a device is that of its task; the stream is waited for, and the device goes on."""

    def kernel(a: Any) -> None:
        raise ValueError("illegal address")

    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(D.spawn(kernel, on(0), np.ones(1)), timeout=DEADLINE_S)
    assert isinstance(caught.value.ex, ValueError)
    assert cupy.synchronized == [0]
    assert D.fetch(D.spawn(double, on(0), np.ones(1)), timeout=DEADLINE_S).data.tolist() == [2.0]


def test_a_body_on_a_device_can_be_interrupted(cupy: FakeCuPy, context: D.Context) -> None:
    """`cancel(force=True)` reaches the user's code under `execute`, and the stream is waited for."""
    begun = threading.Event()
    over: list[bool] = []

    def forever(a: Any) -> None:
        begun.set()
        while not over:
            pass

    task = D.spawn(forever, on(0), np.ones(1))
    assert begun.wait(DEADLINE_S)
    task.cancel(force=True)
    try:
        with pytest.raises(D.DTaskCancelledError):
            task.fetch(timeout=DEADLINE_S)
    finally:
        over.append(True)
    assert cupy.synchronized == [0]


def test_spaces_and_names(cupy: FakeCuPy) -> None:
    """Each device has one memory, which it alone reaches; it is found below its worker."""
    device = gpu.GPUProc(1, 1, "cupy")
    space = gpu.GPUMemorySpace(1, 1, "cupy")
    assert D.memory_spaces(device) == {space}
    assert space.processors() == {device}
    assert D.get_parent(device) == D.OSProc(1)
    assert not D.default_enabled(device)
    assert D.short_name(device) == "W: 1, GPU: 1"
    assert device in D.get_processors(D.OSProc(1))
    gpu.disable()
    assert device not in D.get_processors(D.OSProc(1))


@pytest.mark.parametrize("devices", [0, -1])
def test_no_device_is_no_error(
    devices: int, switched_off: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A library without devices, or without a driver: nothing is found, nothing is said, and nothing changes."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setitem(sys.modules, "cupy", FakeCuPy(devices))
    assert gpu.enable("cupy") == []
    assert not D.move.custom or not gpu._rules
    assert {type(p) for p in D.get_processors(D.OSProc(1))} == {D.ThreadProc}
    assert not caplog.records


def test_no_library_is_no_error(switched_off: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither library is installed: `enable` finds nothing; a task that asks for a device says what is missing."""
    for name in ("cupy", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert gpu.enable() == []
    with D.Context(threads=1):
        with pytest.raises(D.DTaskFailedError) as caught:
            D.fetch(D.spawn(int, D.Options(scope=gpu.gpu_scope())), timeout=DEADLINE_S)
        assert caught.value.ex.code == "no_processors"
    with pytest.raises(InvalidOptionError):
        gpu.enable("tensorflow")
    with pytest.raises(InvalidOptionError):
        gpu.GPUProc(1, 0, "torch").execute(int)


def test_pytorch_if_it_is_there(switched_off: None) -> None:
    """With the real PyTorch and no device `enable` finds nothing; its calls are the ones that it has."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        assert gpu.enable("torch") == []
    assert all(callable(getattr(torch.cuda, name)) for name in ("device", "stream", "Stream", "device_count"))


def test_the_page_about_processors_is_true(switched_off: None) -> None:
    """All code of docs/processors.md runs, in its order."""
    text = (Path(__file__).parents[2] / "docs" / "processors.md").read_text()
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(blocks) > 6
    module = types.ModuleType("page")
    sys.modules["page"] = module  # where dataclasses look up names
    try:
        with D.Context(threads=2):
            for block in blocks:
                exec(compile(block, "docs/processors.md", "exec"), module.__dict__)
    finally:
        del sys.modules["page"]
        D.delete_processor_callback("plotter")
        with contextlib.suppress(AttributeError):
            D.move.unregister(D.ThreadProc, module.Plotter, int)
    assert importlib.import_module("otel_timespan.integrations").__doc__
