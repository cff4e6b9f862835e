"""From finished spans to the wire, with an account of each; metrics by OTLP; the end of the process.

`pipeline` queues spans (`entries`, with what they take: `sizes`; what does not fit goes to disk: `spill`), counts them
(`accounts`) and has them sent (`delivery`) by a `transport`, as bytes (`wire`), or as the SDK's objects (`objects`,
`readable`). `metrics` sends metrics. `settings` reads and checks the OTEL_* variables and options, `resources` says who
sends, `shutdown` flushes in the last moments of the process.
"""
