"""From spans and metrics to the wire, with an account of each."""
