"""The standard OTEL_* variables that our own sending reads, checked.

The SDK logs a wrong value and goes on with a default, or dies inside the exporter; here it is an
`InvalidOptionError` that names the variable, when the sink is set up. An empty variable counts as unset.

Source: the OpenTelemetry specification, protocol/exporter.md. As in all of OpenTelemetry Python,
OTEL_EXPORTER_OTLP_TIMEOUT is in seconds.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from ...errors import InvalidOptionError

__all__ = ["OtlpSettings", "exporter_names", "milliseconds", "read_settings", "sdk_disabled", "whole_number"]

_PROTOCOLS = ("grpc", "http/protobuf")
_COMPRESSIONS = {"grpc": ("none", "gzip"), "http/protobuf": ("none", "gzip", "deflate")}
_TIMEOUT_S = {"traces": 10.0, "metrics": 2.5}
"""Of one try, where no variable says it. Metrics go out every second: an older try is not worth a wait at exit."""

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}")
_GRPC_SCHEMES = ("http", "https", "unix", "unix-abstract", "dns", "ipv4", "ipv6", "grpc", "grpcs")


class OtlpSettings(NamedTuple):
    """How one signal is sent. `endpoint` is complete (HTTP: with the signal's path), `timeout_s` is of one try."""

    signal: str
    protocol: str
    endpoint: str
    insecure: bool
    headers: tuple[tuple[str, str], ...]
    timeout_s: float
    compression: str


def read_settings(signal: str = "traces", **given: Any) -> OtlpSettings:
    """The OTLP settings of "traces" or "metrics".

    `given` (protocol, endpoint, headers, timeout_s, compression, insecure; None is not given) goes before the
    variables. An endpoint that is given is, like OTEL_EXPORTER_OTLP_ENDPOINT, the same for all signals.
    Raises `InvalidOptionError` naming the keyword or variable at fault.
    """

    def lookup(name: str) -> tuple[str, str]:
        keyword = "timeout_s" if name == "TIMEOUT" else name.lower()
        value = given.get(keyword)
        return (keyword, _given_text(value)) if value is not None else _lookup(signal, name)

    protocol = _one_of(*lookup("PROTOCOL"), _PROTOCOLS) or "grpc"
    compression = _one_of(*lookup("COMPRESSION"), _COMPRESSIONS[protocol]) or "none"
    for kind in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
        _existing_file(*lookup(kind))
    variable, text = lookup("ENDPOINT")
    endpoint = _http_endpoint(signal, variable, text) if protocol == "http/protobuf" else _grpc_endpoint(variable, text)
    insecure = _one_of(*lookup("INSECURE"), ("true", "false"))
    return OtlpSettings(
        signal,
        protocol,
        endpoint,
        _insecure(endpoint, insecure == "true"),
        _headers(*lookup("HEADERS")),
        _positive(*lookup("TIMEOUT"), "seconds") or _TIMEOUT_S[signal],
        compression,
    )


def sdk_disabled() -> bool:
    """Whether OTEL_SDK_DISABLED is true: then nothing is sent and no thread started."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def exporter_names(signal: str) -> list[str]:
    """The exporters of OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER, [] for "none", ["otlp"] by default."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    names = [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]
    if "none" in names:
        if len(names) > 1:
            raise InvalidOptionError(f"{variable}={os.environ[variable]!r}: none can't be combined with others")
        return []
    return names or ["otlp"]


def whole_number(variable: str) -> int | None:
    """A variable that holds a positive whole number; None when unset."""
    text = os.environ.get(variable, "").strip()
    if text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise InvalidOptionError(f"{variable}={text!r}: give a whole number greater than 0")
    return int(text) if text else None


def milliseconds(variable: str) -> float | None:
    """A variable that holds a positive number of milliseconds; None when unset."""
    return _positive(variable, os.environ.get(variable, "").strip(), "milliseconds")


def _lookup(signal: str, name: str) -> tuple[str, str]:
    """The variable that says it, the signal's own before the general one, and its text ("" when unset)."""
    general = f"OTEL_EXPORTER_OTLP_{name}"
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", general):
        text = os.environ.get(variable, "").strip()
        if text:
            return variable, text
    return general, ""


def _one_of(variable: str, text: str, allowed: tuple[str, ...]) -> str:
    if text and text.lower() not in allowed:
        raise InvalidOptionError(f"{variable}={text!r}: allowed are {', '.join(allowed)}")
    return text.lower()


def _positive(variable: str, text: str, unit: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InvalidOptionError(f"{variable}={text!r}: give a number of {unit} greater than 0")
    return value


def _existing_file(variable: str, path: str) -> None:
    if path and not os.path.isfile(path):
        raise InvalidOptionError(f"{variable}={path!r}: there is no such file")


def _headers(variable: str, text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, found, value = item.partition("=")
        if not found or not key.strip():
            # The text is not shown: headers carry credentials.
            raise InvalidOptionError(f"{variable}: give a comma-separated list of key=value")
        pairs.append((unquote(key).strip().lower(), unquote(value).strip()))
    return tuple(pairs)


def _http_endpoint(signal: str, variable: str, text: str) -> str:
    if not text:
        return f"http://localhost:4318/v1/{signal}"
    if not _is_url(text, ("http", "https")):
        raise InvalidOptionError(f"{variable}={text!r}: give a URL as http://host:4318")
    return text if signal.upper() in variable else f"{text.rstrip('/')}/v1/{signal}"


def _grpc_endpoint(variable: str, text: str) -> str:
    if not text:
        return "http://localhost:4317"
    if not (_HOST_PORT.fullmatch(text) or _is_url(text, _GRPC_SCHEMES)):
        raise InvalidOptionError(f"{variable}={text!r}: give a URL as http://host:4317, or host:4317")
    return text


def _is_url(text: str, schemes: tuple[str, ...]) -> bool:
    if re.search(r"\s", text):
        return False
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises where it is no number or too large
    except ValueError:
        return False
    if parts.scheme not in schemes:
        return False
    return bool(parts.hostname) if parts.scheme in ("http", "https") else bool(parts.netloc or parts.path)


def _insecure(endpoint: str, wanted: bool) -> bool:
    scheme = endpoint.partition("://")[0] if "://" in endpoint else ""
    return scheme == "http" or (scheme != "https" and wanted)


def _given_text(value: Any) -> str:
    """A keyword in the variable's own notation."""
    if isinstance(value, Mapping):
        return ",".join(f"{quote(str(key))}={quote(str(item))}" for key, item in value.items())
    return str(value).strip().lower() if isinstance(value, bool) else str(value).strip()
