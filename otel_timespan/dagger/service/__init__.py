"""Our own threads: calls at a later time, calls for finalizers, what threads inherit."""
