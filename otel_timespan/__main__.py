"""`python -m otel_timespan`: the command line."""

from .cli import main

main()
