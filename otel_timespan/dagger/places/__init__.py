"""Where bodies run and values lie: hosts, workers, processors, scopes, storage devices."""
