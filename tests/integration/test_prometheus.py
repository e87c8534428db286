"""A real Prometheus scrapes a real exporter and a bot's observer under load: every panel has its series."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

import lockguard_ops
from lockguard import LeaseLost, LockGuard, ResourceBusy, StaleToken, detached
from lockguard.events import ObserverFailed
from lockguard_asyncpg import PostgresFence, fenced_transaction
from lockguard_ccxt import GuardedExchange, Patience
from lockguard_lab.exchange import Execution, FaultKind, Operation
from lockguard_lab.servers.ports import free_port
from lockguard_metrics import PrometheusObserver
from lockguard_metrics._catalog import OBSERVED
from lockguard_metrics._serving import serving
from lockguard_ops._exporter_catalog import EXPORTED
from lockguard_positions import AtomicPositionManager
from tests.integration.test_exporter import running
from tests.integration.test_positions_flow import APT, MS, PACE, Bot, bot, two_bots

__all__ = ["bot", "two_bots"]

MONITORING = Path(lockguard_ops.__file__).parent / "monitoring"
SYMBOLS = (APT, "SUI/USDT:USDT", "ARB/USDT:USDT")

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="prometheus is not installed (Debian's package prometheus), so nothing is scraped here",
)


class Prometheus:
    """A Prometheus of the test's own."""

    def __init__(self, port):
        self._url = f"http://127.0.0.1:{port}"

    async def ask(self, path, **parameters):
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"

        def get():
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]

        return await asyncio.to_thread(get)

    async def series(self, query):
        """What a query gives now, by labels; figures that are no number (yet) are left out."""
        found = (await self.ask("query", query=query))["result"]
        return {str(one["metric"]): float(one["value"][1]) for one in found if one["value"][1] != "NaN"}

    async def until_up(self, number):
        async with asyncio.timeout(60):
            while True:
                try:
                    if len(await self.series("up == 1")) == number:
                        return
                except OSError:  # it begins
                    pass
                await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(folder, **targets):
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / "rules.yml")],
        "scrape_configs": [
            {"job_name": name, "static_configs": [{"targets": [urllib.parse.urlsplit(url).netloc]}]}
            for name, url in targets.items()
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    words = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process = await asyncio.to_thread(
        lambda: subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    )
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def work(bot: Bot, guard: LockGuard, manager: AtomicPositionManager) -> None:
    """One round of what a bot does, well and badly."""
    for symbol in SYMBOLS:
        if symbol == APT:
            bot.fault(FaultKind.DISCONNECT, Operation.CREATE_ORDER, execution=Execution.FIRST)
        price = bot.exchange.price(symbol)
        await manager.open_position_atomic("s", symbol, "binance", "long", "10", price, "2")
    await manager.sync_exchange_positions("binance")
    await manager.recover("binance")
    async with guard.hold("binance:busy"):
        with detached():
            for options in ({"wait": 50 * MS}, {"on_busy": "raise"}):
                with pytest.raises(ResourceBusy):
                    await asyncio.create_task(guard.hold("binance:busy", **options).__aenter__())
    with pytest.raises((LeaseLost, StaleToken)):
        async with guard.hold("binance:broken") as lease:
            fence = PostgresFence(bot.pool)
            await fence.break_(lease.resource, reason="test", within=timedelta(seconds=1))
            async with fenced_transaction(bot.pool) as connection:
                await connection.execute("select 1")
    await manager.close_position(APT, "binance")


@asynccontextmanager
async def under_load(bot: Bot, redis_url: str, database_url: str, folder: Path):
    """A bot with an observer at work, an exporter, and a Prometheus that scrapes both."""
    async with AsyncExitStack() as stack:
        registry = CollectorRegistry()
        observer = PrometheusObserver(registry)
        guard = LockGuard.from_url(
            redis_url, fence=PostgresFence(bot.pool), ttl=timedelta(seconds=3), observers=[observer]
        )
        await stack.enter_async_context(guard)
        guarded = GuardedExchange(
            bot.client, patience=Patience(needed=100 * MS, search=300 * MS, poll=20 * MS)
        )
        manager = AtomicPositionManager(guard, bot.pool, [guarded], pace=PACE, observers=[observer])
        observer.on(ObserverFailed("Mine", "OSError", 1))
        url = await stack.enter_async_context(serving(registry, "127.0.0.1", 0, name="--metrics"))
        exporter = await stack.enter_async_context(running("--redis", redis_url, "--database", database_url))
        found = await stack.enter_async_context(prometheus(folder, lockguard=exporter.url, bots=url))
        await work(bot, guard, manager)
        await found.until_up(2)
        # Held for longer than a third of the ttl, so that it is renewed, with a waiter.
        await stack.enter_async_context(guard.hold("binance:long"))
        other = await stack.enter_async_context(LockGuard.from_url(redis_url, observers=[]))
        waiting = asyncio.create_task(_wait(other))
        stack.callback(waiting.cancel)
        yield found, lambda: work(bot, guard, manager)


async def _wait(guard: LockGuard) -> None:
    with detached():
        async with guard.hold("binance:long", wait=timedelta(minutes=5)):
            pass


def panels() -> list[tuple[str, str]]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    return [
        (panel["title"], target["expr"].replace("$group", ".*"))
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


@pytest.mark.timeout(300)
async def test_each_panel_and_each_metric_has_its_series_and_the_alerts_fire(
    bot: Bot, redis_url: str, database_url: str, tmp_path: Path
) -> None:
    wanted = dict(panels_by_query())
    async with under_load(bot, redis_url, database_url, tmp_path) as (found, work_again):
        async with asyncio.timeout(200):
            while wanted:
                await work_again()
                for query in list(wanted):
                    if await found.series(query):
                        del wanted[query]
        for metric in (*OBSERVED, *EXPORTED):
            if metric not in _RARE:
                name = f"{metric.name}_count" if metric.kind == "histogram" else metric.name
                assert await found.series(name), metric.name
        types = await found.ask("metadata")
        for metric in (*OBSERVED, *EXPORTED):
            assert types[metric.name.removesuffix("_total")][0]["type"] == metric.kind
        # A rate needs two scrapes with a loss between them, and a rule's evaluation after those.
        async with asyncio.timeout(60):
            while not {"LockguardLeaseLost", "LockguardStaleWriteRefused"} <= await firing(found):
                await work_again()
        loaded = (await found.ask("rules"))["groups"]
        assert all(rule["health"] == "ok" for group in loaded for rule in group["rules"])


async def firing(found) -> set[str]:
    return {one["labels"]["alertname"] for one in (await found.ask("alerts"))["alerts"]}


def panels_by_query() -> list[tuple[str, str]]:
    return [(query, title) for title, query in panels()]


_RARE = {
    metric
    for metric in OBSERVED
    if metric.name in {"lockguard_orders_refused_total", "lockguard_order_doubts_resolved_total"}
}
"""Those that begin with the first of their kind, which this load has not."""


def test_every_panel_has_a_title_a_text_and_a_place_of_its_own() -> None:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    places = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        assert place["x"] + place["w"] <= 24
        places |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"].endswith(".")
            assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
