"""Sweeps: many runs that differ in a few settings, trained in as few passes as can be.

sweep      what is asked: a base, axes, seeds; every point with its name
presets    the sweeps of the papers
plan       the points against their caches: passes, what they will read, what cannot run
directory  the folder of a sweep: whose it is, its rows in results.jsonl
running    the passes one after another, or side by side on several devices
worker     one device's process
memory     what a training step of a setting takes
rows       one finished run, and settings with means over their seeds
figures    scores against what was swept
"""
