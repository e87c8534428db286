"""One reader for all pages: what it costs the servers, and that no page holds up another."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import aiohttp
import pytest

from lockguard.errors import LockguardError
from lockguard_ops._web import _feed
from lockguard_ops._web._feed import Feed, Full, Page
from lockguard_ops._web._seen import View
from tests.integration.web_pages import ByHand, busy_story, lock, position, refusal, served, snapshot


async def next_of(page: Page) -> dict[str, Any]:
    async with asyncio.timeout(10):
        told: dict[str, Any] = json.loads(await anext(page))
        return told


async def until_idle(source: ByHand) -> None:
    """Wait until the source is not asked any more, for several intervals."""
    while True:
        asked = len(source.asked)
        await asyncio.sleep(0.1)
        if len(source.asked) == asked:
            return


async def test_twenty_pages_ask_the_servers_no_more_than_one() -> None:
    source = ByHand(snapshot(lock("x")))
    feed = Feed(source, interval_s=0.01)
    with ExitStack() as stack:
        pages = [stack.enter_context(feed.page(View(opened="x"))) for _ in range(20)]
        rounds = 0
        for _ in range(10):
            told = await asyncio.gather(*(next_of(page) for page in pages))
            assert len({one["at"] for one in told}) == 1
            rounds += 1
        counted = Counter(source.asked)
    await feed.aclose()
    assert counted["snapshot"] <= rounds + 1
    assert counted["x"] <= counted["snapshot"]


async def test_pages_with_different_locks_opened_take_turns() -> None:
    source = ByHand(snapshot(lock("a"), lock("b"), lock("c")))
    source.stories["c"] = busy_story(source.now.at)
    feed = Feed(source, interval_s=0.001)
    with ExitStack() as stack:
        pages = [stack.enter_context(feed.page(View(opened=name))) for name in "abc"]
        while (await next_of(pages[2]))["opened"]["reading"] or len(source.asked) < 40:
            pass
        counted = Counter(source.asked)
    await feed.aclose()
    assert counted["a"] + counted["b"] + counted["c"] <= counted["snapshot"]
    assert max(counted[name] for name in "abc") - min(counted[name] for name in "abc") <= 1


async def test_nothing_is_asked_while_no_page_is_open_and_a_new_page_gets_news() -> None:
    source = ByHand(snapshot(lock("x")))
    feed = Feed(source, interval_s=0.001)
    with feed.page(View()) as page:
        await next_of(page)
    await until_idle(source)
    asked = len(source.asked)
    source.now = snapshot(lock("y"))
    with feed.page(View()) as page:
        told = await next_of(page)
    assert [one["name"] for one in told["locks"]] == ["y"]
    assert len(source.asked) > asked
    await feed.aclose()


async def test_a_slow_page_gets_the_newest_state_and_holds_up_no_other() -> None:
    source = ByHand(snapshot(lock("x")))
    feed = Feed(source, interval_s=0.001)
    with feed.page(View()) as slow, feed.page(View()) as quick:
        first = await next_of(slow)
        for _ in range(30):
            last = await next_of(quick)
        assert (await next_of(slow))["at"] >= last["at"] >= first["at"]
    await feed.aclose()


async def test_a_dead_page_holds_up_no_other_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes nothing, like a phone without a network, is ended when what it was sent piles up."""
    monkeypatch.setattr("lockguard_ops._web._app._SEND_S", 0.2)
    many = snapshot(*(lock(f"binance:S{n}USDT", operation="x" * 200) for n in range(1000)))
    source = ByHand(many)
    async with served(source, interval_s=0.001) as page, AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        async with session.get(page.url) as entered:
            cookie = entered.headers["Set-Cookie"].partition(";")[0]
        reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
        writer.write(
            f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nCookie: {cookie}\r\n\r\n".encode()
        )
        assert b"200" in await reader.readline()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with session.get(f"{page.origin}/events", headers={"Cookie": cookie}) as stream:
            states = 0
            async for line in stream.content:
                states += line.startswith(b"data: {")
                if states >= 300:
                    break
        with suppress(ConnectionError):
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            async with asyncio.timeout(10):
                while await reader.read(1 << 20):
                    pass
        writer.close()
        await until_idle(source)


