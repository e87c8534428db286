"""What a schedule of the flow plays in: its servers, and who judges it."""

from __future__ import annotations

from dataclasses import dataclass

from lockguard_lab.exchange.markets import MarketSpec
from lockguard_lab.sim.flow.database import Database
from lockguard_lab.sim.flow.judge import FlowJudge
from lockguard_lab.sim.flow.plan import FlowPlan
from lockguard_lab.sim.flow.wire import SimExchange
from lockguard_lab.sim.network import Network
from lockguard_lab.sim.postgres import Postgres
from lockguard_lab.sim.redis_server import RedisServer
from lockguard_lab.sim.world import World

__all__ = ["Scene"]


@dataclass
class Scene:
    """One schedule, without its bots.

    Attributes:
        over: whether no more calls are begun.
    """

    plan: FlowPlan
    world: World
    markets: list[MarketSpec]
    network: Network
    redis: RedisServer
    postgres: Postgres
    database: Database
    exchange: SimExchange
    judge: FlowJudge
    over: bool = False
