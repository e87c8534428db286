"""What servers of all versions answer where entries of a stream were trimmed away while a bot had them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from lockguard_bot._signals import CloseSignal
from lockguard_bot._stream import StreamSource

CLOSE = [b"id", b"s1", b"action", b"close", b"symbol", b"APTUSDT"]


class Client:
    """Answers as Redis 6.2 does: a claimed entry that is gone is null, and stays on the list."""

    def __init__(self, *claimed: list[Any]) -> None:
        self.claimed = list(claimed)
        self.parsers: dict[str, Callable[[Any], Any]] = {}

    def set_response_callback(self, command: str, parse: Callable[[Any], Any]) -> None:
        self.parsers[command] = parse

    async def xautoclaim(self, *_: Any, **__: Any) -> Any:
        return self.parsers["XAUTOCLAIM"](self.claimed.pop(0))

    async def xreadgroup(self, *_: Any, **__: Any) -> Any:
        return self.parsers["XREADGROUP"](None)


class _Counted(StreamSource):
    async def _begin_reading(self, entry_id: bytes) -> int:
        assert entry_id == b"2-0"
        return 1


async def test_an_entry_that_was_trimmed_away_does_not_end_the_bots_that_look_for_it() -> None:
    client: Any = Client([b"1-0", [None]], [b"2-0", [[b"2-0", CLOSE]]], [b"0-0", [None]])
    source = _Counted(client, "signals", "bots", claim_after=timedelta(seconds=1), follow=False)
    found = await source.next(asyncio.Event())
    assert found is not None
    assert isinstance(found.signal, CloseSignal)
    assert await source.next(asyncio.Event()) is None
