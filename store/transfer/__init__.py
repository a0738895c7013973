"""Moving caches: push to a place, pull from one; whole or a part, packed or loose."""
