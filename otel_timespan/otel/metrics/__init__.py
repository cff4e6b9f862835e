"""From counts, durations and consumers' values to instruments.

`hub` owns the instruments of a meter provider and asks its sources: `logmetrics` (what an `OTelLog` counts) and
`aggregator` (the streams of a `MultiEventLog`). The consumers' values come by `gauges` from either. `recording` puts
durations into histograms.
"""
