"""What the results of commands look like: one function a result, for people or as JSON.

Knows the records that the rooms return and how `console` prints; parses and computes nothing.
"""
