"""The flow of positions in virtual time: the shipped manager, ccxt and guard against a simulated venue.

The exchange is the local exchange of the lab without its sockets; the rows are kept by a model of the
statements of ``positions.sql``, which is checked against a real Postgres.
"""
