"""What a task was asked for."""
