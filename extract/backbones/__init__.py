"""Frozen backbones: pixels to tokens, and what prepares the pixels."""
