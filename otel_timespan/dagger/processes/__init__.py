"""Worker processes: how the head starts them, speaks with them, and learns what became of them."""
