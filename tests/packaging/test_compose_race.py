"""The race in a container engine, as the header of docker-compose.yml has it; its exit code is the result."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from tests.packaging.composition import CHECKOUT, figures

if TYPE_CHECKING:
    from tests.packaging.composition import Composition

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HEADER = (CHECKOUT / "docker-compose.yml").read_text(encoding="utf-8").partition("\nname:")[0]
LINES = re.findall(r"^#   (\S.*)$", HEADER, re.MULTILINE)
HARM = (
    "duplicates",
    "two rows open at once",
    "unique index violated",
    "entered twice on the exchange",
    "positions turned round",
    "positions without a stop",
    "stops without a position",
    "stale writes committed",
    "errors",
)
SERVERS = {"redis-1", "postgres-1", "race-exchange-1"}


def harm(said: str) -> dict[str, int]:
    """What went wrong, by the race's own table."""
    counted = figures(said)
    assert counted["opens"] > 0, said
    return {what: counted[what] for what in HARM if counted[what]}


def test_the_lines_of_the_header_work_as_printed_and_work_again(compose: Composition) -> None:
    assert [line.split()[0] for line in LINES] == ["docker/passwords", "docker", "docker", "docker"]
    for _ in range(2):
        for line in LINES:
            done = compose.run(*shlex.split(line))
            assert done.returncode == 0, done.stdout
            if "race " in f"{line} " and "build " not in line:
                assert harm(done.stdout) == {}
            if " up " in line:
                assert compose.exit_codes() == dict.fromkeys([*SERVERS, "race-1"], 0)


def test_every_service_is_confined_stops_at_once_and_shows_no_password(compose: Composition) -> None:
    passwords = compose.set_passwords().values()
    compose("up", "--build", "--wait", "redis", "postgres", "race-exchange")
    running = compose.containers(running=True)
    assert running.keys() == SERVERS
    for found in running.values():
        (told,) = json.loads(compose.docker("inspect", found))
        assert_confined(told)
        listed = compose.docker("top", found, "-eo", "pid,uid,args").splitlines()[1:]
        assert all(int(line.split()[1]) > 0 for line in listed), listed
        assert not any(password in line for password in passwords for line in listed)
    # A server that does not hear the signal to stop is killed: 137.
    compose("stop")
    assert compose.exit_codes() == dict.fromkeys(SERVERS, 0)


def assert_confined(told: dict[str, Any]) -> None:
    host = told["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    published = [place["HostIp"] for places in host["PortBindings"].values() for place in places]
    assert set(published) <= {"127.0.0.1"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--scenario B --no-guard --opens 10", 1),
        ("--scenario A --no-guard --opens 5", 1),
        ("--scenario A --opens 10 --expire-leases --ttl-ms 2000", 0),
        ("--scenario B --processes 4 --expire-leases", 0),
    ],
)
def test_the_exit_code_is_the_result(compose: Composition, words: str, code: int) -> None:
    compose.set_passwords()
    compose("build", "--quiet", "race-exchange")
    said = compose("run", "--rm", "race", *words.split(), code=code)
    assert bool(harm(said)) == bool(code), said
    if "--expire-leases" in words:
        assert figures(said)["leases taken away in mid-flow"] > 0


def test_the_race_holds_over_a_quorum_of_five_and_with_two_of_them_gone(compose: Composition) -> None:
    compose.set_passwords()
    compose("build", "--quiet", "race-exchange")
    said = compose("run", "--rm", "quorum-race", "--scenario", "B", "--processes", "4")
    assert harm(said) == {}
    assert len(re.findall(r"quorum-\d:6379/0", said)) == 5
    compose("stop", "quorum-2", "quorum-4")
    said = compose("run", "--rm", "--no-deps", "quorum-race", "--scenario", "B", "--opens", "10")
    assert harm(said) == {}
    compose("stop", "quorum-5")
    said = compose("run", "--rm", "--no-deps", "quorum-race", "--opens", "1", code=1)
    assert "could not be reached" in said


def test_data_keep_the_password_that_they_were_made_with_and_the_race_says_so(compose: Composition) -> None:
    compose.set_passwords()
    compose("build", "--quiet", "race-exchange")
    compose("run", "--rm", "race", "--opens", "1")
    (compose.folder / ".env").unlink()
    compose.set_passwords()
    said = compose("run", "--rm", "race", "--opens", "1", code=2)
    assert "let nobody in: password authentication failed" in said
    # The remedy of docs/howto/compose.md.
    compose("--profile", "*", "down", "--volumes")
    compose("run", "--rm", "race", "--opens", "1")
