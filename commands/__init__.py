"""The commands, a module for each room they call; `cli` puts them together.

A command parses, calls and renders, and has no logic of its own. It imports what it needs when it
runs, so that `vis4mer --help` answers at once.
"""
