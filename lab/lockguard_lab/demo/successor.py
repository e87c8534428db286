"""The bot process that takes over: ``python -m lockguard_lab.demo.successor``.

It acts as a standby bot: it waits for the symbol's lease and, through the public manager, finishes what it
finds.
"""

from __future__ import annotations

import asyncio
import sys

from lockguard_lab.child_process import begin_as_child, say
from lockguard_lab.demo.parts import EXCHANGE, PACE, BotSettings, bot
from lockguard_positions._manager import AtomicPositionManager

__all__ = ["main"]


async def _run(part: BotSettings) -> None:
    async with bot(part) as made:
        manager = AtomicPositionManager(made.guard, made.pool, [made.exchange], pace=PACE, observers=[])
        say({"ready": True})
        while symbol := (await asyncio.to_thread(sys.stdin.readline)).strip():
            outcome = await manager.ensure_stop(symbol, EXCHANGE)
            say({"done": {"action": outcome.action.value, "details": outcome.details}})


def main() -> None:
    """Take over one symbol for each line of the standard input, until the input ends."""
    begin_as_child()
    part = BotSettings.decode(sys.stdin.readline())
    asyncio.run(_run(part))  # noqa: TID251 - its parent ends it


if __name__ == "__main__":
    main()
