"""Programs under test: processes of their own, so that each has its own OpenTelemetry providers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.backends import ROOT, Stack

PROGRAMS = Path(__file__).parent / "programs"
TIMEOUT_S = 240


def new_service() -> str:
    """A service name that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


def environment(stack: Stack, service: str, protocol: str = "grpc") -> dict[str, str]:
    """What makes a program log to `stack` as `service`; warnings are errors there too."""
    endpoint = stack.otlp_grpc if protocol == "grpc" else stack.otlp_http
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("OTEL_")},
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_SERVICE_NAME": service,
        "PYTHONPATH": str(ROOT),
    }


def finished(command: Sequence[str], env: Mapping[str, str], folder: Path = ROOT) -> str:
    """Run to the end in `folder`; what was printed. An error with all output where it fails."""
    done = subprocess.run(
        [sys.executable, *command], env=env, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def report(output: str) -> Any:
    """The JSON in the last line of a program's output."""
    return json.loads(output.splitlines()[-1])


class Conversation:
    """A program that is told what to do, line by line, and answers each."""

    def __init__(self, name: str, env: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAMS / name)], env=env, cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def tell(self, command: str) -> None:
        """Say a line and do not wait."""
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answered(self, command: str) -> None:
        """Wait for the answer to a line."""
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line == command, line or self.process.communicate()[1]

    def ask(self, command: str) -> None:
        """Say a line and wait for its answer."""
        self.tell(command)
        self.answered(command)

    def end(self) -> Any:
        """Close the input; the program's last report."""
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, out + err
        return report(out)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
