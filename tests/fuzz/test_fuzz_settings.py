"""Whatever a URL or a setting is, it is read as it is meant or refused in one line that quotes no secret."""

from __future__ import annotations

import contextlib
import string
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

import click
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lockguard import ConfigurationError, LockGuard
from lockguard._cli.servers import Servers
from lockguard._nodes.address import Address
from lockguard._settings import Settings
from lockguard_asyncpg import _dsn as dsn
from lockguard_asyncpg._connecting import connected
from lockguard_bot._stream import _client as stream_client
from lockguard_ccxt._by_url import ccxt_settings
from lockguard_ops._web._command import _places
from lockguard_positions._exchange_options import ExchangeSettings, _local_place
from tests.fuzz.lines import attempt, told_of

CANARY = "c4n4ry"
RESERVED = st.text(
    st.sampled_from("0123456789@/#?%:,[]&=+;!$'()*\\^`{|}~\"<> -._\n\x00\u00e9\ud800"), max_size=6
)
ENCODABLE = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def of_postgres(url: str) -> object:
    """What a command tells of a database that it cannot reach; asyncpg reads the URL first."""

    async def never(_: object) -> None:
        raise AssertionError("nobody listens there")

    try:
        connected(url, never)
    except click.ClickException as exc:
        return exc.message


def of_an_exchange(url: str) -> object:
    settings = ExchangeSettings(url)
    return f"{_local_place(url)} {settings!r} {settings.shown}"


READERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "redis": ("redis://{}h:1/0", LockGuard.from_url),
    "protocol": ("redis://{}h:1/0?protocol=2", Address.parse),
    "unix": ("unix://{}/run/redis.sock", LockGuard.from_url),
    "sentinel": ("redis+sentinel://{}h:1,i:2/main/0", LockGuard.from_url),
    "cluster": ("redis+cluster://{}h:1,i:2", LockGuard.from_url),
    "several": ("redis://{}h:1", lambda url: LockGuard.from_urls([url, "redis://i", "redis://j"])),
    "shown on the page": ("redis://{}h:1/0", lambda url: _places(Servers.read([url], None))),
    "stream": ("redis://{}h:1/0", stream_client),
    "postgres": ("postgresql://{}127.0.0.1:1/d?ssl=disable", of_postgres),
    "postgres behind a pooler": (
        "postgres://{}127.0.0.1:1/d?ssl=disable&statement_cache_size=0",
        of_postgres,
    ),
    "exchange": ("http://{}h:1", of_an_exchange),
    "exchange of a bot": ("https://{}h:1", ccxt_settings),
}


@given(st.sampled_from(sorted(READERS)), RESERVED, RESERVED, st.sampled_from(["", "bot", "b t", "1"]))
@example("stream", "", "/", "bot")
@example("exchange", "1/", "", "bot")
@example("exchange", "'", "", "bot")
@example("exchange", "p@", "", "bot")
def test_nothing_of_a_password_is_shown_whoever_reads_its_url(
    reader: str, before: str, after: str, user: str
) -> None:
    form, read = READERS[reader]
    url = form.format(f"{user}:{before}{CANARY}{after}@")
    found, refusal = attempt(lambda: read(url))
    assert refusal is None or CANARY not in told_of(refusal)
    assert CANARY not in f"{found} {found!r}"


@given(st.sampled_from(["application_name", "password", "sslmode", "x"]), ENCODABLE, ENCODABLE, ENCODABLE)
def test_a_url_of_postgres_that_is_written_anew_says_the_same(
    option: str, value: str, user: str, password: str
) -> None:
    """Without the option for asyncpg, which a server would refuse as a setting."""
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@"
    rest = f"{option}={quote(value, safe='')}"
    url = f"postgresql://{login}h:1/d?{rest}&statement_cache_size=7&y=z"
    given = dsn.arguments(url)
    assert given["statement_cache_size"] == 7
    parts, was = urlsplit(given["dsn"]), urlsplit(url)
    assert (parts.netloc, parts.path, parts.scheme) == (was.netloc, was.path, was.scheme)
    assert parse_qsl(parts.query, keep_blank_values=True) == [(option, value), ("y", "z")]


VARIABLES = tuple(
    f"LOCKGUARD_{name}"
    for name in (
        *(
            "REDIS_URL",
            "DATABASE_URL",
            "TTL",
            "WAIT",
            "MAX_HOLD",
            "LOCK_DELAY",
            "FENCE_WITHIN",
            "NODE_TIMEOUT",
        ),
        *("HISTORY", "NAME", "MIN_REPLICAS", "NAMESPACE", "ADDRESS_MAP", "CONFIG"),
    )
)
SHAPES = st.sampled_from(
    ["{}", "redis://:{}@h:1/0", "redis://h:1 {}", "{}s", "10{}", "a:1={}", "/{}.toml", "{}=b:2"]
)
ENVIRONMENT = st.text(st.characters(exclude_characters="\0"), max_size=6) | st.sampled_from(
    [
        "",
        " ",
        "9" * 5000,
        "-1",
        "0",
        "1e3",
        "\u0663",
        "\udcff",
        "a\nb",
        "\x1b[2J",
        "x" * 5000,
        "999999999d",
        "0s",
    ]
)


@given(st.sampled_from(VARIABLES), SHAPES, ENVIRONMENT, ENVIRONMENT)
def test_a_setting_of_the_environment_works_or_is_named_in_one_line_without_its_value(
    variable: str, shape: str, before: str, after: str
) -> None:
    environ = {"LOCKGUARD_REDIS_URL": "redis://h:1", variable: shape.format(f"{before}{CANARY}{after}")}
    _judge(environ, variable)
    _judge(environ | {variable: shape.format(f"{before}{after}")}, variable)


def _judge(environ: dict[str, str], variable: str) -> None:
    settings, refusal = attempt(lambda: Settings.read(environ=environ, directory=Path("/")))
    if refusal is not None:
        assert variable in str(refusal)
        assert CANARY not in told_of(refusal) or _is_a_path(environ[variable], variable)
    if settings is None or not settings.redis:
        return
    with contextlib.suppress(ConfigurationError):
        made = LockGuard.from_url(settings.redis[0], **settings.options)
        assert CANARY not in repr(made) or CANARY in f"{settings.options.get('name')}"


def _is_a_path(value: str, variable: str) -> bool:
    """The name of a file is told; what looks like a URL in its place is not."""
    return variable == "LOCKGUARD_CONFIG" and "@" not in value and "://" not in value


KEYS = st.text(st.sampled_from([*string.ascii_lowercase, *"_-./:@ \n\u00e9\x1b"]), min_size=1, max_size=10)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings") / "lockguard.toml"


@given(
    key=KEYS
    | KEYS.map(lambda key: f"redis://:{CANARY}@{key}")
    | st.sampled_from(["redis", "database", "name", "ttl", "history", "address_map", "namespace"]),
    form=st.sampled_from(
        ['"@"', "@", "7", "[]", "[1]", "true", "{}", "{a = 1}", '{"@" = "@"}', '{"@:1" = "b:1"}']
    ),
)
def test_a_setting_of_a_file_works_or_is_named_in_one_line_without_its_value(
    file: Path, key: str, form: str
) -> None:
    quoted = "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in key)
    file.write_text(f'"{quoted}" = {form.replace("@", CANARY)}\n', encoding="utf-8")
    _, refusal = attempt(lambda: Settings.read(environ={"LOCKGUARD_CONFIG": str(file)}))
    if refusal is not None:
        assert CANARY not in told_of(refusal)
        assert str(file) in str(refusal)
