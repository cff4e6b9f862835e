"""The resource of this process: who it is that sends.

Named by OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, else after the program; with an instance id that no
other process has, process id, runtime and host. The command line stays here: it may hold secrets.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import Resource

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
        missing["service.name"] = program_name()
    found = found.merge(Resource(missing)).merge(Resource(dict(attributes or {})))
    return found if redact is None else Resource(redacted_attributes(redact, found.attributes), found.schema_url)


def process_resource() -> Resource:
    """What differs between a process and its forks."""
    return Resource({"service.instance.id": str(uuid.uuid4()), "process.pid": os.getpid()})


def program_name() -> str:
    """What the program is called: the file without its ending, the module of `python -m`, else "python"."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name).removesuffix(".__main__")
    path = getattr(main, "__file__", None) or (sys.argv[0] if sys.argv else "")
    name = os.path.basename(str(path))
    if name == "__main__.py":  # of a folder or an archive that is run
        name = os.path.basename(os.path.dirname(str(path)))
    name = name.removesuffix(".py").encode("utf-8", "replace").decode()
    return name if name.strip("-") and name != "-c" else "python"


def _runtime() -> dict[str, str]:
    return {
        "process.runtime.name": platform.python_implementation().lower(),
        "process.runtime.version": platform.python_version(),
    }
