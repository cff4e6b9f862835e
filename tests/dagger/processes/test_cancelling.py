"""Cancelled, timed-out and halted bodies on workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.processes.pool import pool
from tests.backends import eventually
from tests.dagger.processes.bodies import add, boom, note, spin, stay, until


class Files:
    """Places for the files by which a test and bodies see each other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getattr__(self, name: str) -> str:
        return str(self.folder / name)

    def came(self, name: str) -> bool:
        """Whether a body made it, soon."""
        return until(str(self.folder / name))


@pytest.fixture
def files(tmp_path: Path) -> Any:
    """In the end everybody goes on."""
    files = Files(tmp_path)
    yield files
    for name in ("go", "go2"):
        note(getattr(files, name))


def test_a_running_body_is_given_up(on_workers: D.Context, two_workers: list[int], files: Files) -> None:
    """Fetchers get their error at once, its slot is free for others, and the body may see it."""

    def looks(begun: str, seen: str) -> None:
        note(begun)
        end = time.monotonic() + 20
        while not D.task_cancelled() and time.monotonic() < end:
            time.sleep(0.002)
        Path(seen).write_text(f"{D.task_cancelled()} {D.task_cancelled(must_force=True)}")

    here = D.Options(scope=D.scope(worker=two_workers[0]))
    task = D.spawn(looks, here, files.begun, files.seen)
    below = D.spawn(add, task)
    assert files.came("begun")
    D.cancel(task)
    for one in (task, below):
        with pytest.raises(D.DTaskCancelledError):
            D.fetch(one)
    assert files.came("seen") and eventually(lambda: Path(files.seen).read_text()) == "True False"
    held = D.spawn(stay, here, files.begun2, files.go)
    assert files.came("begun2")
    D.cancel(held, graceful=False)
    assert D.fetch(D.spawn(add, here, 3)) == 3  # though that body goes on


def test_what_was_sent_and_has_not_begun_is_withdrawn(
    on_workers: D.Context, two_workers: list[int], files: Files
) -> None:
    """It never runs."""
    here = D.Options(scope=D.scope(worker=two_workers[0]))
    gate = D.spawn(stay, here, files.begun, files.go)
    assert files.came("begun")
    late = [D.spawn(note, here, files.ran) for _ in range(3)]
    forced = D.spawn(note, here, files.ran)
    eventually(lambda: len(pool.remotes[two_workers[0]].flights) > 1)
    for task in late:
        D.cancel(task)
        assert task.isready()
    D.cancel(forced, force=True)
    D.cluster.run(two_workers[0], D.myid)  # by now it has heard of that
    note(files.go)
    assert D.fetch(gate) == "went on"
    with pytest.raises(D.DTaskCancelledError):
        D.fetch(forced)
    D.fetch(D.spawn(add, here, 1))
    assert not Path(files.ran).exists()


def test_a_running_body_is_interrupted(on_workers: D.Context, files: Files) -> None:
    """With `force`: fetchers get their error when it has ended there."""
    task = D.spawn(spin, files.begun, files.ended)
    assert files.came("begun")
    D.cancel(task, force=True)
    with pytest.raises(D.DTaskCancelledError):
        D.fetch(task, timeout=30)
    assert Path(files.ended).read_text() == "TaskCancelled"


def test_a_body_that_waits_is_interrupted(on_workers: D.Context, files: Files) -> None:
    """In `fetch`; its own task goes on."""

    def waits(go: str, ended: str, begun: str) -> None:
        try:
            D.fetch(D.spawn(stay, begun, go))
        except BaseException as error:
            Path(ended).write_text(type(error).__name__)
            raise

    task = D.spawn(waits, files.go, files.ended, files.begun)
    assert files.came("begun")
    D.cancel(task, force=True)
    with pytest.raises(D.DTaskCancelledError):
        D.fetch(task, timeout=30)
    assert Path(files.ended).read_text() == "TaskCancelled"


