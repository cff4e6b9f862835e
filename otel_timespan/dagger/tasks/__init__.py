"""One task: its record, its races, its failure, what its body knows of it."""
