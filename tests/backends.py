"""The real collector, Jaeger and Prometheus for the tests, wherever they can be had.

Looked for in this order: the command in TIMESPAN_STACK; `../shared/tools/stack` beside the project;
`docker compose` where a Docker engine answers. All of them run the project's own configuration files.
Where there is none, the tests that need one are skipped, loudly; with TIMESPAN_REQUIRE_STACK=1 the
whole run fails at once.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

ROOT = Path(__file__).resolve().parent.parent
COLLECTOR_CONFIG = ROOT / "collector-config.yaml"
JAEGER_CONFIG = ROOT / "deploy/jaeger/config.yaml"
PROMETHEUS_CONFIG = ROOT / "deploy/prometheus/prometheus.yaml"
COMPOSE_FILE = ROOT / "docker-compose.yml"
WHAT_TO_INSTALL = (
    "install Docker with the compose plugin and start its engine, or set TIMESPAN_STACK to the command "
    "of a native `stack` (which needs Go 1.25 or newer)"
)

T = TypeVar("T")


class NoBackend(Exception):  # noqa: N818 - a state of the machine, not a fault of the tests
    """No back end can be had here; the text says why and what to install."""


def required() -> bool:
    """Whether a missing back end is a failure."""
    return os.environ.get("TIMESPAN_REQUIRE_STACK", "") not in ("", "0")


def eventually(fn: Callable[[], T], timeout: float = 60.0, every: float = 0.1) -> T:
    """Call `fn` until it gives something true, and return that; soon again at first, then `every` so many seconds.

    An AssertionError or a refused connection counts as "not yet"; the last one is raised at the deadline.
    """
    deadline, pause = time.monotonic() + timeout, every / 32
    while True:
        try:
            if found := fn():
                return found
            reason: Exception = AssertionError(f"still {found!r} after {timeout:.0f} s")
        except (AssertionError, OSError) as error:
            reason = error
        if time.monotonic() > deadline:
            raise reason
        time.sleep(pause)
        pause = min(every, 2 * pause)


def get_json(url: str, **query: object) -> Any:
    """The JSON that a GET of `url` answers; HTTP errors are raised with the answer's text."""
    full = f"{url}?{urllib.parse.urlencode(query)}" if query else url
    try:
        with urllib.request.urlopen(full, timeout=60) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        raise urllib.error.HTTPError(full, error.code, f"{error.reason}: {text}", error.headers, None) from None


class Backend(Protocol):
    """A way to run the three programs."""

    name: str

    def prepare(self) -> None:
        """Get what has to be built or downloaded first. May take minutes."""

    def up(self) -> Mapping[str, str]:
        """Start all, wait until each answers; the URLs by name."""

    def kill(self, name: str) -> None:
        """SIGKILL one of otelcol, jaeger, prometheus."""

    def start(self, name: str) -> None:
        """Start a killed one again, same ports, same data."""

    def down(self) -> None:
        """Stop all and remove their data."""

    def versions(self) -> Mapping[str, str]:
        """The versions by program."""

    def program(self, name: str) -> list[str]:
        """The command that runs a program's own checks on the project's files: otelcol, jaeger, promtool."""


