"""The embedded servers keep their promises on real processes."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import asyncpg
import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lockguard.errors import ConfigurationError
from lockguard_lab.servers import PostgresServer, RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockguard_lab.servers.embedded import EmbeddedServer

NO_RETRY = Retry(NoBackoff(), 0)


async def query(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url, timeout=5)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.fixture(params=[RedisServer, PostgresServer])
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    with request.param() as server:
        yield server


def tree_of(server: EmbeddedServer) -> list[psutil.Process]:
    root = psutil.Process(server.pid)
    return [root, *root.children(recursive=True)]


def answers(server: EmbeddedServer, timeout_s: float = 5) -> bool:
    """Whether a new connection gets a first byte in time (to PING; to an SSL request)."""
    greeting = b"PING\r\n" if isinstance(server, RedisServer) else b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as connection:
        connection.sendall(greeting)
        try:
            return connection.recv(1) != b""
        except TimeoutError:
            return False


# Fixtures


def test_each_test_gets_a_server_without_keys(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("a", 1)


async def test_each_test_gets_a_database_of_its_own(database_url: str) -> None:
    count = "select count(*) from pg_tables where schemaname = 'public'"
    assert await query(database_url, count) == 0
    await query(database_url, "create table taken (a int)")
    assert await query(database_url, count) == 1


# What every kind of server does


def test_a_stopped_server_leaves_neither_process_nor_directory(server: EmbeddedServer) -> None:
    processes = tree_of(server)
    directory = server._directory
    assert directory is not None
    server.stop()
    assert not any(process.is_running() for process in processes)
    assert not directory.exists()
    assert not server.running
    server.stop()


def test_a_paused_server_is_silent_and_a_resumed_one_answers(server: EmbeddedServer) -> None:
    server.pause()
    assert {process.status() for process in tree_of(server)} == {psutil.STATUS_STOPPED}
    assert not answers(server, timeout_s=0.1)
    server.resume()
    assert answers(server)


def test_a_killed_server_is_gone_at_once_and_returns_on_its_port(server: EmbeddedServer) -> None:
    port, processes = server.port, tree_of(server)
    server.kill()
    assert not any(process.is_running() for process in processes)
    with pytest.raises(ConnectionRefusedError):
        answers(server)
    server.restart()
    assert server.port == port
    assert answers(server)


def test_a_server_that_comes_back_waits_for_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test beside this one may have picked it meanwhile, for a server that lives for a second."""
    with RedisServer() as server:
        server.kill()
        with socket.create_server(("127.0.0.1", server.port)) as taken:
            monkeypatch.setattr("lockguard_lab.servers.supervision.pause_s", lambda _: taken.close())
            server.restart()
        assert answers(server)


def test_a_paused_server_can_be_killed_restarted_and_stopped(server: EmbeddedServer) -> None:
    server.pause()
    server.kill()
    server.restart()
    server.pause()
    server.restart()
    assert answers(server)
    server.pause()
    server.stop()
    assert not server.running


def test_a_server_serves_this_machine_only(server: EmbeddedServer) -> None:
    listening = {
        connection.laddr.ip
        for process in tree_of(server)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("kind", [RedisServer, PostgresServer])
def test_a_port_in_use_is_named_with_the_remedy(kind: type[EmbeddedServer]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port} on 127\.0\.0\.1 is in use: .*port 0"):
            kind(port=port).start()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [RedisServer, PostgresServer])
