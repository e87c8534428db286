"""Whatever a signal says, and whatever it does to the bot that reads it, the others are carried out."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from datetime import timedelta
from pathlib import Path

import pytest

from lockguard import ConfigurationError
from lockguard_bot._stream import StreamSource
from lockguard_lab.exchange import Fault, FaultKind, Operation
from tests.integration.test_bot import FAST, OPEN, SLOW, STREAM, Stage, lines, stage, until
from tests.integration.test_bot_trader import Desk, closing, desk, instant, opening
from tests.unit.test_market_names import FOREIGN

__all__ = ["desk", "stage"]

STRANGE = [symbol for symbol in FOREIGN if symbol.strip() != "BTCUSDT"]
CLOSE = {"id": "c1", "action": "close", "symbol": "APTUSDT"}
MORTAL = """
import os, signal
from lockguard_positions._manager import AtomicPositionManager
whole = AtomicPositionManager.open_position_atomic
async def deadly(self, name, *rest, **more):
    if name == 'poison':
        os.kill(os.getpid(), signal.SIGKILL)
    return await whole(self, name, *rest, **more)
AtomicPositionManager.open_position_atomic = deadly
from lockguard._cli import main
main()
"""


def strange(number: int, symbol: str) -> dict[str, str]:
    return {**OPEN, "id": f"strange-{number}", "symbol": symbol}


async def test_a_symbol_of_any_platform_is_refused_and_acknowledged_and_ends_no_bot(
    stage: Stage, tmp_path: Path
) -> None:
    """In a stream, in a file and on the standard input: as text, as bytes that are none, and too long."""
    file = tmp_path / "signals.jsonl"
    file.write_text(lines(*(strange(n, symbol) for n, symbol in enumerate(STRANGE)), OPEN))
    for number, symbol in enumerate(STRANGE):
        given = strange(number, symbol)
        await stage.stream.xadd(STREAM, {k: v.encode(errors="surrogatepass") for k, v in given.items()})
    await stage.stream.xadd(STREAM, {**OPEN, "id": "s2", "symbol": "SOLUSDT"})
    given = lines('{"id": "x", "action": "close", "symbol": "BTC-PERP"}', "\0", {**OPEN, "symbol": "\0"})
    done = await stage.run(
        *("--once", "--json", "--stream", STREAM, "--signals", str(file), "--signals", "-", *FAST),
        given=given,
    )
    assert done.code == 0, done.text[-2000:]
    outcomes = [line for line in done.lines if "outcome" in line]
    assert sum(line["outcome"] == "refused" for line in outcomes) == 2 * len(STRANGE) + 3
    assert {line["signal"] for line in outcomes if line["outcome"] == "opened"} == {"s1", "s2"}
    assert await stage.acknowledged()
    told = "a signal to close was refused, its position stays open: standard input line 1: signal x: "
    assert any(told in line["message"] and line["level"] == "ERROR" for line in done.lines)
    stage.sound()


async def test_an_entry_with_a_field_twice_is_refused_and_not_traded_by_its_last(stage: Stage) -> None:
    """As by an XADD of a script, which Redis takes; a client that reads it into a dict has the last."""
    given = [word for field in OPEN.items() for word in field]
    await stage.stream.execute_command("XADD", STREAM, "*", *given, "quantity", "7")
    done = await stage.run("--once", "--json", "--stream", STREAM, *FAST)
    assert done.code == 0, done.text[-2000:]
    (told,) = [line["message"] for line in done.lines if line.get("outcome") == "refused"]
    assert "the field 'quantity' stands in it twice; give each field once" in told
    assert await stage.acknowledged()


async def test_a_bot_whose_right_to_read_was_taken_away_says_what_it_lacks(stage: Stage) -> None:
    url = stage.stream.connection_pool.connection_kwargs
    where = f"{url['host']}:{url['port']}"
    await stage.stream.execute_command("ACL", "SETUSER", "reader", "on", ">SECRET", "~*", "&*", "+@all")
    try:
        stop = asyncio.Event()
        async with StreamSource.connect(
            f"redis://reader:SECRET@{where}/{url.get('db', 0)}",
            STREAM,
            "g",
            claim_after=timedelta(seconds=1),
            follow=True,
        ) as source:
            await stage.stream.execute_command("ACL", "SETUSER", "reader", "-xautoclaim", "-xreadgroup")
            with pytest.raises(ConfigurationError, match=r"cannot be read: .*; give the user of its URL the"):
                async with asyncio.timeout(20):
                    await source.next(stop)
    finally:
        await stage.stream.execute_command("ACL", "DELUSER", "reader")


async def test_a_bot_that_may_not_read_its_stream_any_more_ends_when_what_it_has_begun_is_done(
    stage: Stage,
) -> None:
    """Its entry is under way: cut off there, the position would have no stop, and all bots have that user."""
    url = stage.stream.connection_pool.connection_kwargs
    user = f"reader-{secrets.token_hex(4)}"
    await stage.stream.execute_command("ACL", "SETUSER", user, "on", ">SECRET", "~*", "&*", "+@all")
    try:
        where = f"redis://{user}:SECRET@{url['host']}:{url['port']}/{url.get('db', 0)}"
        stage.exchange.inject(SLOW)
        await stage.stream.xadd(STREAM, OPEN)
        bot = await stage.bot("--stream", STREAM, "--stream-redis", where, *FAST)
        await until(stage.ordered)
        await stage.stream.execute_command("ACL", "SETUSER", user, "-xautoclaim", "-xreadgroup")
        done = await bot.end()
    finally:
        await stage.stream.execute_command("ACL", "DELUSER", user)
    assert done.code == 2, done.text[-2000:]
    assert f"stream {STREAM!r} cannot be read: " in done.text
    assert await stage.protected()
    stage.sound()


async def test_a_signal_that_has_killed_two_bots_is_set_aside_and_told_and_the_rest_is_carried_out(
    stage: Stage,
) -> None:
    """A planted kill -9 in the middle of one open; each bot is started again, as a supervisor would."""
    await stage.stream.xadd(STREAM, {**OPEN, "id": "poison"})
    ends = []
    for _ in range(2):
        bot = await stage.mortal(MORTAL, "bot", "run", "--json", "--stream", STREAM, *FAST)
        ends.append((await bot.end()).code)
    assert ends == [-9, -9]
    await stage.stream.xadd(STREAM, {**OPEN, "id": "s2", "symbol": "SOLUSDT"})
    third = await stage.mortal(MORTAL, "bot", "run", "--json", "--stream", STREAM, *FAST)
    await until(stage.acknowledged)
    third.terminate()
    ended = await third.end()
    assert ended.code == 0, ended.text
    assert ended.outcomes() == {"poison": "set aside", "s2": "opened"}
    assert any("was set aside: 2 bots ended while they carried it out" in x["message"] for x in ended.lines)
    assert await stage.pool.fetchval("select count(*) from monitoring.signal_attempts") == 0
    assert stage.exchange.record().position("APT/USDT:USDT") == 0


async def test_a_signal_that_kills_whoever_reads_it_is_set_aside_unread_and_told_with_its_remedy(
    stage: Stage,
) -> None:
    """Before there is a name, a lease or a row of it. What waits behind it is carried out."""
    deadly = """
