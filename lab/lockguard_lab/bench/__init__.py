"""``lockguard bench``: measures lockguard, its limits and its peers in turns, in one run on one server."""
