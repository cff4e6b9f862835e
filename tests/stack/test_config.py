"""The configuration files, checked by the programs that read them."""

from __future__ import annotations

import subprocess

import yaml

from tests import backends
from tests.backends import Stack, eventually


def checked(stack: Stack, program: str, *args: str) -> str:
    """What a program's own check prints; an error where it fails."""
    done = subprocess.run([*stack.backend.program(program), *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_versions_are_those_of_compose(stack: Stack) -> None:
    """What is tested here is what docker-compose.yml runs."""
    versions = dict(stack.backend.versions())
    versions.pop("promtool", None)
    assert versions == backends.compose_versions()


def test_collector_accepts_its_file(stack: Stack) -> None:
    """`otelcol validate` is content, with compose's defaults."""
    checked(stack, "otelcol", "validate", f"--config={backends.COLLECTOR_CONFIG}")


def test_promtool_accepts_configuration_and_rules(stack: Stack) -> None:
    """`promtool check config` reads the configuration, finds the rules, and warns of nothing."""
    said = checked(stack, "promtool", "check", "config", "--lint=all", "--lint-fatal", str(backends.PROMETHEUS_CONFIG))
    assert "rules found" in said


def test_alerts_fire_when_they_should(stack: Stack) -> None:
    """`promtool test rules` plays made-up series to the alert rules."""
    checked(stack, "promtool", "test", "rules", str(backends.ROOT / "tests/stack/alerts.yaml"))


def test_prometheus_scrapes_the_collector_and_loaded_the_rules(stack: Stack) -> None:
    """The collector's own metrics arrive by the same way as those of programs."""
    eventually(lambda: stack.query('up{job="otel-collector"} == 1'))
    eventually(lambda: stack.query("otelcol_exporter_queue_capacity"))
    rules = backends.get_json(f"{stack.prometheus}/api/v1/rules")["data"]["groups"]
    assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
    assert sum(len(group["rules"]) for group in rules) >= 9


def test_the_health_check_of_prometheus_works(stack: Stack) -> None:
    """What docker-compose.yml asks is what the program beside Prometheus can ask, and says yes."""
    check = yaml.safe_load(backends.COMPOSE_FILE.read_text())["services"]["prometheus"]["healthcheck"]["test"]
    assert check[:2] == ["CMD", "promtool"]
    assert check[-1].startswith("--url=")
    checked(stack, "promtool", *check[2:-1], f"--url={stack.prometheus}")
