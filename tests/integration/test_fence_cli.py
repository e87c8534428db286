"""``lockguard fence`` as an operator uses it: what it prints, and how it refuses."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from lockguard_asyncpg import SCHEMA_VERSION
from lockguard_asyncpg._cli import fence
from lockguard_asyncpg._schema import steps
from lockguard_lab.fence_race import WAYS

if TYPE_CHECKING:
    from lockguard_lab.servers import PostgresServer

SHORT_BENCH = ("bench", "--rows", "100", "--rounds", "1")
Run = "Callable[..., Result]"


@pytest.fixture
def run(database_url: str) -> Run:
    def call(*args: str, url: str = database_url, code: int = 0) -> Any:
        result = CliRunner().invoke(fence, args, env={"LOCKGUARD_DATABASE_URL": url, "COLUMNS": "200"})
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return call


@pytest.fixture
def installed(run: Run, postgres_server: PostgresServer, database_url: str) -> Run:
    run("install")
    return run


def psql(server: PostgresServer, url: str, statement: str) -> None:
    import asyncio

    import asyncpg

    async def go() -> None:
        conn = await asyncpg.connect(url)
        try:
            await conn.execute(statement)
        finally:
            await conn.close()

    asyncio.run(go())


def test_install_says_what_it_did(run: Run) -> None:
    assert f"version {SCHEMA_VERSION} now (before: none)" in run("install").output
    assert "already" in run("install").output
    assert "already" in run("upgrade").output


def test_sql_is_a_script_that_installs(run: Run, postgres_server: PostgresServer, database_url: str) -> None:
    psql(postgres_server, database_url, run("sql").output)
    assert "already" in run("upgrade").output


def test_an_older_schema_is_shown_and_upgraded(
    run: Run, postgres_server: PostgresServer, database_url: str
) -> None:
    first = steps()[0]
    psql(
        postgres_server,
        database_url,
        f"{first.sql}; insert into lockguard.schema_version (version) values (1)",
    )
    assert "run `lockguard fence upgrade`" in run("status").output
    assert (
        "run `lockguard fence upgrade`"
        in run("protect", "pg_class", "--resource", "{relname}", code=2).output
    )
    for command in (("race", "--url", database_url), ("bench", "--url", database_url)):
        assert "run `lockguard fence upgrade`" in run(*command, code=2).output
    assert "(before: 1)" in run("upgrade").output
    newer = run("sql", "--after", "1").output
    assert "0002_protect" in newer
    assert "0001_fence" not in newer


def test_status_shows_holders_and_protected_tables(
    installed: Run, postgres_server: PostgresServer, database_url: str
) -> None:
    assert "no resource was ever sealed" in installed("status").output
    psql(
        postgres_server,
        database_url,
        "create table position (symbol text, price numeric);"
        "select lockguard.seal('binance:APTUSDT', 7, gen_random_uuid(), 'host/12/bot', 'open', 1000);",
    )
    done = installed("protect", "position", "--resource", "binance:{symbol}", "--exempt", "price")
    assert done.output == "position is protected as binance:{symbol}; price may change without a lease\n"
    shown = installed("status").output
    for part in ("binance:APTUSDT", "host/12/bot", "open", "position", "binance:{symbol}", "price"):
        assert part in shown
    facts = json.loads(installed("status", "--json").output)
    assert facts["version"] == SCHEMA_VERSION
    assert (facts["resources"][0]["token"], facts["resources"][0]["is_open"]) == (7, True)
    assert facts["protected"] == [
        {
            "table": 'public."position"',
            "resource": "binance:{symbol}",
            "exempt": ["price"],
            "enabled": True,
            "subscriber": False,
            "watched": False,
        }
    ]
    assert "unprotect" in installed("uninstall", "--confirm", code=2).output
    assert "no longer" in installed("unprotect", "position").output
    assert "was not" in installed("unprotect", "position").output
    assert "1 resources would be forgotten" in installed("uninstall", code=2).output
    assert installed("uninstall", "--confirm").output == "removed\n"
    assert "no lockguard schema" in installed("uninstall").output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("protect", "nowhere.positions", "--resource", "{a}"), "there is no table 'nowhere.positions'"),
        (("protect", "positions", "--resource", "{a}"), "there is no table 'positions'"),
        (("protect", "a b c.", "--resource", "{a}"), "there is no table"),
        (("protect", "lockguard.audit", "--resource", "{pair}"), "names a column 'pair'"),
        (("protect", "lockguard.audit", "--resource", "fixed"), "write columns in braces"),
        (("protect", "lockguard.audit", "--resource", "{actor}", "--exempt", "x"), "cannot exempt x"),
        (("install", "--grant-to", "nobody_at_all"), "no role 'nobody_at_all'"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(
    installed: Run, args: tuple[str, ...], says: str
) -> None:
    output = installed(*args, code=2).output
    assert says in output
    assert output.startswith("Error: ") or output.splitlines()[-1].startswith("Error: ")


def test_status_of_very_many_resources_stays_readable_and_json_tells_all(
    installed: Run, postgres_server: PostgresServer, database_url: str
) -> None:
    psql(
        postgres_server,
        database_url,
        "select lockguard.seal('r' || g, 7, gen_random_uuid(), 'h', 'o', 1000)"
        " from generate_series(1, 1500) g;"
        "update lockguard.fence set released_at = now() where resource not in ('r3', 'r1400');",
    )
    shown = installed("status").output
    assert shown.count("closed") + shown.count("open") - shown.count("--open") == 1000
    assert "there are more than these 1000" in shown
    assert installed("status", "--limit", "0").output.count("closed") == 1498
    few = installed("status", "--open").output
    assert [part in few for part in ("r3 ", "r1400", "r4 ", "there are more")] == [True, True, False, False]
    facts = json.loads(installed("status", "--json").output)
    assert len(facts["resources"]) == 1500
    assert len(json.loads(installed("status", "--json", "--limit", "7").output)["resources"]) == 7
    assert [
        r["resource"] for r in json.loads(installed("status", "--json", "--open").output)["resources"]
    ] == ["r1400", "r3"]


def test_status_shows_what_a_holder_is_called_whole_and_as_it_is(
    installed: Run, postgres_server: PostgresServer, database_url: str
) -> None:
    """Brackets are rich's markup, and once ended the command with a traceback."""
    resource, operation = "binance:" + "X" * 150, "open [/x] [red]"
    psql(
        postgres_server,
        database_url,
        f"select lockguard.seal('{resource}', 7, gen_random_uuid(), 'host/12/bot', '{operation}', 1000);"
        "select lockguard.seal('b:c', 7, gen_random_uuid(), 'host', e'a\\x1b[2J\nb:c closed', 1000);",
    )
    output = installed("status").output
    (line,) = [line for line in output.splitlines() if resource in line]
    assert operation in line
    assert "…" not in output
    assert "\x1b" not in output
    assert not any(line.startswith("b:c closed") for line in output.splitlines())


