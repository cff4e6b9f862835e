"""The standard OTEL_* variables that our own sending reads, and the options of sending, checked.

The SDK logs a wrong value and goes on with a default, or dies inside the exporter; here it is an
`InvalidOptionError` that names the variable, when the sink is set up. An empty variable counts as unset. Durations
longer than the platform can wait are as long as it can.

Source: the OpenTelemetry specification, protocol/exporter.md and configuration/sdk-environment-variables.md. As in all
of OpenTelemetry Python, OTEL_EXPORTER_OTLP_TIMEOUT is in seconds.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from ...errors import InvalidOptionError
from ...timespans.warn import warn_once

__all__ = [
    "LONGEST_WAIT_S",
    "MAX_BYTES",
    "OtlpSettings",
    "check_attributes",
    "check_sending",
    "check_temporality",
    "check_texts",
    "checked_seconds",
    "exponential_histograms",
    "exporter_names",
    "milliseconds",
    "read_settings",
    "sdk_disabled",
    "shown",
    "variable_text",
    "waitable",
    "whole_number",
]

LONGEST_WAIT_S = threading.TIMEOUT_MAX / 2

MAX_BYTES = 64 << 20
"""Of the queue, where nothing is said: about 130,000 task spans."""

ON_FULL = ("block", "drop", "spill")

_LONGEST_TRY_S = 86_400.0
"""Beyond that gRPC takes a deadline for one that is over."""

_SHORTEST_S = 0.001
"""Less is no time to send anything: all would be tried again, for ever."""

_MOST = (1 << 63) - 1

_PROTOCOLS = ("grpc", "http/protobuf")
_COMPRESSIONS = {"grpc": ("none", "gzip"), "http/protobuf": ("none", "gzip", "deflate")}
_EXPONENTIAL = "base2_exponential_bucket_histogram"
_TIMEOUT_S = {"traces": 10.0, "metrics": 2.5}
"""Of one try, where no variable says it. Metrics go out every second: an older try is not worth a wait at exit."""

_GRPC_KEY = re.compile(r"[0-9a-z_.-]+")
_HTTP_KEY = re.compile(r"[0-9a-z!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
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
        return (keyword, _given_text(keyword, value)) if value is not None else _lookup(signal, name)

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
        _headers(*lookup("HEADERS"), _GRPC_KEY if protocol == "grpc" else _HTTP_KEY),
        min(_positive(*lookup("TIMEOUT"), "seconds", _SHORTEST_S) or _TIMEOUT_S[signal], _LONGEST_TRY_S),
        compression,
    )


def sdk_disabled() -> bool:
    """Whether OTEL_SDK_DISABLED is true: then nothing is sent and no thread started."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def exporter_names(signal: str) -> list[str]:
    """The exporters of OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER, [] for "none", ["otlp"] by default."""
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    text = variable_text(variable).lower()
    names = [name.strip() for name in text.split(",") if name.strip()]
    if "none" in names:
        if len(names) > 1:
            raise InvalidOptionError(f"{variable}={shown(text)}: none can't be combined with others")
        return []
    return list(dict.fromkeys(names)) or ["otlp"]


def exponential_histograms() -> bool:
    """Whether OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION asks for exponential histograms."""
    variable = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION"
    return _known(variable, ("explicit_bucket_histogram", _EXPONENTIAL)) == _EXPONENTIAL


def check_temporality() -> None:
    """Warn of a value of OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE that the stock exporter does not know."""
    _known("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", ("cumulative", "delta", "lowmemory"))


def _known(variable: str, allowed: tuple[str, ...]) -> str:
    """What a variable says, in lower case; with one warning the first that is allowed where it is none of them.

    So the specification wants it for these: metrics in another shape than was asked for are better than none.
    """
    text = variable_text(variable).lower()
    if text in allowed:
        return text
    if text:
        known = ", ".join(allowed)
        warn_once((variable, text), "%s=%s: allowed are %s; the first is taken", variable, shown(text), known)
    return allowed[0]


def variable_text(variable: str) -> str:
    """What a variable says, "" when unset. Raises `InvalidOptionError` where that is no text."""
    text = os.environ.get(variable, "").strip()
    _check_text(variable, text)
    return text


def check_texts() -> None:
    """Raise `InvalidOptionError` for what says who sends: it would go out with everything."""
    variable_text("OTEL_SERVICE_NAME")
    for item in variable_text("OTEL_RESOURCE_ATTRIBUTES").split(","):
        key, found, _ = item.partition("=")
        if item.strip() and not (found and key.strip()):
            raise InvalidOptionError(
                f"OTEL_RESOURCE_ATTRIBUTES: {shown(item.strip())} is no key=value; give a comma-separated list of these"
            )


def whole_number(variable: str, least: int = 1) -> int | None:
    """A variable that holds a whole number of at least that; None when unset."""
    text = variable_text(variable)
    if text and not (text.isascii() and text.isdigit() and len(text) < 19 and int(text) >= least):
        raise InvalidOptionError(f"{variable}={shown(text)}: give a whole number from {least} to 10**18, or unset it")
    return int(text) if text else None


def milliseconds(variable: str) -> float | None:
    """A variable that holds a number of milliseconds, at least 1; None when unset."""
    value = _positive(variable, variable_text(variable), "milliseconds", 1.0)
    return None if value is None else min(value, LONGEST_WAIT_S * 1000)


