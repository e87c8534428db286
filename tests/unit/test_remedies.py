"""A refused right is told as that, with whose rights are needed, however the server words it."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest

from lockguard import LockGuard
from lockguard._lease import parse_resource
from lockguard._namespace import NAMESPACE
from lockguard._nodes.address import Address
from lockguard._nodes.login import LogIn
from lockguard._nodes.scanning import scan
from lockguard._nodes.scripted import keys_of, not_connected, reason_of
from lockguard._scripts import ACQUIRE, BREAK, EXTEND, HISTORY, INSPECT, RELEASE, Script
from lockguard.errors import ConfigurationError, NodeRefused

KEYS = keys_of(NAMESPACE, parse_resource("apt")).acquire
PAGE = "docs/howto/least-privilege.md"
REFUSALS = (
    "NOPERM User bot has no permissions to run the 'hset' command script: 5f, on @user_script:120.",
    "NOPERM No permissions to access a key",
    "ERR The user executing the script can't run this command or subcommand script: 5f, on @user_script:120.",
    "ERR The user executing the script can't access at least one of the keys, on @user_script:120.",
    "ERR Error running script: @user_script: 120: -NOPERM The user executing the script can't run this",
    "ERR ACL failure in script: User bot has no permissions to run the 'hset' command, on @user_script:120.",
)


@pytest.mark.parametrize("said", REFUSALS)
@pytest.mark.parametrize(
    ("script", "args", "asked", "role"),
    [
        (ACQUIRE, ("g", 1), "acquire", "a bot"),
        (EXTEND, ("g", 1), "extend", "a bot"),
        (RELEASE, ("g",), "release", "a bot"),
        (BREAK, ("force", "x"), "break", "an operator"),
        (BREAK, ("ask", "x"), "ask", "an operator"),
        (INSPECT, (9,), "inspect", "a viewer"),
        (HISTORY, (9,), "history", "a viewer"),
    ],
)
def test_a_refused_right_is_told_with_what_was_asked_and_whose_rights_it_needs(
    said: str, script: Script, args: tuple[str | int, ...], asked: str, role: str
) -> None:
    told = reason_of(script, KEYS, args, hiredis.ReplyError(said))
    assert told.startswith(f"{asked}: ")
    assert said.rstrip(".") in told
    assert told.endswith(f"; give it the rights of {role} in this namespace, see {PAGE}")


@pytest.mark.parametrize("said", ["OOM command not allowed", "ERR the user executing", "BUSY"])
def test_what_is_no_refused_right_has_not_its_remedy(said: str) -> None:
    assert reason_of(ACQUIRE, KEYS, (), hiredis.ReplyError(said)) == f"acquire: {said}"


async def test_a_user_who_may_not_scan_is_told_what_it_lacks() -> None:
    async def ask(*_: Any) -> Any:
        return hiredis.ReplyError("NOPERM User bot has no permissions to run the 'scan' command")

    with pytest.raises(NodeRefused) as refused:
        await anext(scan(ask, name="a:1", namespace=NAMESPACE, prefix=""))
    assert str(refused.value).startswith("a:1: SCAN: ")
    assert str(refused.value).endswith(PAGE)


@pytest.mark.parametrize(
    ("cause", "remedy"),
    [
        ("Connection refused", "; check the URL and that the server runs"),
        ("Redis at a:1 refused the log-in: WRONGPASS; check the user", ""),
    ],
)
def test_a_server_that_is_not_connected_has_one_remedy(cause: str, remedy: str) -> None:
    assert not_connected("a:1", Exception(cause)) == f"Redis at a:1 is not connected ({cause}){remedy}"


@pytest.mark.parametrize("said", ["LOADING Redis is loading the dataset in memory", "BUSY Redis is busy"])
def test_a_server_that_is_not_ready_is_told_without_advice_to_look_at_its_url(said: str) -> None:
    with pytest.raises(NodeRefused) as refused:
        LogIn(Address.parse("redis://a:1"), "lockguard:inbox:1").accept(hiredis.ReplyError(said))
    told = not_connected("a:1", refused.value)
    assert f"is not ready: {said}; lockguard tries again until it is" in told
    assert "check" not in told


@pytest.mark.filterwarnings("error")  # of an even number of servers: there is one
def test_a_blank_in_a_password_that_made_two_urls_of_one_is_told_without_any_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCKGUARD_REDIS_URL", "redis://:hun ter2@localhost")
    with pytest.raises(ConfigurationError) as refused:
        LockGuard.from_env()
    told = str(refused.value)
    assert told.startswith("URL 2 of 2 has no scheme; ")
    assert told.endswith("one in a user or password is written %20")
    assert "hun" not in told
    assert "ter2" not in told
