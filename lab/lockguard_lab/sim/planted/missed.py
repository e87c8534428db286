"""Mistakes that the schedules missed at first; each was convicted once they tried what it needs to show."""

# ruff: noqa: E501 - the texts are those of the sources

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Planted

__all__ = ["MISSED_FENCE", "MISSED_FLOW", "MISSED_LOCK"]

_OURS = "our own past"
_CONSTANT = "a bound that moves with what it bounds"
_STATE = "lockguard_asyncpg/_transaction_state.py"
_SQL = "lockguard_postgres/sql/"

MISSED_LOCK: tuple[Planted, ...] = (
    Planted(
        "a renewal is sent once",
        "watchdogs whose one thread waits for the answer",
        "lockguard/_renewal.py",
        "        kept.due_at = now + grant.ttl_ms / 1000 * RENEWED_AGAIN_AFTER\n",
        "        kept.due_at = now + 1e9\n",
        law="L7",
        topology="single",
    ),
    Planted(
        "a renewal does not keep the resource closed for longer",
        "a delay after a loss that counts from the grant",
        "lockguard/lua/extend.lua",
        "  local lasting = delay and delay ~= '0' and ARGV[2] + delay or 0",
        "  local lasting = 0",
        law="S5",
        topology="single",
    ),
    Planted(
        "a lost lease is given back like any other",
        "locks that know one way to end",
        "lockguard/_hold.py",
        "lost=loss is not None, seal=grant.seal",
        "lost=False, seal=grant.seal",
        law="S5",
        topology="single",
    ),
    Planted(
        "a lock delay does not begin with a release",
        "Consul's lock-delay, which a release clears",
        "lockguard/lua/release.lua",
        "  if ARGV[3] == '1' then",
        "  if false then",
        law="S5",
        topology="single",
    ),
    Planted(
        "at_least ends with its release",
        "ShedLock's lockAtLeastFor, left out",
        "lockguard/lua/release.lua",
        "local closed_ms, at_least = 0, tonumber(ARGV[5])",
        "local closed_ms, at_least = 0, nil",
        law="S5",
        topology="single",
    ),
    Planted(
        "the longest hold is not heeded",
        "watchdogs that renew for ever",
        "lockguard/_renewal.py",
        "deadline = lease.keep_by(self, until=until)",
        "deadline = lease.keep_by(self, until=math.inf)",
        law="S10",
        topology="single",
    ),
    Planted(
        "the longest hold begins anew with each renewal",
        _CONSTANT,
        "lockguard/_lease.py",
        "        self._deadline = max(self._deadline, deadline)\n",
        "        self._held_until += deadline - self._deadline\n"
        "        self._deadline = max(self._deadline, deadline)\n",
        law="S10",
        topology="single",
    ),
    Planted(
        "a confirmation trusts the last renewal",
        "is_locked() that looks at a local deadline",
        "lockguard/_renewal.py",
        "        while kept is not None and kept.proven_at < began:",
        "        while kept is not None and kept.proven_at <= -math.inf:",
        law="S9",
        topology="single",
    ),
    Planted(
        "a quarantine lasts for the asker's own ttl",
        "Redlock's delayed restart, with a ttl for each caller",
        "lockguard/_membership.py",
        "    longest_ms = max(granted_max_ms, ttl_max_ms)\n",
        "    longest_ms = ttl_max_ms\n",
        law="S1",
        topology="quorum-3",
    ),
    Planted(
        "nodes note the ttl of their first lease only",
        "Redlock's delayed restart, with a ttl for each caller",
        "lockguard/lua/acquire.lua",
        "  if longest_ms < ttl_ms then",
        "  if longest_ms == 0 then",
        law="S1",
        topology="quorum-3",
    ),
    Planted(
        "what a late node granted is not undone",
        "Redlock ports",
        "lockguard/redlock.py",
        "            if not isinstance(vote, Busy | NotExecuted | Quarantined):",
        "            if vote is not None and not isinstance(vote, Busy | NotExecuted | Quarantined):",
        law="S8",
        topology="quorum-3",
    ),
    Planted(
        "a settled token is not kept",
        "tokens as a maximum over counters",
        "lockguard/lua/settle.lua",
        "if not (floor >= token and floor <= most) then",
        "if false then",
        law="S2",
        topology="quorum-3",
    ),
    Planted(
        "the highest token is not settled",
        "tokens as a maximum over counters",
        "lockguard/redlock.py",
        "                settled = await self.settle(request, token)",
        "                settled = True",
        law="S2",
        topology="quorum-3",
    ),
)

MISSED_FENCE: tuple[Planted, ...] = (
    Planted(
        "COMMIT is sent although the lease has ended",
        "check, then act",
        _STATE,
        "            for lease in leases:\n                lease.ensure()\n        except LockguardError as exc:",
        "            pass\n        except LockguardError as exc:",
        judge="fenced",
        law="S5",
    ),
    Planted(
        "what a rollback to a savepoint undid is not presented again",
        "frameworks that retry inside a savepoint",
        "lockguard_postgres/_presented.py",
        "        self.claims.clear()\n        if self.presentation is not None and not self._begun_with:",
        "        if self.presentation is not None and not self._begun_with:",
        judge="fenced",
        law="S1",
    ),
    Planted(
        "an older snapshot passes for no seal at all",
        _OURS,
        f"{_SQL}0009_long_gone.sql",
        "  if current_setting('transaction_isolation') not in ('repeatable read', 'serializable') then\n    return;",
        "  if true then\n    return;",
        judge="sequences",
    ),
    Planted(
        "nobody ends the sessions of a stopped holder",
        "fences that wait for ever",
        "lockguard_postgres/_fence.py",
        "        timer = asyncio.get_running_loop().call_later(self._grace_s, help_out)",
        "        timer = asyncio.get_running_loop().call_later(3600, help_out)",
        judge="fenced",
        law="L6",
    ),
    Planted(
        "a connection is given back inside a transaction",
        "pools after a cancel",
        _STATE,
        "    if not task.done() or task.cancelled() or task.exception() is not None:\n",
        "    if task.done() and task.exception() is not None:\n",
        judge="fenced",
        law="S8",
    ),
)

MISSED_FLOW: tuple[Planted, ...] = ()
