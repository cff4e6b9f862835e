"""Values and the handles for them: chunks, shards, files, spilling."""
