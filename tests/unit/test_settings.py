"""Servers and options from arguments, the environment and a file; see lockguard/_settings.py."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from lockguard import LockGuard
from lockguard._cli.servers import Servers
from lockguard._nodes.cluster import ClusterNode
from lockguard._settings import Settings
from lockguard.errors import ConfigurationError

SECRET = "hunter2"
A, B, C = (f"redis://:{SECRET}@{host}:6379/0" for host in "abc")


def read(tmp_path: Path, file: str = "", name: str = "lockguard.toml", **environ: str) -> Settings:
    if file:
        (tmp_path / name).write_text(file, encoding="utf-8")
    return Settings.read(environ=environ, directory=tmp_path)


def test_nothing_is_named_by_default(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.redis, found.database, dict(found.options), found.min_replicas) == ((), None, {}, 0)


def test_an_argument_counts_before_the_environment_and_that_before_the_file(tmp_path: Path) -> None:
    file = f'redis = "{A}"\ndatabase = "postgresql://file/db"\nttl = "7s"\nhistory = 3\n'
    found = read(tmp_path, file, LOCKGUARD_REDIS_URL=f"{B} {C}", LOCKGUARD_TTL="500ms")
    assert found.redis == (B, C)
    assert found.database == "postgresql://file/db"
    assert found.options == {"ttl": timedelta(milliseconds=500), "history": 3}
    given = Settings.read(
        redis=[C], database="postgresql://given/db", environ={"LOCKGUARD_REDIS_URL": A}, directory=tmp_path
    )
    assert (given.redis, given.database) == ((C,), "postgresql://given/db")


@pytest.mark.parametrize("value", [f'["{A}", "{B}", "{C}"]', f'"{A} {B} {C}"'])
def test_a_quorum_is_a_list_or_stands_apart_by_blanks(tmp_path: Path, value: str) -> None:
    assert read(tmp_path, f"redis = {value}").redis == (A, B, C)


def test_the_nearest_file_counts(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(f'[tool.lockguard]\nredis = "{A}"\n', encoding="utf-8")
    (tmp_path / "a" / "pyproject.toml").write_text('[project]\nname = "bot"\n', encoding="utf-8")
    assert Settings.read(environ={}, directory=inner).redis == (A,)
    (tmp_path / "a" / "lockguard.toml").write_text(f'redis = "{B}"\n', encoding="utf-8")
    assert Settings.read(environ={}, directory=inner).redis == (B,)


def test_a_named_file_counts_wherever_it_is(tmp_path: Path) -> None:
    named = tmp_path / "elsewhere.toml"
    named.write_text(f'redis = "{C}"\n', encoding="utf-8")
    assert read(tmp_path, f'redis = "{A}"', LOCKGUARD_CONFIG=str(named)).redis == (C,)


def test_a_file_of_another_user_is_refused_unless_it_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lockguard.toml"
    path.write_text(f'redis = "{A}"\n', encoding="utf-8")
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigurationError, match="belongs to another user"):
        read(tmp_path)
    assert read(tmp_path, LOCKGUARD_CONFIG=str(path)).redis == (A,)


BAD = {
    "not TOML": ("redis = ", {}, "is not TOML (at end of document)"),
    "a password that is not quoted": (
        f"redis = redis://:{SECRET}@a",
        {},
        "is not TOML (at line 1",
    ),
    "a number": ("redis = 6379", {}, "redis is an int, which is no URL"),
    "a list of a number": ("redis = [6379]", {}, "redis is a list, which is no URL and no list of URLs"),
    "an empty URL": ('redis = [""]', {}, "no list of URLs"),
    "an empty list": ("redis = []", {}, "redis names no server"),
    "an empty text": ('redis = " "', {}, "redis names no server"),
    "an empty database": ('database = ""', {}, "database is empty"),
    "a table as database": ("[database]\nurl = 1", {}, "database is a dict"),
    "a number as ttl": ("ttl = 10", {}, "ttl is no length of time; write a whole number and its unit"),
    "a ttl without a unit": ("", {"LOCKGUARD_TTL": "10"}, "LOCKGUARD_TTL is no length of time"),
    "an endless ttl": ("", {"LOCKGUARD_TTL": "999999999d"}, "cannot work|too long"),
    "a word as history": ("", {"LOCKGUARD_HISTORY": "all"}, "LOCKGUARD_HISTORY is no whole number"),
    "true as history": ("history = true", {}, "history is no whole number"),
    "a misspelt setting": (
        'reddis = "redis://a"',
        {},
        "'reddis' is no setting of lockguard; did you mean",
    ),
    "an unknown setting": ("zzz = 1", {}, "there are: redis, database"),
    "a file that is not there": ("", {"LOCKGUARD_CONFIG": "/nowhere.toml"}, "/nowhere.toml cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_setting_is_one_line_that_names_it_and_not_its_value(tmp_path: Path, name: str) -> None:
    file, environ, told = BAD[name]
    pattern = "".join(f"[{c}]" if c in "()" else c for c in told)
    with pytest.raises(ConfigurationError, match=pattern) as caught:
        LockGuard.from_url(A, **read(tmp_path, file, **environ).options)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_project_whose_table_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tool\.lockguard is a list; write a table"):
        read(tmp_path, "[[tool.lockguard]]\nredis = 'redis://a'", "pyproject.toml")


def test_from_env_reads_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in [name for name in os.environ if name.startswith("LOCKGUARD_")]:
        monkeypatch.delenv(variable)
    with pytest.raises(ConfigurationError, match="no Redis is named: set LOCKGUARD_REDIS_URL"):
        LockGuard.from_env()
    (tmp_path / "lockguard.toml").write_text(f'redis = "{A}"\nttl = "7s"\n', encoding="utf-8")
    assert repr(LockGuard.from_env()) == "<LockGuard a:6379 ttl=7s without a fence>"
    assert "ttl=3s" in repr(LockGuard.from_env(ttl=timedelta(seconds=3)))
    monkeypatch.setenv("LOCKGUARD_REDIS_URL", f"{A} {B} {C}")
    assert repr(LockGuard.from_env()).startswith("<LockGuard a:6379, b:6379, c:6379 ")
    monkeypatch.setenv("LOCKGUARD_MIN_REPLICAS", "1")
    with pytest.raises(ConfigurationError, match="min_replicas is for one server"):
        LockGuard.from_env()


def test_settings_show_no_password() -> None:
    found = Settings.read(redis=[A], environ={}, directory=Path("/"))
    assert SECRET not in repr(found)


def test_the_namespace_is_lockguard_unless_one_is_given(tmp_path: Path) -> None:
    assert read(tmp_path).namespace == "lockguard"
    assert read(tmp_path, 'namespace = "of-file"').namespace == "of-file"
    assert read(tmp_path, LOCKGUARD_NAMESPACE="of-env").namespace == "of-env"
    given = Settings.read(
        namespace="given", environ={"LOCKGUARD_NAMESPACE": "of-env"}, directory=tmp_path
    ).namespace
    assert given == "given"


def test_a_malformed_namespace_names_its_setting_and_not_its_value(tmp_path: Path) -> None:
    for file, environ, named in (
        (f'namespace = "{A}"', {}, "lockguard.toml: namespace"),
        ("namespace = 7", {}, "lockguard.toml: namespace"),
        ("", {"LOCKGUARD_NAMESPACE": A}, "LOCKGUARD_NAMESPACE"),
    ):
        with pytest.raises(ConfigurationError, match=named) as refused:
            read(tmp_path, file, **environ)
        assert SECRET not in str(refused.value)
        (tmp_path / "lockguard.toml").unlink(missing_ok=True)


def test_addresses_are_mapped_by_a_table_of_the_file_or_by_pairs_in_the_environment(tmp_path: Path) -> None:
    file = '[address_map]\n"10.0.0.5:6379" = "localhost:7001"\n"[fd00::5]:6379" = "[::1]:7002"\n'
    mapped = {("10.0.0.5", 6379): ("localhost", 7001), ("fd00::5", 6379): ("::1", 7002)}
    assert read(tmp_path, file).address_map == mapped
    pairs = "Node-1:6379=localhost:7001  node-2:6379=localhost:7002"
    assert read(tmp_path, file, LOCKGUARD_ADDRESS_MAP=pairs).address_map == {
        ("node-1", 6379): ("localhost", 7001),
        ("node-2", 6379): ("localhost", 7002),
    }


@pytest.mark.parametrize(
    "file",
    [
        'address_map = ["a:1"]',
        "address_map = 7",
        'address_map = "a:1"',
        '[address_map]\n"a:1" = 7',
        '[address_map]\n"a" = "b:1"',
        '[address_map]\n"a:1" = "b:70000"',
        '[address_map]\n"a:1" = "b:2"\n"A:1" = "c:3"',
        '[address_map]\n"a:1" = "b:2,c:3"',
        '[address_map]\n"a:1" = "[::1:2"',
        '[address_map]\n"a:1" = "redis://b:2"',
        f'[address_map]\n"a:1" = "{A}"',
    ],
)
def test_a_malformed_map_of_addresses_names_its_setting_and_not_its_value(tmp_path: Path, file: str) -> None:
    with pytest.raises(ConfigurationError, match=r"lockguard\.toml: address_map") as refused:
        read(tmp_path, file)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("pairs", ["a:1=b:2,c:3=d:4", "a:1=b:2 a:1=c:3", "a:1=b:2;c:3=d:4", "a:1==b:2"])
def test_pairs_that_are_not_apart_by_blanks_or_contradict_each_other_are_refused(
    tmp_path: Path, pairs: str
) -> None:
    with pytest.raises(ConfigurationError, match=r"^LOCKGUARD_ADDRESS_MAP .* apart by blanks$"):
        read(tmp_path, LOCKGUARD_ADDRESS_MAP=pairs)


def test_a_name_is_read_from_the_environment_and_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, LOCKGUARD_NAME=" bot-1 ").options == {"name": "bot-1"}
    assert read(tmp_path, 'name = "bot-2"').options == {"name": "bot-2"}
    with pytest.raises(ConfigurationError, match="name is an int, which is no text; write it in quotes"):
        read(tmp_path, "name = 7")


def test_what_a_command_looks_with_has_the_namespace_and_the_map(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lockguard.toml").write_text('[address_map]\n"a:1" = "b:2"\n')
    (node,) = Servers.read(["redis+cluster://h:1"], None, "bot-a").guard()._core.locks.nodes
    assert isinstance(node, ClusterNode)
    assert node._namespace == "bot-a"
    assert node._map._reached_at("a", 1) == ("b", 2)
