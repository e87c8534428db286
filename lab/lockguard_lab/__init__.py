"""Proves, demonstrates and measures lockguard: servers, a local exchange, races, the demo, the benchmarks.

It is a separate distribution, ``lockguard-lab``: production needs none of it, and nothing in the product
imports it. The ``lockguard`` command finds the lab's commands by their entry points.
"""
