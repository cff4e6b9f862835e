"""The command line: `otel-timespan demo|run|bench|stack check|version`, also `python -m otel_timespan`.

Needs the extra `[cli]` (click, rich); without it `main` says so in one line. Errors of ours are one
line on standard error and exit code 1, wrong usage is click's with exit code 2.
"""

from __future__ import annotations

import contextlib
import importlib.util
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import MissingExtraError, TimespanError

if TYPE_CHECKING:
    import click

__all__ = ["main"]

_TRACE_HELP = "Write a trace for Perfetto (https://ui.perfetto.dev) or chrome://tracing into this file."


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. `arguments` default to those of the process."""
    for library in ("click", "rich"):
        if importlib.util.find_spec(library) is None:
            sys.exit(f"otel-timespan: {MissingExtraError(library, 'cli')}")
    try:
        _commands().main(None if arguments is None else list(arguments), prog_name="otel-timespan")
    except TimespanError as error:
        sys.exit(f"otel-timespan: {error}")
    sys.exit(0)


def _commands() -> click.Group:
    """All commands. Built here and not at import, so that the module imports without click."""
    import click

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    def root() -> None:
        """Dagger's scheduler and timespan log for Python, seen through OpenTelemetry."""

    @root.group()
    def stack() -> None:
        """Look after the back ends."""

    _add_demo(root.command())
    _add_run(root.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}))
    _add_bench(root.command(context_settings={"ignore_unknown_options": True, "help_option_names": []}))
    _add_check(stack.command())
    _add_version(root.command())
    return root


Decorator = Callable[[Callable[..., Any]], Any]


def _add_demo(command: Decorator) -> None:
    import click

    from .demo import DEFAULT_LIMIT, default_workers

    @command
    @click.option("--limit", type=int, default=DEFAULT_LIMIT, show_default=True, help="Modules to measure, at most.")
    @click.option("--source", type=click.Path(path_type=Path), help="A folder of Python files.  [default: the stdlib]")
    @click.option(
        "--trace",
        type=click.Path(path_type=Path),
        default=Path("otel-timespan-demo-trace.json"),
        show_default=True,
        help=_TRACE_HELP,
    )
    @click.option(
        "--workers",
        type=click.IntRange(min=0),
        help="Worker processes that parse and measure.  [default: one a CPU, at most 4; 0 with one CPU]",
    )
    def demo(limit: int, source: Path | None, trace: Path, workers: int | None) -> None:
        """Measure the standard library's source in some thousand tasks, and show where the time went.

        Exports to the collector at OTEL_EXPORTER_OTLP_ENDPOINT (default: http://localhost:4317) where one
        answers; the link to the run is one of Jaeger's pages (JAEGER_UI).
        """
        from .report import run_demo

        run_demo(limit, source, trace, default_workers() if workers is None else workers)


def _add_run(command: Decorator) -> None:
    import click

    @command
    @click.option("--trace", type=click.Path(path_type=Path), help=_TRACE_HELP)
    @click.option(
        "--workers",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Worker processes that run its tasks, besides the threads of the script's own process.",
    )
    @click.argument("script", type=click.Path(path_type=Path))
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def run(script: Path, arguments: tuple[str, ...], trace: Path | None, workers: int) -> None:
        """Run any SCRIPT with logging on; the summary goes to standard error, the exit code is the script's.

        Everything after SCRIPT is the script's own: options of this command come before it.
        """
        sys.exit(_run_script(script, arguments, trace, workers))


def _run_script(script: Path, arguments: Sequence[str], trace: Path | None, count: int) -> int:
    import click
    from rich.console import Console

    from .dagger.context import leave, tasks_not_begun, tell_dropped
    from .report import print_failure, print_session
    from .session import check_writable, logged, workers

    if not script.is_file():
        raise click.ClickException(f"there is no script {script}" + (" (it is a folder)" if script.is_dir() else ""))
    if trace is not None:
        check_writable(trace)
        trace = trace.absolute()  # the script may change the folder
    console = Console(stderr=True)
    with _as_script(script, arguments), workers(count), logged(script.name) as session:
        code, session.error = _execute(script)
        dropped = tasks_not_begun()
        leave()  # as `python script` would now
        print_failure(console, session.take_logs())
        _show(session.error, str(script))
        tell_dropped(dropped)
    print_session(console, session, trace)
    return code


@contextlib.contextmanager
def _as_script(script: Path, arguments: Sequence[str]) -> Iterator[None]:
    """In the block arguments and search path are those of `python script`: workers get that path, too."""
    argv, path = sys.argv[:], sys.path[:]
    sys.argv[:] = [str(script), *arguments]
    sys.path[0:1] = [str(script.resolve().parent)]
    try:
        yield
    finally:
        sys.argv[:], sys.path[:] = argv, path


def _execute(script: Path) -> tuple[int, BaseException | None]:
    """Run the script as `python script` would: the code with which that would end, and the exception that ended it."""
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None), exit
    except BaseException as error:
        return 130 if isinstance(error, KeyboardInterrupt) else 1, error
    return 0, None


def _show(error: BaseException | None, script: str) -> None:
    """What Python prints of an uncaught exception: from the script's own frame on, without ours."""
    if error is None or isinstance(error, SystemExit):
        if error is not None and not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
        return
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != script:
        frames = frames.tb_next
    sys.excepthook(type(error), error.with_traceback(frames), frames)


def _add_bench(command: Decorator) -> None:
    import click

    @command
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def bench(arguments: tuple[str, ...]) -> None:
        """Run the benchmarks of a source checkout; arguments are those of `python -m bench` (--help, --quick, ...)."""
        root = Path(__file__).resolve().parents[1]
        if not (root / "bench" / "__main__.py").is_file():
            raise click.ClickException("the benchmarks are part of the source checkout, not of the installed package")
        sys.exit(subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=root).returncode)


def _add_check(command: Decorator) -> None:
    import click

    @command
    @click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds to wait for the arrival.")
    def check(timeout: float) -> None:
        """Can the endpoints be reached, does a test span and a test metric arrive?

        Looks at OTEL_EXPORTER_OTLP_ENDPOINT (default: http://localhost:4317), JAEGER_UI (http://localhost:16686)
        and PROMETHEUS_URL (http://localhost:9090). The exit code is 1 when one of the answers is no.
        """
        from rich.console import Console

        from .stackcheck import check_stack
        from .timespans.texts import printable

        console = Console()
        fine = True
        for step in check_stack(timeout):
            fine = fine and step.passed
            mark = "[green]ok    [/]" if step.passed else "[red]failed[/]"
            console.print(f"{mark} {step.what}: ", end="")
            console.print(printable(step.detail), markup=False, highlight=False, soft_wrap=True)
        sys.exit(0 if fine else 1)


def _add_version(command: Decorator) -> None:
    @command
    def version() -> None:
        """Print the versions of the package, of Python and of OpenTelemetry."""
        import platform
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        import click

        for name in ("otel-timespan", "opentelemetry-sdk"):
            try:
                click.echo(f"{name} {installed(name)}")
            except PackageNotFoundError:
                click.echo(f"{name} (not installed as a package)")
        click.echo(f"{platform.python_implementation()} {platform.python_version()}")
