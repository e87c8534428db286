"""docker-compose.yml: valid, closed to the outside, without default passwords, and naming what exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from lockguard._cli import main as _main  # noqa: F401 - the console script that the image starts

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
COMPOSE = YAML(typ="safe").load(TEXT)
SERVICES = COMPOSE["services"]


def test_it_is_valid_by_the_compose_specification():
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_misspelt_key_would_be_seen(tmp_path):
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text(TEXT.replace("healthcheck:", "healthchek:", 1), encoding="utf-8")
    checker = Path(sys.executable).with_name("check-jsonschema")
    command = [checker, "--builtin-schema", "vendor.compose-spec", wrong]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_it_has_the_servers_the_exchange_and_the_runner():
    assert set(SERVICES) == {"redis", "postgres", "exchange", "race", "bot"}
    for client in ("race", "bot"):
        assert set(SERVICES[client]["depends_on"]) == {"redis", "postgres", "exchange"}
        assert "ports" not in SERVICES[client]


def test_bots_are_started_only_when_they_are_asked_for_and_several_at_once():
    bot = SERVICES["bot"]
    assert bot["profiles"] == ["bots"]
    assert bot["deploy"]["replicas"] == 2
    assert "container_name" not in bot


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_published_ports_are_on_loopback_only(name):
    for port in SERVICES[name].get("ports", []):
        assert re.match(r"127\.0\.0\.1:\$\{LOCKGUARD_\w+_PORT:-\d+\}:\d+$", port)


def test_every_password_must_be_set_and_none_is_written_down():
    for name in re.findall(r"\$\{(LOCKGUARD_\w*PASSWORD)([^}]*)\}", TEXT):
        assert name[1].startswith(":?"), name
    assert re.findall(r"(?i)password: (?!\$\{LOCKGUARD_)", TEXT) == []


def test_data_are_in_named_volumes():
    mounted = {mount.split(":")[0] for s in SERVICES.values() for mount in s.get("volumes", [])}
    assert mounted == set(COMPOSE["volumes"])


def test_every_server_has_a_health_check():
    assert all("healthcheck" in SERVICES[name] for name in ("redis", "postgres", "exchange"))


def test_the_commands_that_it_starts_exist():
    from lockguard_asyncpg._cli import fence
    from lockguard_bot._cli import bot
    from lockguard_lab.exchange.cli import exchange
    from lockguard_lab.race.cli import race
    from lockguard_positions._cli import positions

    _, *arguments = SERVICES["exchange"]["command"]
    with exchange.make_context("exchange", arguments, resilient_parsing=True):
        pass
    assert {"--host", "--port"} <= set(arguments)
    assert "exec lockguard race" in SERVICES["race"]["command"][0]
    options = re.search(r"LOCKGUARD_RACE_OPTIONS:-([^}]*)\}", TEXT)[1].split()
    with race.make_context("race", options):
        pass
    (steps,) = SERVICES["bot"]["command"]
    assert steps.split(" && ") == [
        "lockguard fence install",
        "lockguard positions migrate",
        "exec lockguard bot run",
    ]
    assert {"install"} <= set(fence.commands)
    assert {"migrate"} <= set(positions.commands)
    options = {option.envvar for option in bot.commands["run"].params if isinstance(option, click.Option)}
    credentials = {"LOCKGUARD_EXCHANGE_API_KEY", "LOCKGUARD_EXCHANGE_SECRET"}  # of no option, on purpose
    assert set(SERVICES["bot"]["environment"]) <= options | credentials
    help_text = CliRunner().invoke(race, ["--help"]).output
    assert "--no-guard" in help_text


def test_the_image_installs_what_is_pinned_by_hash():
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    assert "--require-hashes" in dockerfile
    assert (
        re.findall(r"^COPY (?!requirements|pyproject|lockguard|integrations|lab )", dockerfile, re.MULTILINE)
        == []
    )
