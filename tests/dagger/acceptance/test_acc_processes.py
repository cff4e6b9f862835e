"""Robustness of whole programs: Ctrl-C, exit, fork, os._exit, deep nesting. Each runs in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.dagger.acceptance.support import finish, program, run_program

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and fork are POSIX")


def interrupt_when_ready(body: str) -> tuple[int, str, str]:
    """Start a program, send it SIGINT once it says READY, and see how it ends."""
    process: subprocess.Popen[str] = program(body)
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    if line.strip() != "READY":
        process.kill()
        pytest.fail(f"it said {line!r}: {process.communicate()}")
    process.send_signal(signal.SIGINT)
    return finish(process)


def test_ctrl_c_interrupts_a_blocked_fetch() -> None:
    """Ruling 13: Ctrl-C while the main thread is blocked in fetch raises KeyboardInterrupt there, promptly."""
    code, out, err = interrupt_when_ready(
        """
        forever, begun = threading.Event(), threading.Event()
        def body():
            begun.set()
            forever.wait()
        task = D.spawn(body)
        begun.wait()
        try:
            print("READY", flush=True)
            D.fetch(task)
        except KeyboardInterrupt:
            print("INTERRUPTED", task.isready(), flush=True)
            sys.exit(3)
        """
    )
    assert out.split() == ["INTERRUPTED", "False"] and code == 3, (code, out, err)
    assert "Traceback" not in err


@pytest.mark.parametrize("wait", ["D.wait(task)", "D.waitall([task])", "D.waitany([task])", "task.fetch(timeout=600)"])
def test_ctrl_c_interrupts_every_kind_of_wait(wait: str) -> None:
    """Ruling 13: Ctrl-C ends wait, waitall, waitany and a fetch with a timeout too."""
    code, out, err = interrupt_when_ready(
        f"""
        forever, begun = threading.Event(), threading.Event()
        def body():
            begun.set()
            forever.wait()
        task = D.spawn(body)
        begun.wait()
        try:
            print("READY", flush=True)
            {wait}
        except KeyboardInterrupt:
            sys.exit(3)
        """
    )
    assert code == 3, (code, out, err)


def test_ctrl_c_uncaught_ends_the_program() -> None:
    """Ruling 13, 19: an uncaught Ctrl-C ends the program like any Python program, though a body goes on."""
    code, out, err = interrupt_when_ready(
        """
        forever, begun = threading.Event(), threading.Event()
        def body():
            begun.set()
            forever.wait()
        task = D.spawn(body)
        queued = [D.spawn(forever.wait) for _ in range(10)]
        begun.wait()
        print("READY", flush=True)
        D.fetch(task)
        """
    )
    assert code in (-signal.SIGINT, 130), (code, out, err)
    assert "KeyboardInterrupt" in err


@pytest.mark.parametrize("driver", ["inline", "threads"])
def test_ctrl_c_in_a_helped_body_is_the_users(driver: str) -> None:
    """Ruling 13: Ctrl-C in a body that the fetching main thread runs is raised there; the task ends cancelled."""
    context = "D.Context(driver=D.InlineDriver())" if driver == "inline" else "D.Context(threads=1)"
    code, out, err = interrupt_when_ready(
        f"""
        main = threading.get_ident()
        def body():
            if threading.get_ident() != main:
                return "not helped"
            print("READY", flush=True)
            while True:
                time.sleep(0.01)
        with {context}:
            for _ in range(20_000):
                task = D.spawn(body)
                try:
                    D.fetch(task)
                except KeyboardInterrupt:
                    break
            else:
                print("READY", flush=True)
                sys.exit(9)
            try:
                D.fetch(task)
            except D.DTaskFailedError as error:
                assert isinstance(D.unwrap_exception(error), D.TaskCancelled), error
                print("CANCELLED", D.fetch(D.spawn(int, 7)), flush=True)
        sys.exit(3)
        """
    )
    if code == 9:
        pytest.fail("the main thread never helped in 20,000 fetches")
    assert out.split() == ["CANCELLED", "7"] and code == 3, (code, out, err)


def test_exit_with_running_and_queued_tasks() -> None:
    """Ruling 19: the interpreter ends although bodies run and tasks are queued; what is dropped is told in one line."""
    code, out, err = finish(
        program(
            """
            forever = threading.Event()
            running = [D.spawn(forever.wait) for _ in range(5)]
            waiting = [D.spawn(bool, t) for t in running]
            D.spawn(int).istaskstarted()
            print("END", flush=True)
            """
        )
    )
    assert (code, out.strip()) == (0, "END")
    assert "have not begun" in err and err.count("\n") == 1


def test_exit_with_a_log_and_unfinished_tasks() -> None:
    """Ruling 19, 32: with logging on and tasks unfinished the exit is prompt, and says no more than that."""
    code, out, err = finish(
        program(
            """
            D.enable_logging(metrics=True)
            forever = threading.Event()
            running = [D.spawn(forever.wait) for _ in range(3)]
            print(D.fetch(D.spawn(int, D.Options(occupancy={D.ThreadProc: 0}))), flush=True)
            """
        )
    )
    assert (code, out.strip()) == (0, "0")
    assert "have not begun" in err and err.count("\n") == 1


def test_exit_waits_for_nothing_in_a_with_block_that_was_never_left() -> None:
    """Ruling 18, 19: sys.exit from inside nested waits ends with that code."""
    code, out, err = finish(
        program(
            """
            forever = threading.Event()
            task = D.spawn(forever.wait)
            sys.exit(4)
            """
        )
    )
    assert (code, out, err) == (4, "", "")


def test_spawn_at_exit_never_hangs() -> None:
    """Ruling 19: atexit handlers may still call the scheduler: they get a result or an error of ours."""
    code, out, err = finish(
        program(
            """
            import atexit
            def late():
                try:
                    print("value", D.fetch(D.spawn(int, 5), timeout=20), flush=True)
                except (ts.TimespanError, RuntimeError) as error:
                    print("error", type(error).__name__, flush=True)
            atexit.register(late)
            D.fetch(D.spawn(int))
            """
        )
    )
    assert code == 0 and out.split()[0] in ("value", "error"), (code, out, err)


FORK = """
    import warnings
    warnings.simplefilter("ignore")
    {before}
    pid = os.fork()
    if pid == 0:
        try:
            try:
                old.fetch()
                raise AssertionError("the old task has a result")
            except D.SchedulingError as error:
                assert type(error) is D.SchedulingError and error.code == "exited", error
            assert D.fetch(D.spawn(int, 7)) == 7
            assert D.fetch(D.spawn(lambda: D.fetch(D.spawn(int, 8)))) == 8
            os._exit(0)
        except BaseException as error:
            import traceback
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    {after}
    print(status, flush=True)