@pytest.mark.parametrize(
    "command",
    [("status",), ("upgrade",), ("protect", "pg_class", "--resource", "{relname}")],
)
def test_a_missing_schema_names_the_remedy(run: Run, command: tuple[str, ...]) -> None:
    assert "run `lockguard fence install`" in run(*command, code=2).output


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("postgresql://bot:hunter2@127.0.0.1:1/x", 1),
        ("postgresql://bot:hunter2@127.0.0.1:notaport/x", 2),
        ("mysql://bot:hunter2@127.0.0.1/x", 2),
    ],
)
def test_a_database_out_of_reach_is_one_line_without_the_password(run: Run, url: str, code: int) -> None:
    output = run("status", url=url, code=code).output
    assert "cannot connect" in output or "cannot be read" in output
    assert "hunter2" not in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("line", ["hunter2", "port=hunter2", "password=%hunter2"])
def test_a_service_file_that_cannot_be_read_is_one_line_without_the_password(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    file = tmp_path / "pg_service.conf"
    file.write_text(f"[trading]\nhost=127.0.0.1\n{line}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    output = run("status", url="postgresql:///?service=trading", code=2).output
    assert "hunter2" not in output
    assert len(output.splitlines()) == 1


def test_too_little_privilege_names_the_grant(
    installed: Run, postgres_server: PostgresServer, database_url: str
) -> None:
    psql(postgres_server, database_url, "create role poor_bot login password 'poor'")
    try:
        poor = f"postgresql://poor_bot:poor@{database_url.rpartition('@')[2]}"
        assert "GRANT lockguard_app" in installed("status", url=poor, code=2).output
        installed("install", "--grant-to", "poor_bot")
        assert "schema version" in installed("status", url=poor).output
        assert (
            "takes a role that owns"
            in installed("protect", "lockguard.audit", "--resource", "{actor}", url=poor, code=2).output
        )
        for command in ("race", "bench"):
            output = installed(command, "--url", poor, code=2).stderr
            assert "takes a role that owns lockguard's schema" in output
            assert len(output.splitlines()) == 2  # where it goes, and why that fails
    finally:
        psql(postgres_server, database_url, "drop owned by poor_bot; drop role poor_bot")


def test_a_race_prints_a_line_for_each_way_and_level_and_ends_in_its_verdict(
    installed: Run, database_url: str
) -> None:
    ways = [way.name for way in WAYS[:2]]
    chosen = [word for name in ways for word in ("--way", name)]
    result = CliRunner().invoke(fence, ["race", "--total", "120", *chosen, "--url", database_url])
    lines = [json.loads(x) for x in result.stdout.splitlines()]
    runs = [x for x in lines if "route" in x]
    (together,) = (x for x in lines if "all" in x)
    assert together["all"] == len(runs) == 3 * len(ways)
    assert {x["write"] for x in runs} == set(ways)
    wrong = sum(x["stale_commits"] + x["duplicates"] + x["lost_writes"] + x["stray_errors"] for x in runs)
    disturbed = [x for x in lines if "independent" in x and x["fenced"] < x["unfenced"]]
    meets = {way.name: way.meets for way in WAYS}
    failed = [x for x in disturbed if x["isolation"] not in meets[x["independent"]]]
    assert result.exit_code == (1 if wrong or failed else 0)
    assert together["attempts"] == sum(x["attempts"] for x in runs) > 0
    # An absent way has its line too.
    of_ways = {x["write"]: x for x in lines if "write" in x and "route" not in x}
    assert list(of_ways) == [way.name for way in WAYS]
    assert {name for name, x in of_ways.items() if x["attempts"]} == set(ways)
    assert all(of_ways[name]["runs"] == 3 for name in ways)


def test_a_race_on_a_database_out_of_reach_is_one_line(run: Run) -> None:
    output = run("race", "--url", "postgresql://bot:hunter2@127.0.0.1:1/x", code=1).output
    assert len(output.splitlines()) == 2  # where it goes, and why that fails
    assert "hunter2" not in output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--writes", "5", "--total", "5"), "not both"),
        (("--embedded", "--pooler"), "its own pooler"),
        (("--embedded", "--url", "postgresql://127.0.0.1:1/x"), "not both"),
        (("--way", "by post"), "'by post' is none of 'transaction', "),
        (("--writes", "0"), "0 is not in the range"),
    ],
)
def test_a_race_that_cannot_be_is_refused(run: Run, args: tuple[str, ...], says: str) -> None:
    assert says in run("race", *args, code=2).output


