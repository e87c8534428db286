"""fastapi_app.py on real servers of uvicorn, whose workers share nothing but Redis and Postgres."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import JSONResponse

from lockguard import LockGuard, current_lease
from lockguard.errors import LeaseLost, LeaseNotHeld, LossReason
from lockguard_asyncpg import PostgresFence, create_pool
from lockguard_lab.exchange import LocalExchange
from lockguard_lab.servers.ports import free_port
from tests.integration.examples import EXAMPLES, Stage, until

HERE = Path(__file__).parent
SYMBOLS = [f"C{number:02}USDT" for number in range(20)]
THRICE = 3


@pytest.fixture
async def exchange():
    async with LocalExchange(symbols=[name.replace("USDT", "/USDT:USDT") for name in SYMBOLS]) as exchange:
        yield exchange


@pytest.fixture
async def stage(redis_url, example_database, database_url, exchange):
    async with Stage(redis_url, database_url, exchange.url) as stage:
        stage.environment["PYTHONPATH"] = f"{HERE}:{EXAMPLES}"
        yield stage


async def serve(stage, *options, **environment):
    """The application on uvicorn; returns it and its URL."""
    port = free_port()
    command = (sys.executable, "-m", "uvicorn", "webhook_app:app", "--port", str(port), *options)
    server = await stage.run(*command, **environment)
    workers = int(options[options.index("--workers") + 1]) if "--workers" in options else 1
    await server.says("Application startup complete", workers)
    return server, f"http://127.0.0.1:{port}"


async def deliver(client, symbol):
    """As a sender of webhooks does: again, as long as it is told to. Returns the process that answered."""
    while (answer := await client.post("/alerts", json={"symbol": symbol, "quantity": 1})).status_code == 503:
        assert int(answer.headers["Retry-After"]) >= 1
        await asyncio.sleep(0.1)
    return answer


def orders(exchange):
    return Counter({symbol: len(exchange.record().entries(symbol)) for symbol in SYMBOLS})


@pytest.mark.parametrize("without", ["1", ""], ids=["without", "with"])
async def test_of_20_alerts_that_arrive_three_times_at_two_workers_none_is_doubled(
    stage, exchange, example_database, without
):
    """On uvicorn's default loop, which is uvloop's where that is installed."""
    _, url = await serve(stage, "--workers", "2", WITHOUT_GUARD=without)
    limits = httpx.Limits(max_keepalive_connections=0)  # each delivery on a connection of its own
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        answers = await asyncio.gather(*(deliver(client, symbol) for symbol in SYMBOLS * THRICE))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["X-Process"] for answer in answers}) == 2
    doubled = orders(exchange).total() - len(SYMBOLS)
    if without:
        assert doubled > len(SYMBOLS), orders(exchange)  # 40 would be all
    else:
        assert orders(exchange) == Counter(dict.fromkeys(SYMBOLS, 1))
        assert Counter(answer.json() for answer in answers) == {"opened": 20, "open already": 40}
    assert await example_database.fetchval("select count(*) from positions") == 20


async def test_a_sender_that_hangs_up_leaves_the_open_to_its_end(stage, exchange, example_database):
    """uvicorn does not cancel an endpoint, so the next delivery finds the lock held, then the position."""
    exchange.set_latency(timedelta(seconds=0.5))
    server, url = await serve(stage)
    async with httpx.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/alerts", json={"symbol": SYMBOLS[0], "quantity": 1}, timeout=0.3)
        assert orders(exchange).total() == 0
        assert (await deliver(client, SYMBOLS[0])).json() == "open already"
    assert orders(exchange).total() == 1
    assert await example_database.fetchval("select status from positions") == "active"
    server.tell(signal.SIGTERM)
    assert await server.ended() in {0, -signal.SIGTERM}, server.lines


async def test_a_worker_that_was_stopped_before_its_order_sends_none_when_another_has_the_symbol(
    stage, exchange, redis_server
):
    """SIGSTOP while it looks at the exchange, until its lease has ended and the position is open."""
    exchange.set_latency(timedelta(seconds=0.5))
    stopped, url = await serve(stage, LOCKGUARD_TTL="7s")
    _, other_url = await serve(stage, LOCKGUARD_TTL="7s")
    async with (
        httpx.AsyncClient(base_url=url, timeout=60) as client,
        httpx.AsyncClient(base_url=other_url, timeout=60) as other,
    ):
        late = asyncio.create_task(deliver(client, SYMBOLS[0]))
        await until(lambda: redis_server.command("EXISTS", f"lockguard:{{binance:{SYMBOLS[0]}}}") == 1)
        await stopped.stop()
        assert orders(exchange).total() == 0
        assert (await deliver(other, SYMBOLS[0])).json() == "opened"
        stopped.tell(signal.SIGCONT)
        assert (await late).json() == "open already"
    assert orders(exchange).total() == 1


async def test_a_busy_symbol_is_answered_with_503_and_when_to_deliver_again(stage, redis_url):
    _, url = await serve(stage, "--loop", "asyncio")
    async with LockGuard.from_url(redis_url) as other, httpx.AsyncClient(base_url=url, timeout=60) as client:
        async with other.hold(f"binance:{SYMBOLS[0]}", ttl=timedelta(seconds=30)):
            answer = await client.post("/alerts", json={"symbol": SYMBOLS[0], "quantity": 1})
        assert answer.status_code == 503
        assert 1 < int(answer.headers["Retry-After"]) <= 30
        assert SYMBOLS[0] in answer.json()["detail"]
        assert (await deliver(client, SYMBOLS[0])).json() == "opened"


async def test_a_server_that_reloads_itself_goes_on_with_its_guard(stage, exchange, tmp_path):
    (tmp_path / "strategy.py").write_text("version = 1")
    server, url = await serve(stage, "--reload", "--reload-dir", str(tmp_path))
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        first = await deliver(client, SYMBOLS[0])
        (tmp_path / "strategy.py").write_text("version = 22")
        await server.says("Application startup complete", 2)
        again, other = await deliver(client, SYMBOLS[0]), await deliver(client, SYMBOLS[1])
    assert [answer.json() for answer in (first, again, other)] == ["opened", "open already", "opened"]
    assert first.headers["X-Process"] != other.headers["X-Process"]


TWICE = """
from fastapi.testclient import TestClient
from webhook_app import app