import os, signal
import lockguard_bot._stream as stream
whole = stream.read_fields
def deadly(fields, **more):
    if fields.get(b'id') == b'poison':
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(fields, **more)
stream.read_fields = deadly
from lockguard._cli import main
main()
"""
    await stage.stream.xadd(STREAM, {**OPEN, "id": "poison"})
    await stage.stream.xadd(STREAM, {**OPEN, "id": "s2", "symbol": "SOLUSDT"})
    ends = []
    for _ in range(2):
        bot = await stage.mortal(deadly, "bot", "run", "--json", "--stream", STREAM, *FAST)
        ends.append((await bot.end()).code)
    assert ends == [-9, -9]
    third = await stage.mortal(deadly, "bot", "run", "--json", "--stream", STREAM, *FAST)
    await until(stage.acknowledged)
    third.terminate()
    ended = await third.end()
    assert ended.code == 0, ended.text
    assert len(stage.exchange.record().entries("SOLUSDT")) == 1
    (told,) = [x["message"] for x in ended.lines if "a signal is not carried out" in x["message"]]
    assert "set aside unread, as 2 bots ended while they read it, by it or killed from outside" in told
    assert f"XRANGE {STREAM} " in told
    assert await stage.stream.keys(f"{STREAM}:*") == []
    assert stage.exchange.record().position("APT/USDT:USDT") == 0


async def test_a_line_of_a_file_that_kills_whoever_reads_it_is_set_aside_unread_like_an_entry_of_a_stream(
    stage: Stage, tmp_path: Path
) -> None:
    """A supervisor that starts the bot again would start it for ever, and nothing behind the line is read."""
    deadly = """
import os, signal
import lockguard_bot._sources as sources
whole = sources.read_line
def deadly(line, **more):
    if b'poison' in line:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(line, **more)
