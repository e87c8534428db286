"""``python -m lockguard_lab.own_bot``: the race without the guard and with it, at every place."""

from __future__ import annotations

import argparse
import sys
from itertools import product
from pathlib import Path

from lockguard import _interrupt as interrupt
from lockguard._clock import SYSTEM_CLOCK
from lockguard_lab.own_bot.counting import Counted
from lockguard_lab.own_bot.race import BOTS, PLACES, Place, race
from lockguard_lab.own_bot.stage import stage
from lockguard_lab.servers import PostgresServer, RedisServer

__all__ = ["main"]


def main() -> int:
    """Run the race without the guard and with it; ends with 1 if the guard let something happen."""
    parser = argparse.ArgumentParser(prog="python -m lockguard_lab.own_bot", description=main.__doc__)
    parser.add_argument("--bots", type=Path, default=BOTS, help="the folder with bot.py and guarded_bot.py")
    parser.add_argument("--rounds", type=int, default=1, help="how often; the places change (1)")
    parser.add_argument("--seed", type=int, default=0, help="which locks are broken")
    parser.add_argument("--log", type=Path, help="a file for what the bots say")
    options = parser.parse_args()
    if not (options.bots / "bot.py").is_file():
        parser.error(
            f"there is no bot.py in {options.bots}; run this in a checkout, or name the folder with --bots"
        )
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; give 1 or more")

    async def one(number: int, urls: tuple[str, str], *, guarded: bool) -> Counted:
        stop_at, kill_at = _places(number)
        async with stage(options.bots, *urls, guarded=guarded) as on:
            began = SYSTEM_CLOCK.now()
            try:
                found = await race(on, stop_at=stop_at, kill_at=kill_at, seed=options.seed + number)
            finally:
                if options.log is not None:
                    with options.log.open("a", encoding="utf-8") as log:
                        log.writelines(
                            f"{n}: {line}\n" for n, bot in enumerate(on.bots, 1) for line in bot.lines
                        )
            sys.stdout.write(_told(found, guarded=guarded, took_s=SYSTEM_CLOCK.now() - began))
            sys.stdout.flush()
            return found

    harm = 0
    with RedisServer() as redis, PostgresServer(max_connections=200) as postgres:
        for number in range(options.rounds):
            stop_at, kill_at = _places(number)
            sys.stdout.write(f"one bot stopped at its {stop_at}, and killed at its {kill_at}\n")
            for guarded in (False, True):
                name = f"own_bot_{number}_{'guarded' if guarded else 'plain'}"
                urls = redis.url, postgres.create_database(name)
                found = interrupt.run(one(number, urls, guarded=guarded))
                harm += sum(found.harm.values()) if guarded else 0
    return 1 if harm else 0


def _places(number: int) -> tuple[Place, Place]:
    """Where the bot is stopped and killed; the first one is ("entry", "stop")."""
    pairs = list(product(PLACES, PLACES))
    return pairs[(number * 4 + 5) % len(pairs)]


def _told(found: Counted, *, guarded: bool, took_s: float) -> str:
    lines = [f"  {'with the guard' if guarded else 'without'}, {took_s:.0f} s"]
    lines += [f"    {name:24} {count:4}" for name, count in found.harm.items()]
    lines += [f"    {'opened':24} {found.opened:4} of {found.symbols}"]
    if guarded:
        lines += [
            f"    {'leases broken':24} {found.broken:4}",
            f"    {'losses that were told':24} {found.lost:4}",
        ]
    else:
        lines += [f"    {'UniqueViolationError':24} {found.violations:4}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
