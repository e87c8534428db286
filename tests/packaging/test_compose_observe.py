"""The installation in a real Prometheus, in a container engine: bots, the exporter, the rules.

Prometheus is Debian's here, in the place of the image that docker-compose.yml names. Grafana is not started:
Debian has none, and its image comes from a registry.
"""

from __future__ import annotations

import asyncio
import json
import os
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from lockguard_lab.servers.ports import LOOPBACK
from tests.packaging.bots_in_containers import APT, Bots, started

if TYPE_CHECKING:
    from tests.packaging.composition import Composition

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STAND_IN = r"""
services:
  prometheus:
    image: lockguard-test-prometheus
    build:
      dockerfile_inline: |
        FROM docker.io/library/python:3.13-slim
        RUN apt-get update && apt-get install --yes --no-install-recommends prometheus
        RUN mkdir /prometheus && chown nobody /prometheus
        ENTRYPOINT ["prometheus"]
"""


async def ask(compose: Composition, path: str, **parameters: str) -> Any:
    """The data of an answer of Prometheus's API."""
    query = urllib.parse.urlencode(parameters)
    url = f"http://{LOOPBACK}:{compose.ports['PROMETHEUS']}/api/v1/{path}?{query}"

    def get() -> Any:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    return await asyncio.to_thread(get)


async def value_of(compose: Composition, expression: str) -> float | None:
    found = (await ask(compose, "query", query=expression))["result"]
    return float(found[0]["value"][1]) if found else None


async def test_prometheus_sees_the_bots_installation_and_loads_every_rule(compose: Composition) -> None:
    (compose.folder / "stand-in.yml").write_text(STAND_IN)
    compose.env["COMPOSE_FILE"] = os.pathsep.join(["docker-compose.yml", "stand-in.yml"])
    bots = await started(compose, "bot")
    async with bots.redis, bots.control:
        await bots.give(APT)
        await bots.until_active(APT)
    await asyncio.to_thread(compose, "up", "--build", "--wait", "prometheus")

    async def scraped() -> bool:
        return await value_of(compose, 'lockguard_up{job="lockguard"}') == 1

    await Bots.until(scraped)
    assert await value_of(compose, 'up{job="lockguard"}') == 1
    assert await value_of(compose, "sum(lockguard_table_positions_open)") == 1
    groups = (await ask(compose, "rules"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert "LockguardDown" in {rule["name"] for rule in rules}

    async def evaluated() -> bool:
        told = (await ask(compose, "rules"))["groups"]
        return all(rule["health"] == "ok" for group in told for rule in group["rules"])

    await Bots.until(evaluated)
    compose("stop")
    codes = compose.exit_codes()
    assert codes == dict.fromkeys(codes, 0)
