"""Measures the processor time of a Postgres on this machine, and the size of the fence's tables."""

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
"""The server's settings: it counts the fence's calls, and logs the cost of each run of autovacuum."""
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
    """Processor time of all the server's processes so far, including those that have ended, in seconds."""
    total = 0.0
    main = psutil.Process(server.pid)
    for process in (main, *main.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # an ended process: its time now counts with its parent's
        total += times.user + times.system + times.children_user + times.children_system
    return total


def autovacuum_cpu_s(log: str) -> float:
    """Processor time of the autovacuum runs in the server's log, in seconds."""
    return sum(float(user) + float(system) for user, system in _AUTOVACUUM.findall(log))


async def table_sizes(conn: asyncpg.Connection[Any]) -> list[TableSize]:
    """The sizes of the fence's tables in which writes and leases leave rows."""
    return [
        TableSize(row["name"], row["bytes"], row["live"], row["dead"]) for row in await conn.fetch(_SIZES)
    ]


async def fence_calls(conn: asyncpg.Connection[Any]) -> int:
    """How often leases were sealed, checked and closed so far, as counted by sessions that have ended."""
    return int(await conn.fetchval(_CALLS))
