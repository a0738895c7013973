"""Labels as people publish them → task tables. Knows nothing of what a video holds."""
