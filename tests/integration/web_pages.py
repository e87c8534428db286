"""What the tests of the live page share: installations made by hand, their page, and a browser."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from lockguard import Resource
from lockguard._breaking import changed_hands
from lockguard._records import FenceStanding, Refusal
from lockguard._story import Line
from lockguard.ports import Broken, Inspection, Token, Waiter
from lockguard_ops._installation import LockView, Snapshot
from lockguard_ops._positions import OpenPosition
from lockguard_ops._web._access import Access
from lockguard_ops._web._app import application

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>[/x]\x1b[31m\u202egnp\u2066'
"""As it would be shown were it not made harmless."""

GRANT = "89239437ad8506bf70327e1aa514e463"
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1280, "height": 860}


def lock(name: str, **facts: Any) -> LockView:
    """A lock that is held, unless ``facts`` say otherwise."""
    fence, token = facts.pop("fence", FenceStanding.OPEN), facts.pop("fence_token", None)
    given: dict[str, Any] = {
        "resource": Resource(name),
        "held": True,
        "grant": GRANT,
        "token": 1795239517492224,
        "holder": "bot-1:5999/Task-1",
        "operation": "open long",
        "age_ms": 4_200,
        "remaining_ms": 7_300,
        "ttl_ms": 10_000,
        "renewals": 1,
        "waiters": (),
        **facts,
    }
    return LockView(Inspection(**given), fence, given["token"] if token is None else token)


def waiter(number: int, **facts: Any) -> Waiter:
    given: dict[str, Any] = {
        "grant": f"{number:032x}",
        "inbox": f"lockguard:inbox:{number}",
        "ticket": number,
        "silent_ms": 400,
        "holder": f"bot-2:81{number:02}/Task-{number}",
        "operation": "sync",
        "waiting_ms": 9_000 - 700 * number,
        **facts,
    }
    return Waiter(**given)


def refusal(name: str, **facts: Any) -> Refusal:
    at = facts.pop("at", datetime.now(UTC) - timedelta(seconds=70))
    given: dict[str, Any] = {
        "resource": name,
        "presented": 1795239517492224,
        "current": 1795239518994318,
        "sqlstate": "LG001",
        "reason": "superseded",
        "holder": "bot-1:5999/Task-1",
        "operation": "open long",
        "role": "bot",
        "application": "trader",
        "times": 1,
        "first_at": at,
        "at": at,
        **facts,
    }
    return Refusal(**given)


def position(number: int, **facts: Any) -> OpenPosition:
    given: dict[str, Any] = {
        "id": number,
        "exchange": "binance",
        "symbol": "APTUSDT",
        "side": "long",
        "quantity": Decimal("12.5"),
        "status": "pending_sl",
        "since": datetime.now(UTC) - timedelta(seconds=8),
        **facts,
    }
    return OpenPosition(**given)


def snapshot(*locks: LockView, **facts: Any) -> Snapshot:
    return Snapshot(at=datetime.now(UTC), locks=locks, **facts)


@dataclass
class ByHand:
    """An installation of which a test says what it is; counts what it is asked."""

    now: Snapshot = field(default_factory=snapshot)
    stories: dict[str, Sequence[Line]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    done: list[tuple[str, ...]] = field(default_factory=list)
    fails: Exception | None = None
    has_database: bool = True
    broken: Broken = field(default_factory=lambda: Broken(GRANT, "bot-1:5999/Task-1", Token(7)))

    async def snapshot(self) -> Snapshot:
        self.asked.append("snapshot")
        await asyncio.sleep(0)
        return replace(self.now, at=datetime.now(UTC))

    async def story(self, resource: str) -> Sequence[Line]:
        self.asked.append(resource)
        return self.stories.get(resource, ())

    async def show(self, resource: str) -> LockView:
        return next(one for one in self.now.locks if one.lock.resource == resource)

    async def ask(self, resource: str, *, grant: str, reason: str) -> bool:
        lock = (await self.show(resource)).lock
        if lock.held and lock.grant != grant:
            raise changed_hands(lock.resource, lock.grant, lock.holder, what="asked")
        self.done.append(("ask", resource, reason))
        return True

    async def break_(self, resource: str, *, grant: str, reason: str) -> Broken:
        if self.fails is not None:
            raise self.fails
        self.done.append(("break", resource, grant, reason))
        return self.broken


def busy_story(now: datetime) -> list[Line]:
    """Ten minutes of a symbol: three bots, a break, a refused write."""

    def ago(seconds: float) -> datetime:
        return now - timedelta(seconds=seconds)

    one, two, three = "bot-1:5999/Task-1", "bot-2:8101/Task-4", "bot-2:8102/sync"

    def of_redis(seconds: float, event: str, grant: str, holder: str, what: str = "", **facts: Any) -> Line:
        return Line(ago(seconds), "redis", event, grant=grant, holder=holder, operation=what, **facts)

    return [
        of_redis(560, "granted", "a1", two, "open short", token=1795239517492101),
        of_redis(500, "released", "a1", two),
        of_redis(430, "granted", "a2", one, "open long", token=1795239517492150),
        of_redis(190, "broken", "a2", one, reason="kim@desk: stuck in a fill"),
        of_redis(185, "granted", "a3", three, "sync", token=1795239517492201),
        Line(ago(150), "fence", "refused", token=1795239517492150, holder=one, reason="superseded"),
        of_redis(90, "released", "a3", three),
        of_redis(4.2, "granted", GRANT, one, "open long", token=1795239517492224),
    ]


@dataclass
class Served:
    """The page on a port of this machine."""

    port: int
    access: Access
    runner: web.AppRunner

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/?token={self.access.token}"


@asynccontextmanager
async def served(
    source: ByHand, *, actions: bool = False, token: str = "", port: int = 0, interval_s: float = 0.05
) -> AsyncIterator[Served]:
    access = Access(host="127.0.0.1", token=token)
    app = application(
        source,
        access,
        about={"servers": ["127.0.0.1:6379", "127.0.0.1:5432/bot"], "database": True, "interval": 1000},
        interval_s=interval_s,
        actions=source if actions else None,
    )
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        yield Served(runner.addresses[0][1], access, runner)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The system's Chromium; without one the test is skipped."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("there is no Chromium on this machine")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root it refuses to start with one
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Visit:
    """A page in a browser, and what its console said."""

    page: Page
    context: BrowserContext
    said: list[str] = field(default_factory=list)


@asynccontextmanager
async def visit(
    browser: Browser, url: str, *, viewport: dict[str, int] = DESKTOP, **options: Any
) -> AsyncIterator[Visit]:
    context = await browser.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
    try:
        page = await context.new_page()
        found = Visit(page, context)

        def hear(message: ConsoleMessage) -> None:
            found.said.append(f"{message.type}: {message.text}")

        page.on("console", hear)
        page.on("pageerror", lambda error: found.said.append(f"error: {error}"))
        page.set_default_timeout(15_000)
        await page.goto(url)
        yield found
    finally:
        await context.close()