sources.read_line = deadly
from lockguard._cli import main
main()
"""
    file = tmp_path / "signals.jsonl"
    file.write_text(lines({**OPEN, "id": "poison"}, {**OPEN, "id": "s2", "symbol": "SOLUSDT"}))
    command = ("bot", "run", "--json", "--once", "--signals", str(file))
    for _ in range(2):
        bot = await stage.mortal(deadly, *command)
        assert (await bot.end()).code == -9
    # Two bots that read one file at once do not take each other for dead: who began just now counts for none.
    attempts = "monitoring.signal_attempts"
    assert await stage.pool.fetchval(f"select count(*) from {attempts} where signal_id like 'line:%'") == 2
    await stage.pool.execute(f"update {attempts} set begun_at = begun_at - interval '2 minutes'")
    third = await stage.mortal(deadly, *command)
    ended = await third.end()
    assert ended.code == 0, ended.text
    assert len(stage.exchange.record().entries("SOLUSDT")) == 1
    (told,) = [x["message"] for x in ended.lines if "a signal is not carried out" in x["message"]]
    assert f"{file} line 1: set aside unread, as 2 bots ended while they read it" in told
    assert stage.exchange.record().position("APT/USDT:USDT") == 0
    left = await stage.pool.fetch(f"select distinct signal_id from {attempts}")
    assert len(left) == 1  # the line that is set aside; those that were read are no one's any more


async def test_a_line_that_is_read_frees_those_who_were_killed_over_it_by_chance(
    stage: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "signals.jsonl"
    file.write_text(lines(OPEN))
    key = hashlib.sha256(lines(OPEN).strip().encode()).hexdigest()[:32]
    await stage.pool.execute(
        "insert into monitoring.signal_attempts values ('binance', $1, 'killed', now() - interval '1 day')",
        f"line:{key}",
    )
    done = await stage.run("--once", "--json", "--signals", str(file))
    assert done.outcomes() == {"s1": "opened"}
    assert await stage.pool.fetchval("select count(*) from monitoring.signal_attempts") == 0


async def test_an_open_that_the_exchange_does_not_take_and_one_that_waited_too_long_are_told(
    stage: Stage,
) -> None:
    """By permission it waits, and when the key works again it is too old; by funds it is refused at once."""
    stage.exchange.deny(-2015)
    bot = await stage.bot("--json", "--stream", STREAM, "--max-age", "3", *FAST)
    await until(lambda: listening(stage))
    await stage.stream.xadd(STREAM, OPEN)
    await until(lambda: there(stage, "select count(*) from monitoring.positions where status = 'canceled'"))
    await until(lambda: there(stage, "select count(*) from monitoring.signals"))
    stage.exchange.allow()
    stage.exchange.inject(
        Fault(FaultKind.REJECTED, Operation.CREATE_ORDER, code=-2019, message="Margin is insufficient.")
    )
    await stage.stream.xadd(STREAM, {**OPEN, "id": "s2", "symbol": "SOLUSDT"})
    await until(stage.acknowledged)
    bot.terminate()
    ended = await bot.end()
    assert ended.outcomes() == {"s1": "refused", "s2": "refused"}
    told = [x["message"] for x in ended.lines if x["level"] == "ERROR" and "was refused" in x["message"]]
    assert any("signal s1" in line and "s old and --max-age is 3 s" in line for line in told)
    assert any("signal s2" in line and "-2019" in line for line in told)


async def test_a_bot_that_fails_at_one_signal_without_dying_keeps_it_and_carries_the_others_out(
    stage: Stage,
) -> None:
    """An error that nobody has thought of is neither a refusal nor the end: an order may have been sent."""
    failing = MORTAL.replace(
        "os.kill(os.getpid(), signal.SIGKILL)", "raise KeyError('nobody has thought of')"
    )
    await stage.stream.xadd(STREAM, {**OPEN, "id": "poison"})
    await stage.stream.xadd(STREAM, {**OPEN, "id": "s2", "symbol": "SOLUSDT"})
    bot = await stage.mortal(failing, "bot", "run", "--json", "--stream", STREAM, *FAST)
    decided = "select count(*) from monitoring.signals"
    await until(lambda: there(stage, decided))
    bot.terminate()
    ended = await bot.end()
    assert ended.outcomes() == {"poison": "undecided", "s2": "opened"}
    assert any("signal poison" in line["message"] and "KeyError" in line["message"] for line in ended.lines)
    (group,) = await stage.stream.xinfo_groups(STREAM)
    assert group["pending"] == 1
    # No attempt is left, only when the signal was given that is undecided still.
    left = await stage.pool.fetch("select signal_id, bot from monitoring.signal_attempts")
    assert [tuple(row) for row in left] == [("given:poison", "")]


async def listening(stage: Stage) -> bool:
    return bool(await stage.stream.exists(STREAM))


async def there(stage: Stage, query: str) -> bool:
    return bool(await stage.pool.fetchval(query))


async def test_a_close_whose_instant_is_in_seconds_is_refused_and_told_as_its_position_stays_open(
    stage: Stage,
) -> None:
    at = "1767225600"
    await stage.stream.xadd(STREAM, OPEN)
    await stage.stream.xadd(STREAM, {**CLOSE, "at": at})
    done = await stage.run("--once", "--json", "--stream", STREAM, *FAST)
    (refused,) = [line["message"] for line in done.lines if line.get("outcome") == "refused"]
    assert f"at='{at}'" in refused
    assert "(it looks like seconds since 1970); write milliseconds since 1970" in refused
    assert any("its position stays open" in line["message"] for line in done.lines)
    assert "overtaken" not in done.text


async def test_a_close_is_never_dropped_for_its_age_nor_for_a_clock_that_is_ahead(desk: Desk) -> None:
    await desk.does(opening("s1"))
    assert await desk.does(closing("s2", at=instant(3_600_000))) == ("closed", False)
    assert await desk.does(opening("s3", at=instant(-1000))) == ("opened", False)  # nothing overtakes it
    assert await desk.does(closing("s4", at=instant(-500))) == ("closed", False)
    assert desk.held() == 0
