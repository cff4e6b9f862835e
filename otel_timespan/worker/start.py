"""How a worker begins and ends: first its configuration, then tasks, until the head says so or is gone."""

from __future__ import annotations

import pickle
import signal
import socket
import sys
from typing import Any

from ..dagger.processes.frames import Framer
from ..dagger.processes.wire import CONFIG
from .ending import end_with_head

__all__ = ["main"]

_BAND = 20
"""Task ids of worker w begin with block w << 20: so many blocks of ids are each worker's own."""


def main(argv: list[str]) -> int:
    """Serve a head until it says STOP: 0."""
    if len(argv) != 2 or not argv[1].isdecimal():
        print("python -m otel_timespan.worker is started by otel_timespan.dagger.cluster.add_workers", file=sys.stderr)
        return 2
    sock = socket.socket(fileno=int(argv[1]))
    messages, framer = _first(sock)
    config = messages[0][1]
    _apply(config)
    from .link import Link  # only now that the search path is the head's

    link = Link(sock, framer, config)
    link.serve(messages[1:])
    return 0


def _first(sock: socket.socket) -> tuple[list[Any], Framer]:
    """The messages of the first frame, whose first is the configuration."""
    framer = Framer()
    while True:
        data = sock.recv(1 << 16)
        if not data:
            end_with_head()
        frames = framer.feed(data)
        if frames:
            messages = [message for frame in frames for message in pickle.loads(frame)]
            if not messages or messages[0][0] != CONFIG:
                raise SystemExit("otel_timespan.worker: the first message was not the configuration")
            return messages, framer


def _apply(config: dict[str, Any]) -> None:
    sys.path[:] = config["path"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the head's, who tells us
    from ..dagger import context
    from ..dagger.places.topology import topology
    from ..dagger.processes.byvalue import take_main

    take_main()
    worker = config["worker"]
    context.ids.begin_at(worker << _BAND)
    topology.set_me(worker)
    topology.add_worker(1, local=False)
    topology.add_worker(worker, config["threads"])
