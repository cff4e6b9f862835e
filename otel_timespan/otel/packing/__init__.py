"""From the records of a finished task straight to the OTLP bytes of all its spans, for the common case.

`packer.py` compiles, `lane.py` decides which tasks go this way. What they give is what the general way would have given
(spans/mapping.py, export/wire.py): tests/otel/test_lane.py compares all of it.
"""