@dataclass
class NativeStack:
    """The programs run natively, by a `stack` command (see its --help).

    It has no option for Prometheus' features: where it does not give those of docker-compose.yml by itself,
    Prometheus is started again with them, on the same port and data.
    """

    command: Sequence[str]
    folder: str = ""
    name: str = "stack"
    prometheus: Sequence[str] = ()
    """The command of our own Prometheus; empty where the `stack` command's is used."""
    running: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """`stack build`: nothing where all is built."""
        self._call("build", capture=False)

    def up(self) -> Mapping[str, str]:
        """`stack up` with the project's files."""
        self.folder = self.folder or tempfile.mkdtemp(prefix="timespan-stack-")
        files = ["--collector", COLLECTOR_CONFIG, "--jaeger", JAEGER_CONFIG, "--prometheus", PROMETHEUS_CONFIG]
        urls: dict[str, str] = json.loads(self._call("up", self.folder, *map(str, files)))
        flags = get_json(f"{urls['prometheus']}/api/v1/status/flags")["data"]
        if not prometheus_features() <= set(flags["enable-feature"].split(",")):
            self._call("kill", self.folder, "prometheus")
            kept = ("config.file", "storage.tsdb.path", "web.listen-address")
            options = [f"--{flag}={flags[flag]}" for flag in kept]
            features = ",".join(sorted(prometheus_features()))
            self.prometheus = [*self.program("prometheus"), *options, f"--enable-feature={features}"]
            self.start("prometheus")
        return urls

    def kill(self, name: str) -> None:
        """`stack kill`."""
        if name == "prometheus" and self.running is not None:
            self.running.kill()
            self.running.wait()
            self.running = None
        else:
            self._call("kill", self.folder, name)

    def start(self, name: str) -> None:
        """`stack start`."""
        if name == "prometheus" and self.prometheus:
            with open(f"{self.folder}/{name}.log", "ab") as out:
                self.running = subprocess.Popen(
                    self.prometheus, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
                )
            url = next(o for o in self.prometheus if o.startswith("--web.listen-address=")).partition("=")[2]
            eventually(lambda: get_json(f"http://{url}/api/v1/status/buildinfo"))
        else:
            self._call("start", self.folder, name)

    def down(self) -> None:
        """`stack down`."""
        if self.running is not None:
            self.kill("prometheus")
            self.prometheus = ()
        if self.folder:
            self._call("down", self.folder)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = ""

    def versions(self) -> Mapping[str, str]:
        """`stack versions`."""
        versions: dict[str, str] = json.loads(self._call("versions"))
        return versions

    def program(self, name: str) -> list[str]:
        """`stack path`."""
        return [self._call("path", name).strip()]

    def _call(self, *args: str, capture: bool = True) -> str:
        # The programs must not see the exporter settings of the tests.
        env = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        done = subprocess.run(
            [*self.command, *args], env=env, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE if capture else None,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{shlex.join([*self.command, *args])} failed: {(done.stderr or '').strip()}")
        return done.stdout


SERVICES = {"otelcol": "otel-collector", "jaeger": "jaeger", "prometheus": "prometheus"}
PORTS = {
    "OTLP_GRPC_PORT": "otlp_grpc",
    "OTLP_HTTP_PORT": "otlp_http",
    "COLLECTOR_HEALTH_PORT": "health",
    "COLLECTOR_METRICS_PORT": "collector_metrics",
    "JAEGER_PORT": "jaeger",
    "PROMETHEUS_PORT": "prometheus",
}


class ComposeStack:
    """The containers of docker-compose.yml, under a project name and on ports of their own."""

    name = "docker compose"

    def __init__(self) -> None:
        self.project = f"otel-timespan-test-{os.getpid()}"
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))

    def prepare(self) -> None:
        """`docker compose pull` of what the tests use."""
        self._compose("pull", "--quiet", *SERVICES.values())

    def up(self) -> Mapping[str, str]:
        """`docker compose up --wait`: its health checks say when."""
        self._compose("up", "--detach", "--wait", *SERVICES.values())
        urls = {PORTS[variable]: f"http://127.0.0.1:{port}" for variable, port in self.ports.items()}
        return {**urls, "collector_metrics": urls["collector_metrics"] + "/metrics"}

    def kill(self, name: str) -> None:
        """`docker compose kill`, which no restart policy undoes."""
        self._compose("kill", "--signal", "SIGKILL", SERVICES[name])

    def start(self, name: str) -> None:
        """`docker compose up --wait` of the one service."""
        self._compose("up", "--detach", "--wait", "--no-deps", SERVICES[name])

    def down(self) -> None:
        """`docker compose down` with the volumes."""
        self._compose("down", "--volumes", "--timeout", "5")

    def versions(self) -> Mapping[str, str]:
        """Those of docker-compose.yml."""
        return compose_versions()

    def program(self, name: str) -> list[str]:
        """`docker run` with the project at its own path."""
        image = compose_images()["prometheus" if name == "promtool" else SERVICES[name]]
        entrypoint = ["--entrypoint", "promtool"] if name == "promtool" else []
        return ["docker", "run", "--rm", "--volume", f"{ROOT}:{ROOT}:ro", *entrypoint, image]

    def _compose(self, *args: str) -> None:
        command = ["docker", "compose", "--file", str(COMPOSE_FILE), "--project-name", self.project, *args]
        env = {**os.environ, **{name: str(port) for name, port in self.ports.items()}}
        done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed: {done.stderr.strip()}")


def compose_images() -> dict[str, str]:
    """The image of each service in docker-compose.yml."""
    import yaml

    services = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
    return {name: service["image"] for name, service in services.items()}


