"""The demos: the whole pipeline on clips made here, and long-range questions on drawn tokens."""
