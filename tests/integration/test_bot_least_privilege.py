"""The rights that the page gives to a bot are enough for it, and are those that it is given here."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lockguard_positions import protect_positions
from tests.integration.test_bot import FAST, OPEN, STREAM, Stage, stage, until

__all__ = ["stage"]

PAGE = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")


def rules(opening: str) -> list[str]:
    """The words of the ``ACL SETUSER`` that begins so."""
    found = re.search(rf"ACL SETUSER bot ({re.escape(opening)}.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1].replace("SECRET", "secret").replace("signals", STREAM).split()


def with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()


@pytest.mark.parametrize("protected", [False, True])
async def test_a_bot_with_the_rights_of_the_page_opens_closes_and_counts_who_reads(
    stage: Stage, protected: bool
) -> None:
    role = f"bot_{secrets.token_hex(6)}"
    await stage.stream.execute_command("ACL", "SETUSER", "bot", *rules("on >SECRET"))
    await stage.stream.execute_command("ACL", "SETUSER", "bot", *rules("~signals"))
    async with stage.pool.acquire() as conn:
        if protected:
            await protect_positions(conn)
        await conn.execute(f"create role {role} login password 'secret'")
        for statement in re.findall(r"^grant .*? to bot;", PAGE, re.MULTILINE):
            await conn.execute(statement.replace(" to bot", f" to {role}"))
    urls = stage.env
    urls["LOCKGUARD_REDIS_URL"] = with_user(urls["LOCKGUARD_REDIS_URL"], "bot", "secret")
    urls["LOCKGUARD_DATABASE_URL"] = with_user(urls["LOCKGUARD_DATABASE_URL"], role, "secret")
    try:
        bot = await stage.bot("--json", "--stream", STREAM, *FAST)
        await stage.stream.xadd(STREAM, OPEN)
        await until(stage.acknowledged)  # a close beside an open may be first, and overtakes it
        await stage.stream.xadd(STREAM, {"id": "c1", "action": "close", "symbol": "APTUSDT"})
        await until(stage.acknowledged)
        bot.terminate()
        ended = await bot.end()
    finally:
        await stage.stream.execute_command("ACL", "DELUSER", "bot")
        async with stage.pool.acquire() as conn:
            await conn.execute(f"drop owned by {role}")
            await conn.execute(f"drop role {role}")
    assert ended.code == 0, ended.text
    assert ended.outcomes() == {"s1": "opened", "c1": "closed"}
    complaints = [x["message"] for x in ended.lines if x["level"].lower() in {"warning", "error"}]
    assert complaints == []
    assert await stage.stream.keys(f"{STREAM}:*") == []
