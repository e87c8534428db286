"""Every line of a bot that logs JSON is an object, whoever logged it, and none of them tells a secret."""

from __future__ import annotations

import json

from lockguard_lab.exchange import Fault, FaultKind, Operation
from tests.integration.test_bot import FAST, OPEN, STREAM, Stage, stage, until

__all__ = ["stage"]

CANARY = "c4n4ryc4n4ryc4n4ry"
LOUD = f"""
import asyncio, gc, logging, threading, warnings
from lockguard_bot._worker import Worker
whole = Worker.run
async def fails(): raise KeyError('never retrieved, signature={CANARY}')
class Bad:
    def __del__(self): raise ValueError('in a destructor')
async def loud(self):
    asyncio.get_running_loop().call_soon(lambda: 1 / 0)
    asyncio.create_task(fails(), name='forgotten')
    logging.getLogger('ccxt').error('GET https://x/fapi?timestamp=1&signature={CANARY}')
    logging.getLogger('aiohttp.client').warning('%s', {{'X-MBX-APIKEY': '{CANARY}', 'listenKey': '{CANARY}'}})
    logging.getLogger('elsewhere').error('two\\nlines', exc_info=RuntimeError('X-BAPI-SIGN: {CANARY}'))
    logging.getLogger('wrong').error('%d', 'no number')
    warnings.warn('a warning', ResourceWarning)
    threading.Thread(target=lambda: 1 / 0).start()
    Bad(); gc.collect()
    return await whole(self)
Worker.run = loud
from lockguard._cli import main
main()
"""


async def test_every_line_is_an_object_and_no_secret_is_in_any(stage: Stage) -> None:
    stage.env["LOCKGUARD_EXCHANGE_API_KEY"] = "local-key"
    stage.env["LOCKGUARD_EXCHANGE_SECRET"] = "local-secret"
    stage.exchange.inject(Fault(FaultKind.DISCONNECT, Operation.POSITIONS, times=4))
    await stage.stream.xadd(STREAM, OPEN)
    bot = await stage.mortal(LOUD, "bot", "run", "--json", "--stream", STREAM, *FAST)
    await until(stage.acknowledged)
    await until(stage.protected)
    bot.terminate()
    ended = await bot.end()
    assert ended.code == 0, ended.text
    lines = [json.loads(line) for line in ended.text.splitlines()]  # raises at one that is none
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    loggers = {line["logger"] for line in lines}
    assert {
        "asyncio",
        "ccxt",
        "aiohttp.client",
        "elsewhere",
        "wrong",
        "py.warnings",
        "lockguard.bot",
    } <= loggers
    exceptions = "".join(line.get("exception", "") for line in lines)
    for kind in ("ZeroDivisionError", "KeyError", "in a destructor"):
        assert kind in exceptions
    for secret in (CANARY, "local-secret", "signature=" + CANARY):
        assert secret not in ended.text
    assert "signature=***" in ended.text
    details = await stage.pool.fetch("select coalesce(error_details, '') from monitoring.positions")
    assert not any("signature=" in row[0] and "signature=***" not in row[0] for row in details)


async def test_a_mistake_is_an_object_as_well(stage: Stage) -> None:
    done = await stage.run("--once", "--json", "--connect-within", "0", "--exchange", "http://127.0.0.1:1")
    assert done.code == 1
    assert "does not answer" in json.loads(done.text.splitlines()[-1])["message"]
    done = await stage.run("--once", "--json", "--account", "A")
    assert (done.code, "account label" in json.loads(done.text)["message"]) == (2, True)
