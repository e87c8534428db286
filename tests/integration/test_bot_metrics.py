"""``lockguard bot run --metrics``: the bot shows its own figures, in its leases, orders and positions."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

import pytest

from tests.integration.test_bot import FAST, OPEN, STREAM, Stage, stage, until

__all__ = ["stage"]


async def scraped(url: str) -> str:
    def get() -> str:
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read().decode()

    return await asyncio.to_thread(get)


async def test_a_bot_shows_its_leases_orders_and_positions(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = await stage.bot("--stream", STREAM, "--metrics", str(port), "--json", *FAST)
    await stage.stream.xadd(STREAM, OPEN)
    await until(stage.protected)
    url = f"http://127.0.0.1:{port}/metrics"
    wanted = (
        'lockguard_orders_total{group="binance",result="executed",step="stop"} 1.0',
        'lockguard_positions_without_stop{group="binance"} 0.0',
        'lockguard_positions_open{group="binance"} 1.0',
        'lockguard_stop_seconds_count{group="binance"} 1.0',
        'lockguard_seal_seconds_count{group="binance"}',
        'lockguard_pass_seconds_count{group="binance",kind="pass"}',
        "process_cpu_seconds_total",
    )

    async def complete() -> bool:
        text = await scraped(url)
        return all(each in text for each in wanted)

    await until(complete)
    assert "APTUSDT" not in await scraped(url)
    process.terminate()
    ended = await process.end()
    assert ended.code == 0
    assert any(line["message"] == f"metrics: {url}" for line in ended.lines)
    events = {line["lockguard_event"] for line in ended.lines if "lockguard_event" in line}
    assert "Moved" in events


@pytest.mark.parametrize("address", ["nowhere:99999", "redis://:SECRET@x"])
async def test_a_malformed_address_is_refused_before_anything_is_connected(
    stage: Stage, address: str
) -> None:
    ended = await stage.run("--metrics", address, LOCKGUARD_REDIS_URL="redis://127.0.0.1:1")
    assert (ended.code, ended.text.count("\n")) == (2, 1)
    assert "--metrics is no [HOST:]PORT" in ended.text
    assert "SECRET" not in ended.text


async def test_a_port_that_is_taken_is_refused_in_one_line(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = await stage.run("--metrics", str(port))
    assert (ended.code, ended.text.count("\n")) == (2, 1)
    assert f"--metrics 127.0.0.1:{port} cannot be used: Address already in use" in ended.text
