"""The pipeline of stage 1: reading, encoding and writing at once."""
