"""What proves, shows and measures lockguard: servers, a local exchange, races, the demo and the benchmarks.

A distribution of its own, ``lockguard-lab``: none of it is needed in production, and nothing in the product
imports it. The ``lockguard`` command finds its commands by their entry points.
"""
