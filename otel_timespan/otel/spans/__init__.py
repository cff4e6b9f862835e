"""From events to spans, without sending any."""
