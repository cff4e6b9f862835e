"""What the head process has of its workers: their processes, the sockets to them, what goes over those; large values."""