@pytest.mark.parametrize(
    ("command", "doing"),
    [
        (("race", "--total", "1", "--holders", "2", "--way", "statement"), "racing"),
        (SHORT_BENCH, "measuring"),
    ],
)
def test_what_loads_or_drops_leaves_the_database_of_the_bots_own_variables_alone(
    run: Run, command: tuple[str, ...], doing: str
) -> None:
    """They start a server of their own: a race kills backends, both fill tables and drop a schema."""
    unreachable = "postgresql://bot:hunter2@127.0.0.1:1/x"
    done = run(*command, url=unreachable)
    assert f"{doing} on a server of its own" in done.stderr
    assert "hunter2" not in done.output


@pytest.mark.parametrize(
    ("command", "schema"), [(("race", "--writes", "5"), "lockguard_race"), (SHORT_BENCH, "lockguard_bench")]
)
def test_a_schema_that_the_command_did_not_make_is_refused_and_left_as_it_is(
    installed: Run, postgres_server: PostgresServer, database_url: str, command: tuple[str, ...], schema: str
) -> None:
    psql(
        postgres_server,
        database_url,
        f"create schema {schema}; create table {schema}.precious as select 1 as n",
    )
    output = installed(*command, "--url", database_url, code=2).output
    assert f"schema {schema} in this database that `lockguard fence {command[0]}` has not made" in output
    psql(postgres_server, database_url, f"select n from {schema}.precious")
    assert "no resource was ever sealed" in installed("status").output


def test_bench_measures_each_change_on_both_kinds_of_tables(installed: Run, database_url: str) -> None:
    on = ("--url", database_url)
    for _ in range(2):
        costs = json.loads(installed("bench", "--rows", "200", "--rounds", "1", "--json", *on).stdout)
    assert {(c["table"], c["unit"]) for c in costs} == {
        (table, unit) for table in ("ordinary", "partitioned") for unit in ("row", "statement")
    }
    assert all(c["plain_us"] > 0 and c["ratio"] > 0 for c in costs)
    assert "lockguard_bench" not in installed("status").output.partition("protected table")[2]
    assert "ratio" in installed(*SHORT_BENCH, *on).output


def test_uninstall_by_another_role_names_the_owner(
    installed: Run, postgres_server: PostgresServer, database_url: str
) -> None:
    for rights in ("", "grant lockguard_app to {role};"):
        role = f"poor_{secrets.token_hex(4)}"
        psql(
            postgres_server,
            database_url,
            f"create role {role} login password 'poor';" + rights.format(role=role),
        )
        try:
            name = database_url.rpartition("/")[2]
            url = postgres_server.url_for(name, user=role, password="poor")
            said = installed("uninstall", "--confirm", url=url, code=2).output
            assert f"belongs to postgres, and only its owner may remove it, not {role}" in said
            assert "GRANT" not in said
        finally:
            psql(postgres_server, database_url, f"drop owned by {role}; drop role {role}")