def test_bodies_cancel_their_tasks(on_workers: D.Context, files: Files) -> None:
    """When `cancel` returns the task is done; by its number and all together, too."""

    def body(begun: str, go: str) -> Any:
        task = D.spawn(stay, begun, go)
        until(begun)
        D.cancel(task)
        first = task.isready()
        other = D.spawn(stay, begun, go)
        D.cancel(other.id)
        D.cancel(other.id)
        errors = []
        for one in (task, other):
            try:
                D.fetch(one)
            except D.DTaskCancelledError as error:
                errors.append(str(D.unwrap_exception(error)) == f"task {one.id} was cancelled")
        with pytest.raises(D.InvalidOptionError, match="cancel takes"):
            D.cancel("all")  # type: ignore[arg-type]
        return first, errors

    assert D.fetch(D.spawn(body, files.begun, files.go)) == (True, [True, True])


def test_a_body_cancels_itself(on_workers: D.Context, files: Files) -> None:
    """By force the call raises in it."""

    def body(ended: str) -> None:
        try:
            D.cancel(D.task_id(), force=True)
            time.sleep(20)
        except BaseException as error:
            Path(ended).write_text(type(error).__name__)
            raise

    task = D.spawn(body, files.ended)
    with pytest.raises(D.DTaskCancelledError):
        D.fetch(task, timeout=30)
    assert Path(files.ended).read_text() == "TaskCancelled"


def test_a_body_that_takes_too_long(on_workers: D.Context, files: Files) -> None:
    """Its task fails, is not tried again, and its slot is free."""
    task = D.spawn(stay, D.Options(timeout=0.1, retries=5), files.begun, files.go)
    with pytest.raises(D.TaskTimeoutError, match=r"ran longer than its timeout of 0\.1 s"):
        D.fetch(task, timeout=30)
    tasks = [D.spawn(add, n) for n in range(20)]
    assert D.fetch_all(tasks) == list(range(20))
    nested = D.spawn(
        lambda begun, go: D.fetch(D.spawn(stay, D.Options(timeout=0.1), begun, go)), files.begun2, files.go
    )
    with pytest.raises(D.DTaskFailedError) as caught:
        D.fetch(nested, timeout=30)
    assert isinstance(D.unwrap_exception(caught.value), D.TaskTimeoutError)


def test_retries_of_nested_tasks(on_workers: D.Context, files: Files) -> None:
    """The body sees the last attempt only."""

    def flaky(path: str) -> int:
        attempts = len(Path(path).read_text()) if Path(path).exists() else 0
        Path(path).write_text("x" * (attempts + 1))
        if attempts < 2:
            boom()
        return attempts

    assert D.fetch(D.spawn(lambda path: D.fetch(D.spawn(flaky, D.Options(retries=3), path)), files.count)) == 2


def test_a_halt_ends_everything(two_workers: list[int], files: Files) -> None:
    """Bodies there are given up; nested ones, too; workers serve the next scheduler."""
    with D.Context(procs=two_workers):
        outer = D.spawn(lambda begun, go: D.fetch(D.spawn(stay, begun, go)), files.begun, files.go)
        assert files.came("begun")
        D.cancel(halt_sch=True)
        with pytest.raises((D.TaskCancelled, D.DTaskCancelledError)):
            D.fetch(outer)
        assert D.fetch_all([D.spawn(add, n) for n in range(10)]) == list(range(10))
    eventually(lambda: all(not remote.paused for remote in pool.remotes.values()))


def test_a_context_left_by_an_interrupt(two_workers: list[int], files: Files) -> None:
    """Does not wait for bodies on workers."""
    with pytest.raises(KeyboardInterrupt), D.Context(procs=two_workers):
        task = D.spawn(stay, files.begun, files.go)
        assert files.came("begun")
        raise KeyboardInterrupt
    with pytest.raises(D.TaskCancelled):
        D.fetch(task)
    with D.Context(procs=two_workers):
        assert D.fetch(D.spawn(add, 1)) == 1


def test_a_coroutine_is_cancelled(on_workers: D.Context, files: Files) -> None:
    """As asyncio does it."""

    async def waits(begun: str, ended: str) -> None:
        import asyncio

        note(begun)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            note(ended)
            raise

    task = D.spawn(waits, files.begun, files.ended)
    assert files.came("begun")
    D.cancel(task)
    with pytest.raises(D.DTaskCancelledError):
        D.fetch(task)
    assert files.came("ended")
