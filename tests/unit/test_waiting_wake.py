"""A wake-up that overtakes the answer it belongs to."""

from __future__ import annotations

import asyncio

from lockguard._clock import SYSTEM_CLOCK
from lockguard._lease import Token, new_grant_id, parse_resource
from lockguard._locks import Contended, Won
from lockguard._waiting import Queue
from lockguard.ports import AcquireRequest, Busy


class Overtaking:
    """The holder releases right behind the refusal: its message comes before the caller has read that."""

    ready = True

    def __init__(self) -> None:
        self.asked = 0

    async def acquire(self, request, *, give_up_at):
        self.asked += 1
        if self.asked > 1:
            return Won(Token(2), SYSTEM_CLOCK.now() + 10)
        self.wake(request.grant)
        return Contended(Busy("h", "o", Token(1), age_ms=0, retry_after_ms=60_000, ticket=1))

    def ask_again_s(self):
        return 0.9

    def release(self, resource, grant):
        return None


async def test_a_wake_up_that_comes_before_its_caller_waits_is_kept():
    locks = Overtaking()
    queue = Queue(locks, clock=SYSTEM_CLOCK, emit=lambda event: None)
    locks.wake = queue.wake
    request = AcquireRequest(parse_resource("a"), new_grant_id(), "h", "o", 1000, queue=True)
    async with asyncio.timeout(0.5):  # without it, the first of a process asks again after 0.9 s
        won = await queue.acquire(request, give_up_at=SYSTEM_CLOCK.now() + 30)
    assert won.token == 2
    assert locks.asked == 2
