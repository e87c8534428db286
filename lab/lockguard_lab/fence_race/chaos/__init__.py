"""A race of processes that are stopped, killed, robbed of their Redis and crashed on; its history is judged.

The processes are bots: a real guard on a real Redis, the fence in a real Postgres, and every documented way
to write in turn. Now and then one writes blindly: with a copy of its lease that never looks at a clock, in a
task that the loss of the lease does not cut. That is what a process does that was stopped between its look
and its write, and then nothing but Postgres is in the way.

Each process keeps a journal, one line before and one after everything that matters, in a file that survives
its ``kill -9``. The run is cut into rounds of some seconds. After each the journals are laid beside the
tables (see :mod:`lockguard_lab.fence_race.chaos.history`), and whatever is wrong is counted for the way that
did it.

Running a round takes the extra ``testing``. ``lockguard fence``, where operators' commands are, imports this
package and has to do without.
"""

from __future__ import annotations

from lockguard_lab.fence_race.chaos.plan import ChaosPlan, RoundReport, Tally

__all__ = ["ChaosPlan", "RoundReport", "Tally"]
