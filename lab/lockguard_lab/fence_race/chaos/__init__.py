"""A race of processes under stops, kills, loss of Redis and crashes of Postgres, judged by its history.

The processes are bots: a real guard on a real Redis, the fence in a real Postgres, and every documented way
to write in turn. Occasionally a process writes blindly: with a copy of its lease that checks no clock, in
a task that the loss of the lease does not cancel. A process that was stopped between its check and its write
does the same, and then only Postgres can refuse the write.

Each process keeps a journal, with one line before and one after every relevant step, in a file that survives
its ``kill -9``. The run is divided into rounds of some seconds. After each round the journals are compared
with the tables (see :mod:`lockguard_lab.fence_race.chaos.history`), and every violation is counted against
the way of writing that caused it.

Running a round requires the extra ``testing``. ``lockguard fence``, the group of operators' commands, imports
this package and must work without that extra.
"""

from __future__ import annotations

from lockguard_lab.fence_race.chaos.plan import ChaosPlan, RoundReport, Tally

__all__ = ["ChaosPlan", "RoundReport", "Tally"]
