"""What a Postgres on this machine costs, and how large the fence's tables are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psutil

from lockguard_lab.fence_load.plan import TableSize

if TYPE_CHECKING:
    import asyncpg

    from lockguard_lab.servers import PostgresServer

__all__ = ["SETTINGS", "autovacuum_cpu_s", "cpu_s", "fence_calls", "table_sizes"]

SETTINGS = {"track_functions": "pl", "log_autovacuum_min_duration": "0"}
"""Of the server: it counts the fence's calls, and tells what each run of autovacuum took."""
_AUTOVACUUM = re.compile(
    r"automatic (?:vacuum|analyze|aggressive vacuum).*?CPU: user: ([\d.]+) s, system: ([\d.]+) s", re.DOTALL
)
_SIZES = """
select c.relname as name, pg_total_relation_size(c.oid) as bytes, s.n_live_tup as live, s.n_dead_tup as dead
  from pg_class c join pg_stat_user_tables s on s.relid = c.oid
 where c.relnamespace = 'lockguard'::regnamespace and c.relkind = 'r'
   and c.relname in ('fence', 'writer', 'outcome', 'forgotten', 'audit')
 order by c.relname
"""
_CALLS = """
select coalesce(sum(calls), 0)::bigint from pg_stat_user_functions
 where schemaname = 'lockguard' and funcname in ('seal', 'check', 'close')
"""


def cpu_s(server: PostgresServer) -> float:
    """Processor time of all of its processes so far, also of those that have ended."""
    total = 0.0
    main = psutil.Process(server.pid)
    for process in (main, *main.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # it is in its parent's account from now on
        total += times.user + times.system + times.children_user + times.children_system
    return total


def autovacuum_cpu_s(log: str) -> float:
    """Processor time of the runs of autovacuum that the server's log tells of."""
    return sum(float(user) + float(system) for user, system in _AUTOVACUUM.findall(log))


async def table_sizes(conn: asyncpg.Connection[Any]) -> list[TableSize]:
    """Those tables of the fence that writes and leases leave something in."""
    return [
        TableSize(row["name"], row["bytes"], row["live"], row["dead"]) for row in await conn.fetch(_SIZES)
    ]


async def fence_calls(conn: asyncpg.Connection[Any]) -> int:
    """How often leases were sealed, checked and closed so far, as sessions that have ended told."""
    return int(await conn.fetchval(_CALLS))
