"""The resource of this process: who it is that sends.

Named by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, else `otel-timespan`; with an instance id that no
other process has, process id, runtime and host. The command line stays here: it may hold secrets.
"""

from __future__ import annotations

import os
import platform
import socket
import uuid
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from ..spans.redact import Redact, redacted_attributes

__all__ = ["default_resource", "process_resource"]


def default_resource(attributes: Mapping[str, Any] | None = None, redact: Redact | None = None) -> Resource:
    """What the variables and the SDK's detectors say, our defaults where they say nothing, then `attributes`.

    Of all that, what `redact` lets out.
    """
    found = Resource.create()
    ours: dict[str, Any] = {"host.name": socket.gethostname(), "host.arch": platform.machine()}
    ours.update(process_resource().attributes)
    ours.update({key: value for key, value in _runtime().items() if value})
    missing = {key: value for key, value in ours.items() if key not in found.attributes}
    if str(found.attributes.get("service.name", "")).startswith("unknown_service"):
        missing["service.name"] = OTELResourceDetector().detect().attributes.get("service.name") or "otel-timespan"
    found = found.merge(Resource(missing)).merge(Resource(dict(attributes or {})))
    return found if redact is None else Resource(redacted_attributes(redact, found.attributes), found.schema_url)


def process_resource() -> Resource:
    """What differs between a process and its forks."""
    return Resource({"service.instance.id": str(uuid.uuid4()), "process.pid": os.getpid()})


def _runtime() -> dict[str, str]:
    return {
        "process.runtime.name": platform.python_implementation().lower(),
        "process.runtime.version": platform.python_version(),
    }
