"""No secret is in anything that comes out: output, records, errors, reprs, files; whatever the servers do.

What is searched for is a canary in the place of each password and key, also in pieces of 8 characters and
encoded. The servers are sockets that fail in the ways of real ones; one quotes what it is sent, as a Redis
does with a command that it does not know.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import json
import logging
import os
import socket
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import ccxt
import ccxt.async_support
import click
import pytest
from redis import UsernamePasswordCredentialProvider

from lockguard import LockGuard
from lockguard._cli import app
from lockguard.errors import LockguardError
from lockguard.text import hidden
from lockguard_bot._logs import known_secrets
from lockguard_ccxt import GuardedExchange, gate_orders
from lockguard_ccxt._by_url import ccxt_settings, connect, point_at
from lockguard_positions._exchange_options import ExchangeSettings

CANARY = "c4n4ry+Passw0rd/Qz7Xv"
RAW = quote(CANARY, safe="")
"""As it is written in a URL."""


def pieces() -> set[str]:
    whole = {CANARY, RAW, base64.b64encode(CANARY.encode()).decode().rstrip("=")}
    return {each[at : at + 8] for each in whole for at in range(len(each) - 7)}


PIECES = pieces()


def leaks(text: str) -> str:
    """Where a piece of the canary is in a text, with what is around it; empty if nowhere."""
    found = min((text.find(piece) for piece in PIECES if piece in text), default=-1)
    return text[max(0, found - 120) : found + 60] if found >= 0 else ""


class Records(logging.Handler):
    """Every record that anybody logs, with its arguments and traceback."""

    def __init__(self) -> None:
        super().__init__(0)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{logging.Formatter().format(record)} {vars(record)!r}")


@contextmanager
def every_record() -> Iterator[list[str]]:
    root, heard = logging.getLogger(), Records()
    level = root.level
    root.addHandler(heard)
    root.setLevel(0)
    logging.getLogger("asyncio").setLevel(logging.DEBUG)
    try:
        yield heard.texts
    finally:
        root.removeHandler(heard)
        root.setLevel(level)
        logging.getLogger("asyncio").setLevel(logging.NOTSET)


# --- servers that fail ---


def quoting(reply: bytes) -> Callable[[socket.socket], None]:
    """A Redis that refuses each command with an error that quotes what it was sent."""

    def serve(link: socket.socket) -> None:
        while sent := link.recv(65_536):
            said = b" ".join(sent.split())
            link.sendall((reply + said + b"\r\n") * max(1, sent.count(b"*")))

    return serve


def echoing(link: socket.socket) -> None:
    while sent := link.recv(65_536):
        link.sendall(sent)


def hanging_up(link: socket.socket) -> None:
    link.recv(10)


def of_http(link: socket.socket) -> None:
    link.recv(65_536)
    link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def refusing_postgres(link: socket.socket) -> None:
    """Asks for the password in clear text and refuses it."""
    link.recv(65_536)
    link.sendall(b"R" + struct.pack("!II", 8, 3))
    link.recv(65_536)
    said = b"SFATAL\0C28P01\0Mpassword authentication failed\0\0"
    link.sendall(b"E" + struct.pack("!I", 4 + len(said)) + said)


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """The port of each server; nobody listens at ``closed``."""
    serves = {
        "unknown": quoting(b"-ERR unknown command, with args beginning with: "),
        "bad": quoting(b"-ERR bad request: "),
        "echo": echoing,
        "hang up": hanging_up,
        "http": of_http,
        "postgres": refusing_postgres,
    }
    listening: list[socket.socket] = []
    found = {"closed": 1}
    for name, serve in serves.items():
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)
        found[name] = server.getsockname()[1]
        threading.Thread(target=_accept, args=(server, serve), daemon=True).start()
    yield found
    for server in listening:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


def _accept(server: socket.socket, serve: Callable[[socket.socket], None]) -> None:
    def one(link: socket.socket) -> None:
        with link, suppress(OSError):
            serve(link)

    with suppress(OSError):
        while True:
            threading.Thread(target=one, args=(server.accept()[0],), daemon=True).start()


# --- every command ---

HELP = ("--help",)
"""For what starts servers of its own, or shows a page until it is ended: the help must show no variable."""
CASES: dict[str, tuple[str, ...]] = {
    "ask": ("x:y", "--reason", "r"),
    "bench": HELP,
    "bot run": ("--once", "--connect-within", "0"),
    "break": ("x:y", "--reason", "r", "--yes"),
    "chaos": HELP,
    "demo": HELP,
    "doctor": ("--json",),
    "exchange serve": HELP,
    "exchange settings": (f"https://u:{RAW}@h:1",),
    "exporter": HELP,
    "fence bench": HELP,
    "fence check": (),
    "fence install": (),
    "fence load": HELP,
    "fence protect": ("t", "--resource", "x"),
    "fence prune": ("--older-than", "1d"),
    "fence race": HELP,
    "fence recover": ("--reason", "r", "--confirm"),
    "fence sql": (),
    "fence status": (),
    "fence uninstall": ("--confirm",),
    "fence unprotect": ("t",),
    "fence upgrade": (),
    "fence watch": (),
    "functions install": (),
    "functions show": (),
    "history": ("x:y",),
    "inspect": ("x:y",),
    "logs analyze": (f"redis://:{RAW}@h/0",),
    "ls": (),
    "positions cleanup": (),
    "positions close": ("BTCUSDT",),
    "positions diagnose": (),
    "positions fit": (),
    "positions migrate": (),
    "positions recover": (),
    "race": HELP,
    "run": ("x:y", "--", "true"),
    "scoreboard": HELP,
    "servers": HELP,
    "show": ("x:y",),
    "sim": HELP,
    "top": HELP,
    "web": HELP,
}
SERVERS = (  # of Redis, of Postgres and of the exchange
    ("closed", "postgres", "closed"),
    ("unknown", "hang up", "http"),
    ("bad", "postgres", "hang up"),
    ("echo", "http", "closed"),
    ("hang up", "closed", "http"),
)


def commands(group: click.Group = app.lockguard, words: tuple[str, ...] = ()) -> Iterator[str]:
    """All of them, as the command line itself lists them."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield " ".join((*words, name))


