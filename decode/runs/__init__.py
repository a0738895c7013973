"""What a run directory holds: config, checkpoints, log, results."""
