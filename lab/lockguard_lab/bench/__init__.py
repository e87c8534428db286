"""``lockguard bench``: lockguard, its limits and its peers in one run, on one server, in turns."""
