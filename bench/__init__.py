"""Benchmarks: `python -m bench` from the root of the checkout. See docs/bench.md."""