INSTALLED = frozenset(commands())


def everything(arguments: list[str]) -> str:
    """All that a run of a command says and logs, with its traceback if it is a bug."""
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    kept = root.handlers[:], root.level, logging.raiseExceptions
    with every_record() as records, redirect_stdout(out), redirect_stderr(err):
        try:
            app.run(arguments)
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc(file=err)
    root.handlers[:], root.level, logging.raiseExceptions = kept
    return "\n".join((out.getvalue(), err.getvalue(), *records))


@pytest.fixture
def nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A directory of its own, and no variable of lockguard's."""
    for name in [name for name in os.environ if name.startswith(("LOCKGUARD_", "PG"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_has_a_case() -> None:
    assert set(CASES) >= INSTALLED, "say how a new command is run here"
    assert set(CASES) - INSTALLED <= {"chaos", "scoreboard"}  # of newer entry points


@pytest.mark.parametrize("place", ["environment", "file"])
@pytest.mark.parametrize("command", [name for name, case in CASES.items() if name in INSTALLED])
def test_no_command_tells_a_secret_whatever_its_servers_do(
    command: str, place: str, nothing_named: Path, monkeypatch: pytest.MonkeyPatch, ports: dict[str, int]
) -> None:
    monkeypatch.setenv("LOCKGUARD_EXCHANGE_API_KEY", CANARY)
    monkeypatch.setenv("LOCKGUARD_EXCHANGE_SECRET", CANARY)
    monkeypatch.setenv("LOCKGUARD_ALERT_URLS", f"json://u:{RAW}@127.0.0.1:1")
    servers = SERVERS if CASES[command] != HELP else SERVERS[:1]
    for redis, database, exchange in servers if place == "environment" else servers[1:3]:
        redis_url = f"redis://u:{RAW}@127.0.0.1:{ports[redis]}/0"
        database_url = f"postgresql://u:{RAW}@127.0.0.1:{ports[database]}/d?sslmode=disable"
        if place == "file":
            text = f'redis = "{redis_url}"\ndatabase = "{database_url}"\n'
            (nothing_named / "lockguard.toml").write_text(text)
        else:
            monkeypatch.setenv("LOCKGUARD_REDIS_URL", redis_url)
            monkeypatch.setenv("LOCKGUARD_DATABASE_URL", database_url)
        monkeypatch.setenv("LOCKGUARD_EXCHANGE_URL", f"http://u:{RAW}@127.0.0.1:{ports[exchange]}")
        assert not leaks(everything([*command.split(), *CASES[command]])), (redis, database, exchange)
    written = [path for path in nothing_named.rglob("*") if path.name != "lockguard.toml"]
    assert not any(leaks(path.read_text(errors="replace")) for path in written if path.is_file())


@pytest.mark.parametrize("command", [*sorted(INSTALLED), "", "fence"])
def test_a_url_that_is_typed_in_a_wrong_place_is_not_quoted(command: str, nothing_named: Path) -> None:
    """As in ``--redis URL1 URL2``."""
    option = ("--redis", "redis://127.0.0.1:1") if command in ("ask", "ls", "show", "history", "run") else ()
    shapes = (f"redis://:{RAW}@127.0.0.1:1/0", f"postgresql://u:{RAW}@h/d", f"http://h/d?password={RAW}")
    for url in shapes:
        many = {"run": ("x:y", *option, "--", url), "servers": ()}.get(command, (url, url, url, url))
        for words in (many, (f"--redsi={url}",), ("--redsi", url)):
            assert not words or not leaks(everything([*command.split(), *words])), words


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "x:y", "--redis", "redis://127.0.0.1:1", "--"),
        ("bot", "run", "--account"),
        ("exchange", "serve", "--host"),
        ("servers", "--env-file"),
    ],
    ids=" ".join,
)
def test_a_url_that_is_typed_for_something_else_is_not_quoted(
    arguments: tuple[str, ...], nothing_named: Path
) -> None:
    assert not leaks(everything([*arguments, f"redis://:{RAW}@127.0.0.1:1/0"]))


