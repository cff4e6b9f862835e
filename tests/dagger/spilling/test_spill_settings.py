"""What spills at all: `enable_disk_caching`, the environment, and values that must stay in their process."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.data import caching as module
from otel_timespan.dagger.data.safety import storage_safe
from otel_timespan.dagger.data.spilling import StoredDRef
from otel_timespan.dagger.storage import (
    RecencyAllocator,
    mem_limit,
)
from otel_timespan.errors import InvalidOptionError
from tests.dagger.spilling.blocks import KIB, MIB, block, first, forget_settings, run


class TestGlobalDevice:
    def test_off_by_default(self, one: D.Context) -> None:
        """Nothing is configured, and results are plain handles."""
        assert D.global_device() is None
        task = D.spawn(block, 1)
        D.wait(task)
        assert type(task._outcome) is D.DRef
        assert task._core.devices is None

    def test_limits(self, caching: Callable[..., bool]) -> None:
        """Each worker gets its share of the percentage, those that come later change the shares."""
        assert caching() is True
        device = D.global_device()
        assert isinstance(device, RecencyAllocator)
        assert (device.mem_limit, device.device_limit) == (mem_limit(MIB, 30, 1), 16384 * MIB)
        with D.Context(driver=D.InlineDriver({1: 1, 2: 1, 3: 1})) as context:
            D.fetch(D.spawn(int))
            devices = [D.global_device(p.pid) for p in context.procs]
            assert {d.mem_limit for d in devices} == {mem_limit(MIB, 30, 3)}  # type: ignore[union-attr]
            assert len(set(devices)) == 3
        assert caching(50, 1) is True
        again = D.global_device()
        assert isinstance(again, RecencyAllocator)
        assert again is not device
        assert (again.mem_limit, again.device_limit, again.policy) == (MIB // 2, MIB, "MRU")

    def test_some_workers_only(self, caching: Callable[..., bool]) -> None:
        """`processes` names those that spill."""
        with D.Context(driver=D.InlineDriver({1: 1, 2: 1})):
            assert caching(30, processes=[2]) is True
            assert D.global_device(1) is None
            assert isinstance(D.global_device(2), RecencyAllocator)
            for bad in ([], [3], "12", 1):
                with pytest.raises(InvalidOptionError, match="processes"):
                    caching(30, processes=bad)

    def test_results_spill(self, context: D.Context, caching: Callable[..., bool]) -> None:
        """Without any option on a task, in contexts that run already; values are right, memory stays in its limit."""
        D.fetch(D.spawn(int))
        assert caching(20, policy="LRU") is True
        tasks = [D.spawn(block, n) for n in range(20)]
        for _ in range(2):
            assert [D.fetch(D.spawn(first, task)) for task in tasks] == list(range(20))
        devices = [D.global_device(p.pid) for p in context.procs]
        for device in devices:
            assert isinstance(device, RecencyAllocator)
            assert device.mem_used <= device.mem_limit
        assert sum(d.stats.evictions for d in devices) > 0  # type: ignore[union-attr]

    def test_what_stays_in_memory(self, one: D.Context, caching: Callable[..., bool]) -> None:
        """Numbers, small values, and what refers to something of this process."""
        caching(30)
        chunk = D.tochunk(1)
        for value in (1, None, "short", b"x" * 1023, [chunk] * 1000, {"a": chunk, "b": block(1)}):
            kept = D.fetch(D.spawn(lambda v=value: v), raw=True).handle
            assert type(kept) is D.DRef, value
        assert type(D.fetch(D.spawn(block, 1), raw=True).handle) is StoredDRef
        assert type(D.tochunk(block(1)).handle) is StoredDRef
        assert type(D.tochunk([chunk] * 1000).handle) is D.DRef

    def test_switching_off(self, one: D.Context, caching: Callable[..., bool]) -> None:
        """New results stay in memory, what was spilled can still be read."""
        caching(10)
        tasks = [D.spawn(block, n) for n in range(6)]
        D.waitall(tasks)
        D.disable_disk_caching()
        assert D.global_device() is None
        assert type(D.fetch(D.spawn(block, 1), raw=True).handle) is D.DRef
        assert [D.fetch(task)[0] for task in tasks] == list(range(6))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"ram_percentage_limit": 0},
            {"ram_percentage_limit": 101},
            {"ram_percentage_limit": "30"},
            {"ram_percentage_limit": True},
            {"disk_limit_mb": 0},
            {"disk_limit_mb": -1},
            {"disk_limit_mb": "1"},
            {"policy": "FIFO"},
        ],
        ids=str,
    )
    def test_bad_settings(self, caching: Callable[..., bool], arguments: dict[str, Any]) -> None:
        """They are refused, and nothing is switched on."""
        with pytest.raises(ValueError, match="must be"):
            caching(**arguments)
        assert D.global_device() is None

    def test_a_folder_that_cant_be(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A file in its place is an error at once."""
        (tmp_path / "file").write_text("")
        with pytest.raises(InvalidOptionError, match="storage folder"):
            D.enable_disk_caching(directory=tmp_path / "file")
        assert D.global_device() is None
        forget_settings()

    def test_total_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """psutil's number where it is installed, else the system's: the same."""
        psutil = pytest.importorskip("psutil")
        there = psutil.virtual_memory().total
        assert module.total_memory() == there
        monkeypatch.setitem(sys.modules, "psutil", None)
        assert module.total_memory() == pytest.approx(there, rel=0.01)