async def test_no_more_pages_are_served_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_feed, "PAGES_MAX", 2)
    feed = Feed(ByHand(), interval_s=0.01)
    with feed.page(View()), feed.page(View()):
        with pytest.raises(Full), feed.page(View()):
            pass
    with feed.page(View()) as page:
        await next_of(page)
    await feed.aclose()


async def test_what_was_known_stays_with_its_time_where_nothing_could_be_read() -> None:
    class Refusing(ByHand):
        refuses = False

        async def snapshot(self) -> Any:
            if self.refuses:
                raise LockguardError("invalid username-password pair")
            return await super().snapshot()

    source = Refusing(snapshot(lock("x"), refusals=(refusal("x"),), positions=(position(1),)))
    feed = Feed(source, interval_s=0.01)
    with feed.page(View()) as page:
        told = await next_of(page)
        source.refuses = True
        while not told["redisFault"]:
            known, told = told, await next_of(page)
        later = await next_of(page)
    await feed.aclose()
    kept = ("locks", "locksAt", "refusals", "positions", "naked", "tablesAt")
    for each in (told, later):
        assert {name: each[name] for name in kept} == {name: known[name] for name in kept}
        assert each["databaseFault"] == "not read: invalid username-password pair"
    assert len(known["refusals"]) == len(known["naked"]) == 1


async def test_a_database_that_there_is_none_of_is_not_told_as_unread() -> None:
    class Refusing(ByHand):
        async def snapshot(self) -> Any:
            raise LockguardError("invalid username-password pair")

    feed = Feed(Refusing(has_database=False), interval_s=0.01)
    with feed.page(View()) as page:
        told = await next_of(page)
    await feed.aclose()
    assert (told["redisFault"], told["databaseFault"]) == ("invalid username-password pair", "")


async def test_a_story_that_cannot_be_read_is_told_and_the_rest_is_shown() -> None:
    class Failing(ByHand):
        async def story(self, resource: str) -> list[Any]:
            raise LockguardError("no right\x1b[31m to read it\nat all")

    feed = Feed(Failing(snapshot(lock("x"))), interval_s=0.01)
    with feed.page(View(opened="x")) as page:
        told = await next_of(page)
    await feed.aclose()
    assert told["opened"]["fault"] == "no right\\x1b[31m to read it"
    assert told["opened"]["lock"]["name"] == "x"


async def test_a_story_that_never_comes_holds_up_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(ByHand):
        async def story(self, resource: str) -> list[Any]:
            await asyncio.Event().wait()
            return []

    monkeypatch.setattr(_feed, "_STORY_S", 0.01)
    feed = Feed(Silent(snapshot(lock("x"))), interval_s=0.01)
    with feed.page(View(opened="x")) as page:
        await next_of(page)
        told = await next_of(page)
    await feed.aclose()
    assert told["opened"]["fault"] == "no answer within 0.01 s"


async def test_a_bug_ends_the_page_and_not_the_ones_after_it() -> None:
    class Broken(ByHand):
        broken = True

        async def snapshot(self) -> Any:
            if self.broken:
                raise ZeroDivisionError
            return await super().snapshot()

    source = Broken(snapshot(lock("x")))
    feed = Feed(source, interval_s=0.01)
    with feed.page(View()) as page, pytest.raises(ZeroDivisionError):
        await next_of(page)
    source.broken = False
    with feed.page(View()) as page:
        assert (await next_of(page))["held"] == 1
    await feed.aclose()


async def test_closing_ends_every_page() -> None:
    feed = Feed(ByHand(), interval_s=60)
    with feed.page(View()) as page:
        await next_of(page)
        waiting = asyncio.create_task(anext(page))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await feed.aclose()
        with pytest.raises((StopAsyncIteration, RuntimeError)):
            await waiting
