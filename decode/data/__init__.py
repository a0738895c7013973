"""From a cache to batches of windows."""
