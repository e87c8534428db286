"""Recorded chaos: real processes and servers under faults, judged by their history.

The processes are bots: a real guard on real Redis servers, the fence in a real Postgres, and every documented
way to write in turn. Occasionally a process writes blindly: with a copy of its lease that checks no clock, in
a task that the loss of the lease does not cancel. A process that was stopped between its check and its write
does the same, and then only Postgres can refuse the write.

Each process records its calls, with one line before and one after each, in a file that survives its
``kill -9`` (:mod:`lockguard_lab.chaos.recording`). The run is divided into rounds of some seconds. After each
round the history is judged (:mod:`lockguard_lab.chaos.verdict`):

* It is compared with the tables: nothing stale, nothing twice, nothing lost
  (:mod:`lockguard_lab.chaos.tables`).
* The lock and the fence of each resource must be linearizable
  (:mod:`lockguard_lab.chaos.linearizability`, :mod:`lockguard_lab.chaos.models`).
* No waiter may sleep beside a free lock, and after each fault the lock must be usable again in time
  (:mod:`lockguard_lab.chaos.recovery`).
* The judge must convict a stale write and a second grant that are put into a copy of the history, and writes
  that its own processes really made past the fence (:mod:`lockguard_lab.chaos.selfcheck`).

Running a round requires the extra ``testing``. ``lockguard fence``, the group of operators' commands, must
work without that extra.
"""

from __future__ import annotations

from lockguard_lab.chaos.plan import ChaosPlan, RoundReport, Tally

__all__ = ["ChaosPlan", "RoundReport", "Tally"]
