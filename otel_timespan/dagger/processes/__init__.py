"""What the head process has of its workers: processes, sockets to them, what goes over those, large values."""
