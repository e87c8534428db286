"""What it takes to list the locks: ``python -m lockguard_lab.bench.listing``, on a server of its own.

It plants locks and waiters as the scripts leave them, beside keys of others, runs ``lockguard ls`` on them,
and reads from the server how many commands that took and for how long each kept it busy.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import click
import redis

from lockguard._cli.numbers import WholeNumber
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.servers import RedisServer

__all__ = ["Listing", "main", "measure", "plant"]

_PART = 5_000
_TTL_MS = 3_600_000
_SLOW_US = 5_000
_NONE_OF_OURS = (
    *(b"lockguard:{}", b"lockguard:{a}b}", b"lockguard:{\xff}"),
    *(b"lockguard:{a\n}", b"lockguard:{ a}"),
)


@dataclass(frozen=True, slots=True)
class Listing:
    """One run of ``lockguard ls``.

    Attributes:
        took_s: the command's time as a process, in seconds.
        processor_s: its processor time, in seconds.
        listed: the locks that it printed.
        commands: how many commands of each kind the server ran.
        mean_us: how long one of them took on average, in microseconds.
        slow: the commands of 5 ms and more.
    """

    took_s: float
    processor_s: float
    listed: int
    commands: dict[str, int]
    mean_us: dict[str, float]
    slow: tuple[str, ...]


def plant(client: redis.Redis, *, foreign: int, held: int, waiters: int) -> None:
    """Write locks as the scripts leave them beside keys of others, some with names like ours.

    Args:
        client: of the server.
        foreign: how many keys of others.
        held: how many locks are held, named ``x:0`` and so on.
        waiters: how many wait for ``x:0``.
    """
    for first in range(0, foreign, _PART):
        names = range(first, min(first + _PART, foreign))
        client.mset({f"session:{number}": "x" for number in names})
    for first in range(0, held, _PART):
        with client.pipeline(transaction=False) as pipe:
            for number in range(first, min(first + _PART, held)):
                lock = f"lockguard:{{x:{number}}}"
                facts: dict[Any, Any] = {"holder": "h:1/t", "operation": "o", "token": 7, "renewals": 0}
                facts |= {"grant": f"{number:032x}", "acquired_at_ms": 1, "ttl_ms": _TTL_MS}
                pipe.hset(lock, mapping=facts)
                pipe.pexpire(lock, _TTL_MS)
                pipe.set(f"{lock}:token", 7, px=_TTL_MS)
                pipe.lpush(f"{lock}:history", "7 granted token=7 grant=ab holder=h:1/t operation=o")
            pipe.execute()
    for number in range(waiters):
        client.zadd("lockguard:{x:0}:queue", {f"{number:032x} inbox": number + 1})
        client.hset("lockguard:{x:0}:waiting", f"{number:032x}", "h:2/t sync")
    for name in _NONE_OF_OURS:
        client.set(name, "none of lockguard's")


def measure(url: str) -> Listing:
    """Run ``lockguard ls`` once on a server that nothing else uses."""
    with redis.Redis.from_url(url) as client:
        client.config_set("slowlog-log-slower-than", _SLOW_US)
        client.slowlog_reset()
        client.config_resetstat()
        began, spent_s = SYSTEM_CLOCK.now(), _processor_s()
        done = subprocess.run(
            [sys.executable, "-m", "lockguard", "ls", "--redis", url], check=True, capture_output=True
        )
        took_s = SYSTEM_CLOCK.now() - began
        stats: dict[str, Any] = client.info("commandstats")
        slow = tuple(str(entry["command"])[:80] for entry in client.slowlog_get(100))
    used = {name.removeprefix("cmdstat_"): facts for name, facts in stats.items()}
    return Listing(
        took_s=took_s,
        processor_s=_processor_s() - spent_s,
        listed=done.stdout.count(b"\n") - 1,
        commands={name: facts["calls"] for name, facts in used.items()},
        mean_us={name: facts["usec_per_call"] for name, facts in used.items()},
        slow=slow,
    )


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@click.command()
@click.option("--held", type=WholeNumber(1), default=10_000, help="Locks that are held.  [default: 10000]")
@click.option("--waiters", type=WholeNumber(0), default=100, help="Waiters for one.  [default: 100]")
@click.option("--foreign", type=WholeNumber(0), default=0, help="Keys of others.  [default: 0]")
@click.option("--rounds", type=WholeNumber(1), default=3, help="Runs of the command.  [default: 3]")
def main(held: int, waiters: int, foreign: int, rounds: int) -> None:
    """Measure ``lockguard ls``."""
    with RedisServer() as server:
        with redis.Redis.from_url(server.url) as client:
            plant(client, foreign=foreign, held=held, waiters=waiters)
        for _ in range(rounds):
            run = measure(server.url)
            told = (
                f"{run.commands[name]} {name} of {run.mean_us[name]:.0f} us" for name in ("scan", "evalsha")
            )
            click.echo(
                f"{run.listed} locks in {run.took_s:.2f} s ({run.processor_s:.2f} s of processor time);"
                f" {', '.join(told)}; {len(run.slow)} commands of 5 ms and more"
            )


if __name__ == "__main__":
    main()
