"""The machine: which task is where, and where it goes next. No threads, no clock of its own."""