# --- the library ---


def given_by_a_function() -> str:
    return CANARY


async def given_by_a_coroutine() -> tuple[str, str]:
    await asyncio.sleep(0)
    return "u", CANARY


def raised() -> str:
    raise ValueError(CANARY)


CREDENTIALS: tuple[Any, ...] = (
    given_by_a_function,
    given_by_a_coroutine,
    raised,
    UsernamePasswordCredentialProvider("u", CANARY),
)


def chain(exc: BaseException | None) -> str:
    """An error and all that led to it, in every form."""
    text = "" if exc is None else "".join(traceback.format_exception(exc))
    while exc is not None:
        text += f"{exc} {exc!r} {exc.args} {vars(exc)}"
        exc = exc.__cause__ or exc.__context__
    return text


async def tried(url: str, **options: Any) -> str:
    """All that can be seen of a guard while it fails: what it raises, its objects and tasks."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0  # then every callback is logged with its arguments
    seen = ""
    short = timedelta(milliseconds=60)
    try:
        async with LockGuard.from_url(url, node_timeout=short, wait=short, **options) as guard:
            seen += f"{guard} {guard!r} {[repr(task) for task in asyncio.all_tasks()]}"
            seen += " ".join(repr(each) for each in gc.get_referents(*vars(guard).values()))
            async with guard.hold("x:y"):
                pass
    except LockguardError as exc:
        seen += chain(exc)
    return seen


@pytest.mark.parametrize("server", ["closed", "unknown", "bad", "echo", "hang up", "http"])
def test_no_error_record_or_repr_of_a_guard_tells_a_password(server: str, ports: dict[str, int]) -> None:
    place = f"127.0.0.1:{ports[server]}"
    runs: list[tuple[str, dict[str, Any]]] = [
        (f"redis://:{RAW}@{place}/0", {}),
        (f"redis://u:{RAW}@{place}/0?protocol=2", {}),
        (f"rediss://:{RAW}@{place}/0", {}),
        (f"redis+sentinel://:{RAW}@{place}/m/0?sentinel_password={RAW}", {}),
        (f"redis+cluster://:{RAW}@{place}", {}),
        *((f"redis://{place}/0?protocol=2", {"credentials": source}) for source in CREDENTIALS),
    ]
    for url, options in runs:
        with every_record() as records:
            seen = asyncio.run(tried(url, **options))
        assert not leaks("\n".join((seen, *records))), (url, options)


def test_what_a_server_quotes_of_a_password_is_hidden_where_it_was_cut_too() -> None:
    assert hidden("AUTH c4n4ryPassw0", "c4n4ryPassw0rd") == "AUTH ***"
    assert hidden("AUTH, `ryPassw0rd` and ryPassw0rd", "c4n4ryPassw0rd") == "AUTH, `***` and ***"
    assert hidden("WRONGPASS invalid pair", "c4n4ryPassw0rd", None, "", "in") == "WRONGPASS invalid pair"


# --- exchanges ---


class Naming(BaseHTTPRequestHandler):
    """An exchange that names the key, the request and its signature in its error."""

    def answer(self) -> None:
        asked = f"{self.headers.get('X-MBX-APIKEY')} {self.path}"
        body = json.dumps({"code": -1000, "msg": f"not allowed: {asked}"}).encode()
        self.send_response(400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = answer  # noqa: N815 - the name that http.server looks for

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of http.server
        pass


@pytest.fixture
def naming() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Naming) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


KEY = "k3yc4n4ryPassw0rdQz7"


def told_of_an_exchange(exc: BaseException, records: list[str]) -> None:
    assert not [each for each in records if KEY in each or leaks(each)]
    text = chain(exc)
    assert "not allowed" in text
    assert KEY not in text
    assert "signature=***" in text
    assert "signature=" not in text.replace("signature=***", "").replace("signature='", "")


def test_an_error_of_a_synchronous_exchange_names_no_key_and_no_signature(naming: str) -> None:
    client = ccxt.binanceusdm({"apiKey": KEY, "secret": CANARY})
    point_at(client, naming)
    gate_orders(client)
    with pytest.raises(ccxt.BaseError) as failed, every_record() as records:
        client.fapiPrivateV2GetAccount()
    told_of_an_exchange(failed.value, records)


async def test_an_error_of_an_exchange_names_no_key_and_no_signature(naming: str) -> None:
    client = ccxt.async_support.binanceusdm({"apiKey": KEY, "secret": CANARY})
    point_at(client, naming)
    GuardedExchange(client)
    try:
        with pytest.raises(ccxt.BaseError) as failed, every_record() as records:
            await client.fapiPrivateV2GetAccount()  # pyright: ignore[reportGeneralTypeIssues]
    finally:
        await client.close()
    told_of_an_exchange(failed.value, records)


def test_no_url_of_an_exchange_is_quoted() -> None:
    shapes = ("ftp://u:{}@h", "https://u:{}@h", "https://u:{}@h:port", "https://u:{}@[::1/0")
    for use, url in ((connect, shapes[0]), *((ccxt_settings, shape) for shape in shapes)):
        with pytest.raises(LockguardError) as failed:
            use(url.format(RAW))
        assert not leaks(chain(failed.value))
    settings = ExchangeSettings(f"http://u:{RAW}@h")
    assert not leaks(f"{settings} {settings!r} {settings.shown}")


# --- the bot's log ---


def test_the_bots_log_masks_secrets_wherever_they_were_given(
    nothing_named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "redis://:{}@127.0.0.1:1/0"
    (nothing_named / "lockguard.toml").write_text(f'redis = "{url.format("of-the-file")}"')
    monkeypatch.setenv("PGPASSWORD", "of-postgres")
    monkeypatch.setenv("LOCKGUARD_DATABASE_URL", "postgresql://h/d?password=of-an-option")
    monkeypatch.setattr(
        "sys.argv", ["lockguard", "bot", "run", "--stream-redis", url.format("of-an-argument")]
    )
    expected = {"of-the-file", "of-postgres", "of-an-option", "of-an-argument"}
    assert expected <= set(known_secrets())