for _ in range(2):
    with TestClient(app) as client:
        print(client.post("/alerts", json={"symbol": "C00USDT", "quantity": 1}).json())
"""


async def test_fastapis_test_client_enters_the_lifespan_twice_in_two_loops(stage):
    program = await stage.run(sys.executable, "-c", TWICE)
    assert await program.ended() == 0, program.lines
    assert [line for line in program.lines if "open" in line] == ["opened", "open already"]


# --- where the lease is in force ---


@pytest.fixture
async def pool(database_url, example_database):
    async with create_pool(database_url, min_size=0, max_size=4) as pool:
        yield pool


@pytest.fixture
async def guard(redis_url, pool):
    async with LockGuard.from_url(redis_url, fence=PostgresFence(pool), ttl=timedelta(seconds=5)) as guard:
        yield guard


@pytest.fixture
def seen():
    """Where which lease was in force, in order; and when the response was sent."""
    return []


def in_force(seen, where):
    lease = current_lease()
    seen.append((where, str(lease.resource) if lease else None))


async def ask(app, seen):
    """One request, without a server between: what is asked here is which tasks FastAPI makes."""

    async def told(scope, receive, send):
        async def sending(message):
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                in_force(seen, "sent")

        await app(scope, receive, sending)

    transport = httpx.ASGITransport(told, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/")


def leases(guard, seen):
    async def lease():
        async with guard.hold("r") as lease:
            yield lease
        in_force(seen, "given back")

    return lease


@pytest.mark.parametrize("scope", ["function", "request"])
async def test_a_lease_of_a_dependency_is_in_force_in_the_endpoint_and_its_thread(guard, seen, scope):
    app = FastAPI()
    lease = leases(guard, seen)

    def helper():
        in_force(seen, "thread")

    @app.get("/")
    async def endpoint(lease=Depends(lease, scope=scope), _=Depends(helper)):  # noqa: B008 - FastAPI's way
        in_force(seen, "endpoint")
        await asyncio.to_thread(in_force, seen, "to_thread")

    assert (await ask(app, seen)).status_code == 200
    ends = (
        [("given back", None), ("sent", None)]
        if scope == "function"
        else [("sent", "r"), ("given back", None)]
    )
    assert seen == [("thread", "r"), ("endpoint", "r"), ("to_thread", "r"), *ends]


async def test_a_background_task_runs_after_the_lease_of_the_endpoint_was_given_back(guard, seen):
    app = FastAPI()

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks):
        async with guard.hold("r"):
            tasks.add_task(in_force, seen, "background")
            in_force(seen, "endpoint")

    assert (await ask(app, seen)).status_code == 200
    assert seen == [("endpoint", "r"), ("sent", None), ("background", None)]


async def test_a_task_that_outlives_the_endpoint_cannot_write(guard, pool, seen):
    app = FastAPI()
    begun, errors = [], []

    async def later():
        await over.wait()
        try:
            await pool.execute("insert into positions values ('late', 'x')")
        except LeaseNotHeld as error:
            errors.append(error)

    @app.get("/")
    async def endpoint():
        async with guard.hold("r"):
            begun.append(asyncio.create_task(later()))

    over = asyncio.Event()
    assert (await ask(app, seen)).status_code == 200
    over.set()
    await asyncio.gather(*begun)
    assert len(errors) == 1
    assert await pool.fetchval("select count(*) from positions") == 0


@pytest.mark.parametrize("where", ["endpoint", "function", "request", "middleware"])
async def test_a_lease_that_is_lost_ends_the_endpoint_and_is_answered(guard, pool, seen, where):
    """Wherever the hold was entered: also in BaseHTTPMiddleware, which runs the endpoint in another task."""
    app = FastAPI()

    async def work():
        lease = current_lease()
        asyncio.get_running_loop().call_later(0.05, lease.end, LossReason.REFUSED)
        await asyncio.Event().wait()

    if where == "endpoint":

        @app.get("/")
        async def endpoint():
            async with guard.hold("r"):
                await work()

    elif where == "middleware":

        @app.middleware("http")
        async def hold(request, call_next):
            async with guard.hold("r"):
                return await call_next(request)

        app.get("/")(work)
    else:
        lease = leases(guard, seen)

        @app.get("/")
        async def endpoint(lease=Depends(lease, scope=where)):  # noqa: B008 - FastAPI's way
            await work()

    @app.exception_handler(LeaseLost)
    async def lost(request, error):
        return JSONResponse(str(error), 503)

    answer = await ask(app, seen)
    assert answer.status_code == (500 if where == "middleware" else 503), answer.text
    async with guard.hold("r"):  # and nothing is left of it
        await pool.execute("insert into positions values ('next', 'x')")
