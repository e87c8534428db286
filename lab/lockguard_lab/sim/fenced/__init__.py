"""The fence in virtual time: the shipped Python over asyncpg itself, against a model of Postgres.

The model knows transactions at two isolation levels, savepoints, advisory and row locks with Postgres's own
order of waiting, time limits, cancels and terminations, and the fence's functions written anew from what they
promise. Generated sequences hold it against a real Postgres, see
:mod:`lockguard_lab.sim.fenced.sequences`: a mistake in the fence's SQL shows there, and one in its Python
in the schedules.
"""