def prometheus_features() -> set[str]:
    """The features of Prometheus that docker-compose.yml switches on."""
    import yaml

    command = yaml.safe_load(COMPOSE_FILE.read_text())["services"]["prometheus"]["command"]
    given = (option.partition("=")[2] for option in command if option.startswith("--enable-feature="))
    return {feature for features in given for feature in features.split(",")}


def compose_versions() -> dict[str, str]:
    """The version of each program in docker-compose.yml."""
    images = compose_images()
    return {program: images[service].rpartition(":")[2].lstrip("v") for program, service in SERVICES.items()}


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on at present."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def native_stack() -> NativeStack | None:
    """The `stack` command of this machine, None where there is none."""
    if given := os.environ.get("TIMESPAN_STACK", ""):
        return NativeStack(shlex.split(given))
    beside = ROOT.parent / "shared/tools/stack"
    return NativeStack([str(beside)]) if os.access(beside, os.X_OK) else None


def find_backend() -> Backend:
    """The first back end that this machine offers. Raises `NoBackend`."""
    if native := native_stack():
        return native
    if not shutil.which("docker"):
        raise NoBackend(f"no `stack` command beside the project and no `docker` on PATH: {WHAT_TO_INSTALL}")
    for command, what in ((["docker", "info"], "engine"), (["docker", "compose", "version"], "compose plugin")):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode:
            raise NoBackend(f"no `stack` command beside the project and no Docker {what} answers: {WHAT_TO_INSTALL}")
    return ComposeStack()


class Stack:
    """Running back ends: their URLs, faults, and what they hold.

    `otlp_grpc`, `otlp_http`, `collector_metrics`, `jaeger` and `prometheus` are URLs.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        urls = backend.up()
        self.otlp_grpc, self.otlp_http = urls["otlp_grpc"], urls["otlp_http"]
        self.collector_metrics = urls["collector_metrics"]
        self.jaeger, self.prometheus = urls["jaeger"], urls["prometheus"]

    def kill(self, name: str) -> None:
        """SIGKILL `otelcol`, `jaeger` or `prometheus`."""
        self.backend.kill(name)

    def start(self, name: str) -> None:
        """Start a killed one again, same ports, same data."""
        self.backend.start(name)

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """One trace as Jaeger's page gets it (/api/traces/<id>), None while Jaeger does not know it."""
        try:
            traces = get_json(f"{self.jaeger}/api/traces/{trace_id}")["data"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return traces[0] if traces else None

    def traces(self, service: str, limit: int = 1000) -> list[dict[str, Any]]:
        """All traces of a service, as Jaeger's page gets them."""
        now_us = int(time.time() * 1e6)
        window = {"start": now_us - 86_400_000_000, "end": now_us + 60_000_000, "lookback": "custom"}
        url = f"{self.jaeger}/api/traces"
        found: list[dict[str, Any]] = get_json(url, service=service, limit=limit, **window)["data"]
        return found

    def otlp_trace(self, trace_id: str) -> list[dict[str, Any]]:
        """The resource spans of one trace in OTLP's JSON (/api/v3/traces), empty while Jaeger does not know it."""
        try:
            answer = get_json(f"{self.jaeger}/api/v3/traces/{trace_id}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise
        spans: list[dict[str, Any]] = answer["result"]["resourceSpans"]
        return spans

    def span_ids(self, service: str) -> set[str]:
        """The distinct span ids of a service: delivery is at least once."""
        return {span["spanID"] for trace in self.traces(service) for span in trace["spans"]}

    def query(self, promql: str) -> list[dict[str, Any]]:
        """An instant query: the series, each with `metric` and `value`."""
        return self._prometheus("query", query=promql)

    def query_range(self, promql: str, seconds: float = 600, step: float = 1) -> list[dict[str, Any]]:
        """A query over the last `seconds`: the series, each with `metric` and `values`."""
        now = time.time()
        return self._prometheus("query_range", query=promql, start=now - seconds, end=now, step=step)

    def exemplars(self, promql: str) -> list[dict[str, Any]]:
        """The exemplars of a query's series in the last hour."""
        now = time.time()
        url = f"{self.prometheus}/api/v1/query_exemplars"
        series: list[dict[str, Any]] = get_json(url, query=promql, start=now - 3600, end=now + 60)["data"]
        return [exemplar for one in series for exemplar in one["exemplars"]]

    def _prometheus(self, endpoint: str, **query: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = get_json(f"{self.prometheus}/api/v1/{endpoint}", **query)["data"]["result"]
        return found
