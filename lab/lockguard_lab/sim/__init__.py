"""A deterministic simulator: the shipped Python and Lua in virtual time, against simulated servers.

Every process is an event loop of its own whose turns are dealt from the seed; every byte travels over a
network that delays, cuts and holds it back; Redis is a dict whose scripts run in Lua; Postgres is a model of
the fence. The same seed gives the same schedule, so that a failure is found again by its number.
"""