def checked_seconds(name: str, value: Any, least: float = 0.0) -> float:
    """A number of seconds that was given as an option. Raises `InvalidOptionError` naming it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < math.inf:
        raise InvalidOptionError(f"{name}={shown(value)}: give a number of seconds, {least:g} or more")
    return float(min(value, LONGEST_WAIT_S))


def waitable(name: str, value: Any) -> float:
    """How long somebody wants to wait, as long as the platform can at most. Raises `InvalidOptionError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise InvalidOptionError(f"{name}={shown(value)}: give a number of seconds")
    return float(min(max(value, 0.0), LONGEST_WAIT_S))


def check_attributes(name: str, attributes: Mapping[Any, Any]) -> None:
    """Raise `InvalidOptionError` for attributes that can't be sent: they would go out with everything."""
    for key, value in attributes.items():
        if not isinstance(key, str) or not key:
            raise InvalidOptionError(f"{name}: {shown(key)} is no name; give a text")
        items = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(item, (str, bool, int, float)) for item in items):
            raise InvalidOptionError(f"{name}[{shown(key)}]={shown(value)}: give a text, a number or a list of these")
        for text in [key, *items]:
            if isinstance(text, str):
                _check_text(f"{name}[{shown(key)}]", text)
            elif isinstance(text, int) and not -(1 << 63) <= text < 1 << 63:
                raise InvalidOptionError(f"{name}[{shown(key)}]: a number of more than 64 bits can't be sent")


def check_sending(options: Mapping[str, Any]) -> None:
    """Raise `InvalidOptionError` for those of the pipeline's options that are among these and can't work."""
    for name, value in options.items():
        if name == "on_full" and not (isinstance(value, str) and value in ON_FULL):
            raise InvalidOptionError(f"on_full={shown(value)}: allowed are {', '.join(ON_FULL)}")
        if name.startswith("max_"):
            if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
                raise InvalidOptionError(f"{name}={shown(value)}: give a whole number from 1 to 2**63 - 1")
        elif name.endswith("_s"):
            checked_seconds(name, value)


def shown(value: Any) -> str:
    """A wrong value in the text of an error: short, printable, whatever it is."""
    try:
        text = reprlib.repr(value) if not isinstance(value, str) else ascii(value[:60])
    except Exception:  # a number of more digits than Python writes, a __repr__ of the user's
        text = f"<{type(value).__name__}>"
    return text[:100]


def _lookup(signal: str, name: str) -> tuple[str, str]:
    """The variable that says it, the signal's own before the general one, and its text ("" when unset)."""
    general = f"OTEL_EXPORTER_OTLP_{name}"
    for variable in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}", general):
        # Headers are checked one by one: their text is not to be shown.
        text = os.environ.get(variable, "").strip() if name == "HEADERS" else variable_text(variable)
        if text:
            return variable, text
    return general, ""


def _check_text(variable: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidOptionError(f"{variable}={shown(text)} is no UTF-8") from None
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise InvalidOptionError(f"{variable}={shown(text)}: there is a control character in it")


def _one_of(variable: str, text: str, allowed: tuple[str, ...]) -> str:
    if text and text.lower() not in allowed:
        raise InvalidOptionError(f"{variable}={shown(text)}: allowed are {', '.join(allowed)}")
    return text.lower()


def _positive(variable: str, text: str, unit: str, least: float) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise InvalidOptionError(f"{variable}={shown(text)}: give a number of {unit}, {least:g} or more")
    return value


def _existing_file(variable: str, path: str) -> None:
    if path and not os.path.isfile(path):
        raise InvalidOptionError(f"{variable}={shown(path)}: there is no such file")


def _headers(variable: str, text: str, key_form: re.Pattern[str]) -> tuple[tuple[str, str], ...]:
    pairs = []
    for number, item in enumerate(filter(None, (part.strip() for part in text.split(","))), 1):
        key, found, value = item.partition("=")
        # The text is not shown: headers carry credentials.
        if not found or not key.strip():
            raise InvalidOptionError(f"{variable}: give a comma-separated list of key=value")
        key, value = unquote(key).strip().lower(), unquote(value).strip()
        if not key_form.fullmatch(key):
            raise InvalidOptionError(f"{variable}: the name of header {number} holds a character that can't be sent")
        if not _HEADER_VALUE.fullmatch(value):
            raise InvalidOptionError(f"{variable}: the value of header {number} holds a character that can't be sent")
        pairs.append((key, value))
    return tuple(pairs)


def _http_endpoint(signal: str, variable: str, text: str) -> str:
    if not text:
        return f"http://localhost:4318/v1/{signal}"
    if not _is_url(text, ("http", "https")):
        raise InvalidOptionError(f"{variable}={shown(text)}: give a URL as http://host:4318")
    text = _lower_scheme(text)
    return text if signal.upper() in variable else f"{text.rstrip('/')}/v1/{signal}"


def _grpc_endpoint(variable: str, text: str) -> str:
    if not text:
        return "http://localhost:4317"
    if not (_is_host_port(text) or _is_url(text, _GRPC_SCHEMES)):
        raise InvalidOptionError(f"{variable}={shown(text)}: give a URL as http://host:4317, or host:4317")
    return _lower_scheme(text)


def _is_host_port(text: str) -> bool:
    return _HOST_PORT.fullmatch(text) is not None and int(text.rpartition(":")[2]) < 65_536


def _lower_scheme(url: str) -> str:
    """A scheme may be written in any case; the libraries take http alone for http."""
    scheme, found, rest = url.partition("://")
    return scheme.lower() + found + rest if found else url


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


def _given_text(keyword: str, value: Any) -> str:
    """A keyword in the variable's own notation."""
    if isinstance(value, Mapping):
        try:
            return ",".join(f"{quote(str(key))}={quote(str(item))}" for key, item in value.items())
        except Exception:
            raise InvalidOptionError(f"{keyword}: a text in it can't be sent") from None
    try:
        text = str(value).strip()
    except Exception:
        text = shown(value)
    _check_text(keyword, text)
    return text.lower() if isinstance(value, bool) else text
