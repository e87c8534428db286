"""Nine faults of our own past, put back into the code of today.

Each was found by a person or a program that did not know how the code works; none has a law, a workload or a
schedule of its own here.
"""

from __future__ import annotations

from lockguard_lab.sim.planted.mistake import Change, Planted

__all__ = ["PAST"]

_OURS = "our own past"
_SQL = "lockguard_postgres/sql/"

PAST: tuple[Planted, ...] = (
    Planted(
        "past: a hold is used twice",
        _OURS,
        "lockguard/_hold.py",
        """        if self._stage is not _NEW:
            raise _used()
        self._stage = _ENTERING
        core, task""",
        """        self._stage = _ENTERING
        core, task""",
        judge="fenced",
    ),
    Planted(
        "past: equal arguments lock two names",
        _OURS,
        "lockguard/_naming.py",
        "    plain = value\n    for _ in range(_ENUMS_MAX):",
        '    return f"{value}"\n    plain = value\n    for _ in range(_ENUMS_MAX):',
        judge="fenced",
        law="S14",
    ),
    Planted(
        "past: a hold that is left in another context",
        _OURS,
        "lockguard/_context.py",
        "    _open.discard(weakref.ref(scope))\n    scopes = _scopes.get()\n",
        "    _open.discard(weakref.ref(scope))\n    scopes = _scopes.get()\n"
        "    if scope not in scopes:\n"
        "        raise ValueError('<Token> was created in a different Context')\n",
        judge="fenced",
    ),
    Planted(
        "past: a slow link costs the lease",
        _OURS,
        "lockguard/_renewal.py",
        "        if self._kept.get(grant.id) is not kept or (asked.decided and asked.renews):",
        "        if self._kept.get(grant.id) is not kept or kept.asked is not asked or asked.decided:",
        judge="fenced",
        law="L7",
    ),
    Planted(
        "past: a refused write does not end its lease",
        _OURS,
        "lockguard_postgres/_errors.py",
        "                    lease.lost_to_fence(refusal)",
        "                    pass",
        judge="fenced",
        law="S10",
    ),
    Planted(
        "past: checked once on a connection, in the caller's own transactions",
        _OURS,
        "lockguard_asyncpg/_connection.py",
        "    con.__class__ = _with_layer(_LentLayer, kind)\n    transaction_state(con).clear()",
        "    con.__class__ = _with_layer(_LentLayer, kind)",
        more=(
            Change(
                "lockguard_asyncpg/_connection.py",
                "    transaction_state(con).clear()\n    if con.is_lent:",
                "    if con.is_lent:",
            ),
        ),
        judge="fenced",
        law="S1",
    ),
    Planted(
        "past: only asyncio's own transports are taken for connections",
        _OURS,
        "lockguard/_nodes/wire.py",
        '        self._transport = cast("asyncio.Transport", transport)',
        "        assert isinstance(transport, asyncio.Transport)\n        self._transport = transport",
        judge="fenced",
    ),
    Planted(
        "past: writers in parallel starve a break",
        _OURS,
        f"{_SQL}0013_less_work.sql",
        "  perform pg_advisory_xact_lock_shared(lockguard.gate(p_resource));\n",
        "",
        more=(
            Change(
                f"{_SQL}0019_watched.sql",
                "  perform pg_advisory_xact_lock_shared(lockguard.gate(p_resource));\n"
                "  select f.* into held from lockguard.fence f where f.resource = p_resource for share;",
                "  select f.* into held from lockguard.fence f where f.resource = p_resource for share;",
            ),
        ),
        judge="sequences",
    ),
    Planted(
        "past: who stops between Parse and Bind keeps its successor out",
        _OURS,
        f"{_SQL}0004_nobody_stays.sql",
        "from lockguard.under_way(p_resource) u where u.pid <> pg_backend_pid() loop",
        "from lockguard.under_way(p_resource) u where u.pid <> pg_backend_pid()"
        " and u.state like 'idle in transaction%' loop",
        judge="sequences",
    ),
)