"""


def test_fork_with_an_idle_driver() -> None:
    """Ruling 19: in a forked child old tasks raise `exited`, new ones run; the parent goes on unharmed."""
    program_text = FORK.format(
        before="context = D.Context(driver=D.InlineDriver()).__enter__(); old = D.spawn(int, 5)",
        after="assert old.fetch() == 5",
    )
    assert run_program(program_text).split() == ["0"]


def test_fork_with_threads() -> None:
    """Ruling 19: the same with the thread driver and a task that runs in the parent."""
    program_text = FORK.format(
        before=(
            "gate, begun = threading.Event(), threading.Event(); "
            "old = D.spawn(lambda: (begun.set(), gate.wait(60))[1]); begun.wait(60)"
        ),
        after="gate.set(); assert old.fetch(timeout=60) is True",
    )
    assert run_program(program_text).split() == ["0"]


def test_fork_keeps_finished_results() -> None:
    """Ruling 19: what was finished before the fork can be fetched in the child."""
    out = run_program(
        """
        import warnings
        warnings.simplefilter("ignore")
        done = D.spawn(int, 5)
        D.wait(done)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if done.fetch() == 5 else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """
    )
    assert out.split() == ["0"]


def test_os_exit_in_a_process_that_a_body_started() -> None:
    """Robustness: a body's forked or started child that calls os._exit ends alone."""
    out = run_program(
        """
        import subprocess, warnings
        warnings.simplefilter("ignore")
        def forked():
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        def started():
            return subprocess.run([sys.executable, "-c", "import os; os._exit(8)"]).returncode
        print(D.fetch_all([D.spawn(forked), D.spawn(started)]), D.fetch(D.spawn(int, 9)))
        """
    )
    assert out.strip() == "[7, 8] 9"


