"""What is to be done before a frame is decoded, and what it will cost."""
