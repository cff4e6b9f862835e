"""How a worker begins and ends: first its configuration, then tasks, until the head says so or is gone."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
from typing import Any

from ..dagger.processes.failpoints import reach
from ..dagger.processes.flight import FlightRecorder
from ..dagger.processes.frames import Framer
from ..dagger.processes.orphans import tie_group, watch_parent
from ..dagger.processes.wire import CONFIG
from .ending import end_with_head

__all__ = ["main"]

_BAND = 20
"""Task ids of worker w begin with block w << 20: so many blocks of ids are each worker's own."""


def main(argv: list[str]) -> int:
    """Serve a head until it says STOP: 0."""
    if len(argv) != 5 or not all(one.isdecimal() for one in argv[1:]):
        print("otel_timespan.worker is started by otel_timespan.dagger.cluster.add_workers", file=sys.stderr)
        return 2
    link_fd, flight_fd, errors_fd, life_fd = map(int, argv[1:])
    if not tie_group(life_fd):
        watch_parent()
    for fd in (link_fd, flight_fd, errors_fd, life_fd):
        os.set_inheritable(fd, False)  # what bodies start has no use for them, and would keep them open
    sock = socket.socket(fileno=link_fd)
    messages, framer = _first(sock)
    config = messages[0][1]
    _apply(config)
    reach("starting")
    from .link import Link  # only now that the search path is the head's

    link = Link(sock, framer, config, FlightRecorder(flight_fd))
    _use_errors(errors_fd)
    link.serve(messages[1:])
    return 0


def _use_errors(fd: int) -> None:
    """From now on errors go where those of the head go; what was written until now does, too."""
    sys.stderr.flush()
    early = os.dup(2)
    os.dup2(fd, 2)
    os.close(fd)
    try:
        written = os.pread(early, 1 << 20, 0)
        if written:
            os.write(2, written)
    except OSError:  # it is no file, as somebody started us by hand; nobody reads it
        pass
    os.close(early)


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
    if "authkey" in config:
        from multiprocessing.process import current_process

        current_process().authkey = config["authkey"]
    from ..dagger import context
    from ..dagger.places.topology import topology
    from ..dagger.processes.byvalue import take_main

    take_main()
    worker = config["worker"]
    context.ids.begin_at(worker << _BAND)
    topology.set_me(worker)
    topology.add_worker(1, local=False)
    topology.add_worker(worker, config["threads"])
