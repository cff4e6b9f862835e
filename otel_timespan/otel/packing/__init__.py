"""From the records of a finished task straight to the OTLP bytes of all its spans, for the common case.

`packer.py` compiles, `lane.py` decides which tasks go this way. What they give is what the general way (spans/mapping.py,
export/wire.py) would have given; tests/otel/test_lane.py compares every byte.
"""
