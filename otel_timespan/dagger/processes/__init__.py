"""What the head process has of its workers: their processes, the sockets to them, and what goes over those."""
