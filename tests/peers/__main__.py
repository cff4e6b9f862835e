"""Runs the tests of others, each peer in a process of its own: `python -m tests.peers [NAME ...]`."""

from __future__ import annotations

import subprocess
import sys
import time

from .judging import NOT_HERE

PEERS = {
    "cpython": ["cpython"],
    "cpython-processes": ["cpython", "processes"],
    "asyncio": ["event_loop"],
    "dask-pool": ["dask_graphs", "pool"],
    "dask": ["dask_graphs"],
    "joblib": ["joblib_backend"],
}
LIMIT_S = 1800
"""Twenty times what one of them takes on two cores at rest."""


def run(name: str) -> str:
    """Run one, which prints what it finds; "passed", "failed" or "skipped"."""
    print(f"--- {name}", flush=True)
    begun = time.monotonic()
    module, *given = PEERS[name]
    try:
        status = subprocess.run([sys.executable, "-m", f"tests.peers.{module}", *given], timeout=LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        print(f"it did not end within {LIMIT_S} s")
        status = 1
    state = {0: "passed", NOT_HERE: "skipped"}.get(status, "failed")
    print(f"--- {name} {state} ({time.monotonic() - begun:.0f} s)", flush=True)
    return state


def main(names: list[str]) -> int:
    """All, or those named; the exit status."""
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        print(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}", file=sys.stderr)
        return 2
    states = [run(name) for name in names or PEERS]
    counts = [f"{states.count(state)} {state}" for state in ("passed", "failed", "skipped")]
    print("peers: " + ", ".join(counts))
    return 1 if "failed" in states else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
