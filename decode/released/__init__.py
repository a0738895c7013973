"""Weights saved by the released ViS4mer code."""
