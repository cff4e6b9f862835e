"""Worker processes: what they are told, and how large values pass between them."""
