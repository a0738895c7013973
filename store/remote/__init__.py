"""Places outside this machine's own caches: directories, object stores, web servers, hubs.

`place` says what a place is and opens one by its address; most other modules are one kind of place
and know nothing of what the objects of a cache mean. `mirror` reads a cache at a place, `shelf`
keeps copies of its objects here.
"""