class TestEnvironment:
    @pytest.fixture(autouse=True)
    def _off(self) -> Iterator[None]:
        forget_settings()
        yield
        forget_settings()

    def test_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """On: 8 GiB in memory, 32 GiB on disk, MRU."""
        monkeypatch.setenv("OTEL_TIMESPAN_SPILL", "on")
        device = D.global_device()
        assert isinstance(device, RecencyAllocator)
        assert (device.mem_limit, device.device_limit, device.policy) == (8 * 1024 * MIB, 32 * 1024 * MIB, "MRU")
        monkeypatch.setenv("OTEL_TIMESPAN_SPILL", "off")
        assert D.global_device() is None

    def test_all_of_them(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Sizes with units, the policy, the folder; a call wins over them."""
        for name, value in {"": "1", "_MEMORY": "100KiB", "_DISK": "1.5mb", "_POLICY": "lru", "_DIR": tmp_path}.items():
            monkeypatch.setenv(f"OTEL_TIMESPAN_SPILL{name}", str(value))
        with D.Context(threads=1):
            tasks = [D.spawn(block, n) for n in range(4)]
            assert [D.fetch(task)[0] for task in tasks] == [0, 1, 2, 3]
            device = D.global_device()
            assert isinstance(device, RecencyAllocator)
            assert (device.mem_limit, device.device_limit, device.policy) == (100 * KIB, 1_500_000, "LRU")
            assert list((tmp_path / "worker-1").iterdir())
            D.disable_disk_caching()
            assert D.global_device() is None

    @pytest.mark.parametrize(
        ("name", "value"),
        [("", "maybe"), ("_MEMORY", "lots"), ("_MEMORY", "0"), ("_DISK", "-1"), ("_DISK", "1 XB"), ("_POLICY", "FIFO")],
    )
    def test_wrong_values(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        """They are named before any task runs."""
        monkeypatch.setenv("OTEL_TIMESPAN_SPILL", "on")
        monkeypatch.setenv(f"OTEL_TIMESPAN_SPILL{name}", value)
        with (
            D.Context(threads=1),
            pytest.raises(InvalidOptionError, match=f"OTEL_TIMESPAN_SPILL{name}='{value}'"),
        ):
            D.spawn(pytest.fail)

    def test_files_go_with_the_process(self, tmp_path: Path) -> None:
        """At the end of a program that spilled nothing is left of it, and it ends well."""
        said = run(
            f"""
            import os
            os.environ |= {{"OTEL_TIMESPAN_SPILL": "on", "OTEL_TIMESPAN_SPILL_MEMORY": "100KiB"}}
            os.environ["TMPDIR"] = {str(tmp_path)!r}
            from otel_timespan import dagger as D
            tasks = [D.spawn(bytearray, 40_000) for _ in range(6)]
            print(sum(len(D.fetch(task)) for task in tasks), len(os.listdir({str(tmp_path)!r})))
            """
        )
        assert said.split() == ["240000", "1"]
        assert not list(tmp_path.iterdir())


def test_readable_state(one: D.Context, caching: Callable[..., bool]) -> None:
    """`eager_state()` says how full the devices are."""
    D.fetch(D.spawn(int))
    state = D.eager_state()
    assert state is not None
    assert state.worker_storage_pressure == state.worker_storage_capacity == {}
    caching(50)
    task = D.spawn(block, 1)
    D.wait(task)
    device = D.global_device()
    assert state.worker_storage_pressure == {1: {device: 40 * KIB}}
    assert state.worker_storage_capacity == {1: {device: MIB // 2}}
    assert D.fetch(task)[0] == 1


@dataclass
class Holder:
    """Something with a field."""

    inside: Any


@dataclass(slots=True)
class Slotted:
    """Something with a slot."""

    inside: Any


class TestSafety:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda x: x,
            lambda x: [x],
            lambda x: {"a": [x]},
            lambda x: {1: (2, {3: x})},
            lambda x: Holder([Slotted(x)]),
            lambda x: functools.partial(len, x),
            lambda x: [0] * 5000 + [x],
        ],
    )
    @pytest.mark.filterwarnings("ignore:delayed, compute and collect:DeprecationWarning")
    def test_what_refers_to_this_process(self, one: D.Context, wrap: Callable[[Any], Any]) -> None:
        """Tasks, thunks, chunks, handles, shards and pointers, at the top, in containers and in fields."""
        chunk = D.tochunk(1)
        thunk = D.delayed(len)()
        pointer = ctypes.POINTER(ctypes.c_int)
        for bound in (D.spawn(int), thunk, chunk, chunk.handle, D.shard(int), pointer(), ctypes.c_void_p(1)):
            assert not storage_safe(wrap(bound)), bound
        assert not storage_safe(wrap((pointer * 2)()))

    def test_arrays_of_objects(self) -> None:
        """The elements count, of records too; plain arrays are not looked into."""
        np = pytest.importorskip("numpy")
        array = np.empty(3, object)
        assert storage_safe(array)
        array[1] = D.tochunk(1)
        assert not storage_safe(array)
        records = np.zeros(2, dtype=[("a", int), ("b", object)])
        records[1]["b"] = D.tochunk(1)
        assert not storage_safe(records)
        assert storage_safe(np.zeros(1000))

    def test_what_is_safe(self) -> None:
        """Plain values of any depth, cycles, large ones, functions and classes."""
        cycle: list[Any] = []
        cycle.append(cycle)
        for value in (1, "a", None, [{}], cycle, [1] * 1_000_000, Holder(Slotted(1)), len, Holder, ctypes.c_int(1)):
            assert storage_safe(value)

    def test_objects_that_cant_be_looked_at(self) -> None:
        """Nothing is raised: they stay in memory."""

        class Hostile(list[Any]):
            def __iter__(self) -> Any:
                raise RuntimeError

        assert not storage_safe(Hostile())


def test_sizes_of_objects() -> None:
    """An object counts what its attributes take; so spilling sees it."""
    np = pytest.importorskip("numpy")
    held = Holder(np.zeros(10_000))
    assert 80_000 <= D.approx_size(held) <= 81_000  # type: ignore[operator]
    assert 800_000 <= D.approx_size([Holder(np.zeros(10_000)) for _ in range(10)]) <= 810_000  # type: ignore[operator]
    round_ = Holder(None)
    round_.inside = round_
    assert D.approx_size(round_) is not None