def test_a_port_lost_to_another_process_is_replaced(
    kind: type[EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
        probe.close()
        chosen = iter([taken.getsockname()[1], free])
        monkeypatch.setattr("lockguard_lab.servers.ports.free_port", lambda: next(chosen))
        with kind() as server:
            assert server.port == free
            assert answers(server)


@pytest.mark.parametrize("port", [-1, 65_536])
def test_an_impossible_port_is_refused(port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"port {port} does not exist"):
        RedisServer(port=port).start()


@pytest.mark.parametrize("kind", [RedisServer, PostgresServer])
async def test_servers_are_async_context_managers(kind: type[EmbeddedServer]) -> None:
    async with kind() as server:  # type: ignore[call-arg]
        process = psutil.Process(server.pid)
        assert answers(server)
    assert not process.is_running()


async def test_a_cancelled_start_leaves_no_server() -> None:
    server = RedisServer()
    starting = asyncio.create_task(server.__aenter__())
    await asyncio.sleep(0)  # it has begun, in a thread
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not server.running
    assert server._directory is None


def test_what_does_not_run_cannot_be_paused() -> None:
    with pytest.raises(ConfigurationError, match="does not run"):
        RedisServer().pause()
    with pytest.raises(ConfigurationError, match="was not started"):
        PostgresServer().restart()


# Redis


def test_redis_without_persistence_comes_back_empty() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        client.set("a", 1)
        server.kill()
        server.restart()
        assert client.dbsize() == 0


def test_redis_with_aof_keeps_its_data_through_a_kill_unless_told_otherwise() -> None:
    with RedisServer(persistence="aof") as server, redis.Redis.from_url(server.url) as client:
        client.set("a", 1)
        server.kill()
        server.restart()
        assert client.get("a") == b"1"
        server.restart()
        assert client.get("a") == b"1"
        server.restart(keep_data=False)
        assert client.dbsize() == 0


def test_redis_asks_for_its_password_and_shows_it_to_nobody() -> None:
    secret = 'p@ss "word" \\ #1'
    with RedisServer(password=secret) as server:
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        with (
            redis.Redis("127.0.0.1", server.port, retry=NO_RETRY) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
        assert secret not in " ".join(psutil.Process(server.pid).cmdline())
        assert secret not in repr(server)


def test_nobody_gets_into_an_embedded_redis_without_its_password() -> None:
    """Any user of the machine reaches the port, and could run code as the one who started the server."""
    with RedisServer() as server:
        for credentials in ("", ":wrong@", "default:@"):
            url = f"redis://{credentials}127.0.0.1:{server.port}"
            with redis.Redis.from_url(url, retry=NO_RETRY) as stranger, pytest.raises(redis.RedisError):
                stranger.ping()
        with redis.Redis.from_url(server.url) as client:
            assert client.ping()
        with RedisServer() as other:
            assert other.password != server.password
        _only_ours(server.password_file, server.password)


def test_the_url_names_its_user_as_programs_other_than_ours_need_it() -> None:
    """``redis-cli -u`` logs in with the name that is there, and an empty one is nobody's."""
    with RedisServer(password="it's 1/2") as server:
        parts = urlsplit(server.url)
        said = server.command("AUTH", unquote(parts.username or ""), unquote(parts.password or ""))
    assert said == "OK"


async def test_nobody_gets_into_an_embedded_postgres_without_its_password() -> None:
    """Not over TCP and not over its socket, as a superuser or anybody else, nor into another database."""
    with PostgresServer() as server:
        for host in ("127.0.0.1", str(server.socket_directory)):
            for database in ("postgres", "template1"):
                for password in ("", "postgres", "wrong"):
                    with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InterfaceError)):
                        await asyncpg.connect(
                            host=host,
                            port=server.port,
                            user="postgres",
                            password=password,
                            database=database,
                            timeout=5,
                        )
        rules = await query(server.url, "select string_agg(distinct auth_method, ',') from pg_hba_file_rules")
        assert rules == "scram-sha-256"
        _only_ours(server.passfile, server.password)
        owner = [path for path in server.passfile.parent.iterdir() if path.is_file()]
        assert all(path.stat().st_mode & 0o077 == 0 for path in owner), owner


def test_an_embedded_servers_password_is_in_no_processs_arguments(server: EmbeddedServer) -> None:
    password = getattr(server, "password", "")
    assert len(password) == 32
    assert not any(password in word for process in tree_of(server) for word in process.cmdline())
    assert password not in repr(server)
    assert password not in server.log


def _only_ours(path: Path, password: str) -> None:
    assert password in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_redis_knows_the_users_of_its_acl() -> None:
    with (
        RedisServer(acl=["bot on >secret ~lockguard:* +@all"]) as server,
        redis.Redis.from_url(server.url_for("bot", "secret")) as client,
    ):
        client.set("lockguard:a", 1)
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("other", 1)


def test_redis_listens_on_a_unix_socket_when_asked() -> None:
    with (
        RedisServer(unix_socket=True, password="a b") as server,
        redis.Redis.from_url(server.unix_url) as client,
    ):
        assert client.ping()
    with pytest.raises(ConfigurationError, match="unix_socket=True"):
        _ = RedisServer().unix_url


def test_redis_takes_further_configuration_and_debug_commands() -> None:
    with (
        RedisServer(config=["maxmemory 3mb", "loglevel warning"]) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.config_get("maxmemory") == {"maxmemory": "3145728"}
        client.execute_command("DEBUG", "SLEEP", "0")


def test_a_wrong_configuration_line_is_answered_with_the_servers_words() -> None:
    with pytest.raises(ConfigurationError, match="maxmemroy"):
        RedisServer(config=["maxmemroy 3mb"]).start()
    with pytest.raises(ConfigurationError, match="line break"):
        RedisServer(config=["a\nb"])


# Postgres


async def test_postgres_keeps_committed_rows_through_a_kill_unless_told_otherwise() -> None:
    with PostgresServer() as server:
        url = server.create_database('odd "name" \' $x')
        await query(url, "create table t as select 7 as a")
        server.kill()
        server.restart()
        assert await query(url, "select a from t") == 7
        server.restart()
        assert await query(url, "select a from t") == 7
        server.restart(keep_data=False)
        assert await query(server.url, "select count(*) from pg_database where not datistemplate") == 1


async def test_postgres_restarts_at_once_after_a_kill_with_sessions_open() -> None:
    with PostgresServer() as server:
        for _ in range(5):
            sessions = [await asyncpg.connect(server.url) for _ in range(3)]
            server.kill()
            server.restart()
            assert await query(server.url, "select 1") == 1
            for session in sessions:
                session.terminate()


async def test_postgres_asks_for_its_password_and_shows_it_to_nobody() -> None:
    secret = "pa'ss \\ wörd"
    with PostgresServer(password=secret) as server:
        assert await query(server.url, "select 1") == 1
        assert await query(server.create_database("more"), "select 1") == 1
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(server.url_for("postgres", user="postgres", password="wrong"), "select 1")
        assert secret not in " ".join(psutil.Process(server.pid).cmdline())
        assert secret not in repr(server)
        assert secret not in server.log


async def test_postgres_takes_settings() -> None:
    with PostgresServer(max_connections=7, settings={"work_mem": "1234kB"}) as server:
        assert await query(server.url, "show max_connections") == "7"
        assert await query(server.url, "show work_mem") == "1234kB"
        assert await query(server.url, "show synchronous_commit") == "on"


def test_a_wrong_postgres_setting_is_answered_with_the_servers_words() -> None:
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        PostgresServer(settings={"no_such_setting": "1"}).start()
    with pytest.raises(ConfigurationError, match="max_connections=0"):
        PostgresServer(max_connections=0)
    with pytest.raises(ConfigurationError, match="at least one character"):
        PostgresServer(password="")


async def test_a_database_is_copied_from_a_template_and_dropped_under_its_users(
    postgres_server: PostgresServer, database_url: str
) -> None:
    await query(database_url, "create table t as select 7 as a")
    template = database_url.rpartition("/")[2]
    copy = postgres_server.create_database(f"{template}_copy", template=template)
    user = await asyncpg.connect(copy)
    assert await user.fetchval("select a from t") == 7
    postgres_server.drop_database(f"{template}_copy")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await query(copy, "select 1")
    user.terminate()
    with pytest.raises(ConfigurationError, match="already exists"):
        postgres_server.create_database(template)
