"""Each role of the page may do what its table says, and no more: on Redis 7, Valkey 9 and Postgres."""

from __future__ import annotations

import re
import secrets
import shlex
from pathlib import Path

import asyncpg
import pytest
import redis

from lockguard_asyncpg import install
from lockguard_lab.servers import RedisServer, find_system_redis
from tests.integration.test_bot_least_privilege import with_user

PAGE = (Path(__file__).parents[2] / "docs/howto/least-privilege.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (Redis|Postgres) `(\w+)` \| (.*) \| (.*) \|$", re.MULTILINE)
ROLES = {
    (server, role): tuple(re.findall(r"`([^`]+)`", cell) for cell in (may, may_not))
    for server, role, may, may_not in ROW.findall(PAGE)
}


def made(role: str) -> list[str]:
    """The words of the page's line that makes a user of Redis."""
    found = re.search(rf"^ACL SETUSER {role} (on .*?)(?=^ACL|^```)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1].replace("SECRET", "secret").split()


@pytest.fixture(scope="module", params=["Valkey", "Redis"])
def server(request: pytest.FixtureRequest):
    binary = None if request.param == "Valkey" else find_system_redis()
    if request.param == "Redis" and binary is None:
        pytest.skip("no redis-server of the system is installed")
    with RedisServer(binary=binary) as started, redis.Redis.from_url(started.url) as client:
        yield client


@pytest.mark.parametrize("role", [role for server, role in ROLES if server == "Redis"])
def test_a_user_of_redis_may_do_what_the_page_says_and_no_more(server, role):
    server.execute_command("ACL", "SETUSER", role, *made(role))
    may, may_not = ROLES["Redis", role]

    def allowed(command: str) -> bool:
        return server.execute_command("ACL", "DRYRUN", role, *shlex.split(command)) in (b"OK", "OK")

    assert [command for command in may if not allowed(command)] == []
    assert [command for command in may_not if allowed(command)] == []


@pytest.mark.parametrize("group", [role for server, role in ROLES if server == "Postgres"])
async def test_a_role_of_postgres_may_do_what_the_page_says_and_no_more(database_url, group):
    owner = await asyncpg.connect(database_url)
    person = f"person_{secrets.token_hex(6)}"
    await install(owner)
    await owner.execute(f"create role {person} login password 'secret'")
    try:
        await owner.execute(f"grant {group} to {person}")
        conn = await asyncpg.connect(with_user(database_url, person, "secret"))
        try:
            may, may_not = ROLES["Postgres", group]
            refused = [statement for statement in (*may, *may_not) if await lacks_rights(conn, statement)]
        finally:
            await conn.close()
    finally:
        await owner.execute(f"drop owned by {person}; drop role {person}")
        await owner.close()
    assert refused == may_not


async def lacks_rights(conn: asyncpg.Connection, statement: str) -> bool:
    """Whether a statement fails for want of rights; how else it ends is another matter."""
    try:
        await conn.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    except asyncpg.PostgresError:
        return False
    return False


def test_the_table_has_each_role_of_the_page():
    users = set(re.findall(r"^ACL SETUSER (\w+) on >SECRET resetkeys", PAGE, re.MULTILINE))
    groups = set(re.findall(r"^grant (lockguard_\w+) to", PAGE, re.MULTILINE))
    assert {role for server, role in ROLES if server == "Redis"} == users
    assert {role for server, role in ROLES if server == "Postgres"} == groups
    assert all(may and may_not for may, may_not in ROLES.values())
