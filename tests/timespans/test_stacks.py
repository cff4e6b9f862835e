"""Looking at what all threads execute, while garbage with finalizers lies about."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

from otel_timespan.timespans import stacks

PROGRAM = """
import faulthandler, gc, threading
from otel_timespan.timespans.stacks import current_frames
faulthandler.dump_traceback_later(60, exit=True)

class Junk:
    pass

for _ in range(500):
    gc.disable()
    junk = Junk()
    junk.local, junk.itself = threading.local(), junk
    junk.local.x = 1
    del junk
    gc.set_threshold(1)
    gc.enable()
    current_frames()
    gc.set_threshold(700)
assert gc.isenabled()
"""


def test_no_collection_begins_inside() -> None:
    """Garbage whose finalizer needs the interpreter's list of threads does not block the look at them for ever."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_blocks_may_overlap() -> None:
    """The collector is on again when the last of several blocks has ended, and stays off where it was."""
    on = gc.isenabled()
    first, second = stacks.uncollected(), stacks.uncollected()
    with first:
        second.__enter__()
    second.__exit__(None, None, None)
    assert gc.isenabled() == on
    gc.disable()
    try:
        with stacks.uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_every_thread_is_there() -> None:
    """The frames of all threads, the caller's among them."""
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait)
    thread.start()
    frames = stacks.current_frames()
    gate.set()
    thread.join()
    assert {threading.get_ident(), thread.ident} <= set(frames)
