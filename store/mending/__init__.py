"""How `repair` mends a cache: what is bad is taken from a sound copy, or let go.

steps           what every deed needs: its mirrors, and writing that a dry run leaves out
entries, files  deeds: one entry after another, and the files that are no entry's objects
lost            what the cache still knows of what it lost
lost_spec       its settings, from a copy of the same values
"""
