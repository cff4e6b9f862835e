"""What runs in a worker process: `python -m otel_timespan.worker`, started by `D.cluster.add_workers`.

A worker takes tasks from its head, runs their bodies on threads of its own, as the head runs them on its, and tells
what came of them. What a body spawns, cancels or waits for is the head's scheduler's. See docs/workers.md.
"""
