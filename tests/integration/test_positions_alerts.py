"""Alerts reach their service in the background, and whatever a service does, the flow goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from aiohttp import web

from lockguard.errors import ConfigurationError
from lockguard.testing import FakeClock
from lockguard_positions import Alert
from lockguard_positions._pace import StopDeadline
from lockguard_positions.alerts import AppriseAlerts

# apprise loads all its services, and some of them want modules that Python is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MS = timedelta(milliseconds=1)
NAKED = Alert("binance:APTUSDT", 7, "without a stop for longer than 10 s")


class Service:
    """What receives the alerts."""

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.status = 200
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.bodies.append((await request.json())["message"])
        await self.gate.wait()
        return web.Response(status=self.status)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    running = Service()
    app = web.Application()
    app.router.add_post("/{any:.*}", running.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    running.url = f"json://bot:secret@127.0.0.1:{runner.addresses[0][1]}/"
    yield running
    running.gate.set()
    await runner.cleanup()


async def test_an_alert_says_which_position_and_what(service: Service) -> None:
    async with AppriseAlerts([service.url]) as alerts:
        alerts.on(NAKED)
    assert service.bodies == ["binance:APTUSDT position 7: without a stop for longer than 10 s"]


async def test_the_same_alert_is_not_sent_again_before_it_was_quiet_for_a_while(service: Service) -> None:
    clock = FakeClock()
    async with AppriseAlerts([service.url], clock=clock) as alerts:
        for _ in range(3):
            alerts.on(NAKED)
        clock.advance(timedelta(minutes=5))
        alerts.on(NAKED)
    assert len(service.bodies) == 2


async def test_what_begins_anew_after_it_was_told_to_be_over_is_sent_at_once(service: Service) -> None:
    """Whatever was said last of it: the position has no stop again, and its owner believes that it has."""
    now = Alert(NAKED.resource, NAKED.position_id, "without a stop for longer than 20 s")
    over = Alert(NAKED.resource, NAKED.position_id, f"over: {now.message}")
    async with AppriseAlerts([service.url], clock=FakeClock()) as alerts:
        for _ in range(2):
            for _ in range(3):  # the passes
                alerts.on(NAKED)
            alerts.on(over)
    assert [body.partition(": ")[2].partition(":")[0] for body in service.bodies] == [
        "without a stop for longer than 10 s",
        "over",
    ] * 2


async def test_an_end_that_did_not_get_through_is_not_sent_behind_the_next_beginning(
    service: Service,
) -> None:
    over = Alert(NAKED.resource, NAKED.position_id, f"over: {NAKED.message}")
    async with AppriseAlerts([service.url], send_again=20 * MS) as alerts:
        alerts.on(NAKED)
        await alerts._waiting.join()
        service.status = 500
        alerts.on(over)
        await alerts._waiting.join()
        service.status = 200
        alerts.on(NAKED)
        await asyncio.sleep(0.06)  # three times as long as it waits to be sent again: it may not come
        await alerts._waiting.join()
    assert [body.count("over") for body in service.bodies] == [0, 1, 0]


async def test_an_alert_that_did_not_get_through_is_sent_again_at_its_next_word(service: Service) -> None:
    async with AppriseAlerts([service.url]) as alerts:
        for status in (500, 200, 200):
            service.status = status
            alerts.on(NAKED)
            await alerts._waiting.join()
    assert len(service.bodies) == 2


async def test_a_service_that_hangs_holds_nobody_up_and_ends_with_the_bot(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service.gate.clear()
    async with AppriseAlerts([service.url], flush_within=50 * MS) as alerts:
        for number in range(150):
            alerts.on(Alert("binance:APTUSDT", number, "wrong"))
        while not service.bodies:
            await asyncio.sleep(0.01)
    service.gate.set()
    assert len(service.bodies) == 1
    assert "too many alerts wait" in caplog.text
    assert "before the end" in caplog.text


@pytest.mark.parametrize("down", [True, False])
async def test_a_service_that_refuses_is_logged_without_its_password(
    service: Service, down: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "lockguard")
    service.status = 500
    url = "json://bot:secret@127.0.0.1:9/" if down else service.url
    async with AppriseAlerts([url]) as alerts:
        alerts.on(NAKED)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("lockguard")]
    assert told == ["an alert was not taken by every service: binance:APTUSDT"]


@pytest.mark.parametrize("url", ["nonsense", "bogus://user:secret@host", "secret"])
def test_a_url_that_cannot_work_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="alert URL 1") as caught:
        AppriseAlerts([url])
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(AppriseAlerts(["json://bot:secret@127.0.0.1/"]))


async def test_the_deadline_is_told_once_at_the_time_it_passes() -> None:
    told: list[float] = []
    clock = FakeClock()
    deadline = StopDeadline(30 * MS, clock)
    deadline.begin(told.append)
    deadline.begin(told.append)
    assert told == []
    async with asyncio.timeout(5):
        while not told:
            await asyncio.sleep(0.005)
    assert (told, deadline.over) == ([0.03], False)
    clock.advance(31 * MS)
    assert deadline.over


async def test_what_was_without_a_stop_before_counts_for_the_alert_and_not_for_the_attempts() -> None:
    told: list[float] = []
    deadline = StopDeadline(timedelta(seconds=10), FakeClock())
    deadline.begin(told.append, already_ms=11_000)
    async with asyncio.timeout(5):
        while not told:
            await asyncio.sleep(0.005)
    assert not deadline.over


async def test_a_stop_in_time_is_no_alert() -> None:
    told: list[float] = []
    deadline = StopDeadline(10 * MS, FakeClock())
    deadline.begin(told.append)
    deadline.end()
    await asyncio.sleep(0.03)  # three times the deadline: nothing may come
    assert told == []
