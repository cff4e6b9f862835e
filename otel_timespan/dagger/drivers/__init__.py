"""Drivers: what runs the bodies that the core queues. `threads` for real, `inline` for tests."""
