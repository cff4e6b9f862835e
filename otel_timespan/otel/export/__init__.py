"""From finished spans to the wire, with an account of each; metrics by OTLP; the end of the process.

`pipeline` queues spans (what does not fit goes to disk: `spill`), counts them (`accounts`) and sends them by a
`transport`, as bytes (`wire`) or as the SDK's objects (`readable`). `metrics` sends metrics. `settings` reads the
OTEL_* variables, `resources` says who sends, `shutdown` flushes in the last moments of the process.
"""
