"""What is said to a server first, and which servers keep no locks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hiredis
import pytest

from lockguard._nodes.address import Address
from lockguard._nodes.login import Identity, LogIn, ServerFacts, require
from lockguard._nodes.wire import Cut
from lockguard.errors import ConfigurationError, NodeRefused

PASSWORD = "correct-horse"
TO = Address.parse(f"redis://bot:{PASSWORD}@a:6379/0")


class Wire:
    """Answers each command with what a test says, else with OK."""

    def __init__(self, **answers: Any) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self._answers = answers

    def send(self, take: Callable[[Any], None], *command: Any) -> None:
        self.sent.append(command)
        take(self._answers.get(str(command[0]), b"OK"))


def over(wire: Wire) -> Any:
    return wire


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("LOADING Redis is loading the dataset in memory", NodeRefused),
        ("MASTERDOWN Link with MASTER is down", NodeRefused),
        ("ERR max number of clients reached", NodeRefused),
        ("WRONGPASS invalid username-password pair", ConfigurationError),
        ("NOPERM this user has no permissions", ConfigurationError),
    ],
)
def test_a_server_that_is_not_ready_may_be_later_and_one_that_refuses_has_to_be_set_up(
    said: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        LogIn(TO, "lockguard:inbox:1").accept(hiredis.ReplyError(said))
    LogIn(TO, "lockguard:inbox:1").accept(b"OK")


def test_credentials_that_are_fetched_anew_may_be_right_the_next_time() -> None:
    async def fetched() -> Any: ...

    with pytest.raises(NodeRefused):
        LogIn(replace(TO, credentials=fetched), "").accept(hiredis.ReplyError("WRONGPASS x"))


def test_a_password_that_a_server_quotes_is_not_told() -> None:
    quoting = hiredis.ReplyError(f"ERR unknown command 'AUTH', with args: 'bot' '{PASSWORD}'")
    with pytest.raises(ConfigurationError) as caught:
        LogIn(TO, "").accept(quoting)
    assert PASSWORD not in str(caught.value)


async def test_a_server_that_knows_no_hello_is_asked_in_the_older_protocol() -> None:
    wire = Wire(HELLO=hiredis.ReplyError("NOPROTO unsupported protocol version"))
    assert await LogIn(replace(TO, protocol=3), "").authenticate(over(wire)) == 2
    assert ("AUTH", "bot", PASSWORD) in wire.sent
    assert await LogIn(replace(TO, protocol=3), "").authenticate(over(Wire())) == 3


async def test_a_database_that_the_server_refuses_is_no_log_in() -> None:
    wire = Wire(SELECT=hiredis.ReplyError("ERR DB index is out of range"))
    with pytest.raises(ConfigurationError):
        await LogIn(replace(TO, db=99), "").authenticate(over(wire))


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("ERR max number of clients reached", NodeRefused),
        ("LOADING Redis is loading the dataset in memory", NodeRefused),
        ("WRONGPASS invalid username-password pair", ConfigurationError),
        ("NOAUTH Authentication required", ConfigurationError),
    ],
)
async def test_a_refusal_is_told_though_the_server_closes_before_it_has_answered_the_rest(
    protocol: int, said: str, error: type[Exception]
) -> None:
    cut = Cut("the server closed the connection")
    refused = hiredis.ReplyError(said)
    wire = Wire(HELLO=refused, AUTH=refused, CLIENT=cut, SELECT=cut)
    with pytest.raises(error, match=said):
        await LogIn(replace(TO, protocol=protocol, db=1), "").authenticate(over(wire))
    wire = Wire(SELECT=cut)
    with pytest.raises(ConnectionError, match="the server closed the connection"):
        await LogIn(replace(TO, protocol=protocol, db=1), "").authenticate(over(wire))


def test_the_connection_of_before_is_killed_by_its_id_and_its_address_before_anything_else() -> None:
    wire, known = Wire(CLIENT=b"id=8 addr=1.2.3.4:5 laddr=x"), list[Identity | None]()
    LogIn(TO, "").kill(over(wire), Identity("7", "1.2.3.4:4"))
    LogIn(TO, "").identify(over(wire), known.append)
    assert wire.sent[0] == ("CLIENT", "KILL", "ID", "7", "ADDR", "1.2.3.4:4")
    assert known[-1] == Identity("8", "1.2.3.4:5")
    forbidden = Wire(CLIENT=hiredis.ReplyError("NOPERM"))
    LogIn(TO, "").identify(over(forbidden), known.append)
    assert forbidden.sent == [("CLIENT", "INFO")]
    assert known[-1] is None
    busy = Wire(CLIENT=hiredis.ReplyError("BUSY Redis is busy running a script"))
    LogIn(TO, "").identify(over(busy), known.append)
    assert len(known) == 2  # the connection of before still has to be killed


@pytest.mark.parametrize(
    ("facts", "mode", "error"),
    [
        (ServerFacts(mode="cluster"), "standalone", ConfigurationError),
        (ServerFacts(mode="standalone"), "cluster", ConfigurationError),
        (ServerFacts(version="6.0.9"), "standalone", ConfigurationError),
        (ServerFacts(role="slave", master="b:1"), "standalone", NodeRefused),
        (ServerFacts(loading=True), "standalone", NodeRefused),
        (ServerFacts(version="10.1.0", role="master", mode="standalone"), "standalone", None),
        (ServerFacts(version="7.2.4", role="slave", mode="cluster"), "cluster", None),
        (ServerFacts(), "standalone", None),
    ],
)
def test_a_server_that_cannot_keep_locks_is_refused(
    facts: ServerFacts, mode: str, error: type[Exception] | None
) -> None:
    if error is None:
        require(facts, name="a", mode=mode)
    else:
        with pytest.raises(error):
            require(facts, name="a", mode=mode)