def test_os_exit_in_a_body_ends_the_program() -> None:
    """Robustness: os._exit in a body ends the process at once with that code."""
    code, out, err = finish(program("D.spawn(lambda: os._exit(6)).fetch(timeout=60)"))
    assert (code, out, err) == (6, "", "")


@pytest.mark.parametrize("threads", [1, 2])
def test_ten_thousand_deep_nesting_is_a_clear_error(threads: int) -> None:
    """Ruling 19: spawn + fetch nested 10,000 deep ends in a NestingError (or the result), never in a crash."""
    out = run_program(
        f"""
        def deep(n):
            return 0 if n == 0 else 1 + D.fetch(D.spawn(deep, n - 1))
        with D.Context(threads={threads}):
            assert D.fetch(D.spawn(deep, 50)) == 50
            try:
                assert D.fetch(D.spawn(deep, 10_000)) == 10_000
            except D.DTaskFailedError as error:
                inner = D.unwrap_exception(error)
                assert isinstance(inner, D.NestingError) and isinstance(inner, RecursionError), repr(inner)
                assert inner.code == "nesting" and "nest" in str(inner).lower() or "deep" in str(inner).lower()
            print(D.fetch(D.spawn(deep, 20)))
        """
    )
    assert out.split() == ["20"]


def test_nesting_of_two_hundred_works_on_one_slot() -> None:
    """§1.2: a modest depth works on one slot, with and without a timeout (that is, without helping)."""
    out = run_program(
        """
        def deep(n, timeout):
            return 0 if n == 0 else 1 + D.spawn(deep, n - 1, timeout).fetch(timeout=timeout)
        with D.Context(threads=1):
            print(D.fetch(D.spawn(deep, 200, None)), D.fetch(D.spawn(deep, 50, 60)))
        """
    )
    assert out.split() == ["200", "50"]


def test_the_number_of_slots_comes_from_the_environment() -> None:
    """Ruling 18: the environment overrides the default number of slots, a number given wins over it."""
    out = run_program(
        """
        os.environ["OTEL_TIMESPAN_THREADS"] = "5"
        with D.Context():
            D.fetch(D.spawn(int)); first = D.num_processors()
        with D.Context(threads=3):
            D.fetch(D.spawn(int)); second = D.num_processors()
        print(first, second)
        """
    )
    assert out.split() == ["5", "3"]


def test_importing_starts_nothing() -> None:
    """api.md, ruling 18: importing starts no thread and loads neither OpenTelemetry's SDK nor optional libraries."""
    out = run_program(
        """
        D.eager_context()
        heavy = [m for m in ("opentelemetry.sdk", "numpy", "pandas", "dask", "matplotlib") if m in sys.modules]
        print(threading.active_count(), heavy)
        """
    )
    assert out.strip() == "1 []"


def test_an_unhandled_failure_is_not_lost_silently_or_noisily() -> None:
    """Ruling 10, 19: a failed task nobody fetched makes neither a hang nor a wrong exit code."""
    code, out, _ = finish(program("D.spawn(lambda: 1 / 0).wait(); print('END')"))
    assert (code, out.strip()) == (0, "END")
