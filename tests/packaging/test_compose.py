"""docker-compose.yml: valid, closed to the outside, without default passwords, and naming what exists."""

from __future__ import annotations

import re
import shutil
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
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")


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


PROFILES = {
    "race": {"redis", "postgres", "race-exchange", "race"},
    "bots": {"exchange", "bot"},
    "quorum": {"quorum-1", "quorum-2", "quorum-3", "quorum-4", "quorum-5", "quorum-race"},
    "pooler": {"exchange", "pooler", "pooled-bot"},
    "observe": {"exporter", "prometheus", "grafana"},
}
"""What each profile adds; the race is what comes without one."""

CLIENTS = ("race", "quorum-race", "bot", "pooled-bot")


def test_each_profile_has_the_services_of_its_name():
    found = {}
    for name, service in SERVICES.items():
        for profile in service.get("profiles", ["race"]):
            found.setdefault(profile, set()).add(name)
    assert found == PROFILES


def test_what_a_service_waits_for_is_there_whenever_it_is():
    for name, service in SERVICES.items():
        mine = set(service.get("profiles", ["race"]))
        for other in service.get("depends_on", {}):
            assert "profiles" not in SERVICES[other] or mine <= set(SERVICES[other]["profiles"]), name


def test_the_clients_wait_for_their_servers_and_publish_nothing():
    for client in CLIENTS:
        waited = SERVICES[client]["depends_on"]
        assert "postgres" in waited
        assert {"exchange", "race-exchange"} & set(waited)
        assert {"redis"} <= set(waited) or {f"quorum-{n}" for n in range(1, 6)} <= set(waited)
        assert "ports" not in SERVICES[client]


def test_the_race_and_the_bots_have_exchanges_of_their_own():
    """A race resets its exchange, and with it the positions of bots that were there."""
    for client in CLIENTS:
        (exchange,) = {"exchange", "race-exchange"} & set(SERVICES[client]["depends_on"])
        assert exchange == ("race-exchange" if client.endswith("race") else "exchange")
        urls = [v for k, v in SERVICES[client]["environment"].items() if k.endswith("_EXCHANGE_URL")]
        assert urls == [f"http://{exchange}:8080"]


def test_several_bots_are_started():
    for bot in (SERVICES["bot"], SERVICES["pooled-bot"]):
        assert bot["deploy"]["replicas"] == 2
        assert "container_name" not in bot


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_no_service_needs_root_a_capability_or_a_file_system_to_write_to(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    ours = {f"lockguard-{image}" for image in ("local", "pgbouncer", "exporter")}
    assert service["image"] in ours or service["user"] not in {"root", "0"}


def test_no_image_of_ours_ends_as_root():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert len(stages) == 3
    for stage in stages:
        assert re.findall(r"^USER (\w+)", stage, re.MULTILINE)[-1] != "root"


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_the_first_process_is_the_service_itself(name):
    """A shell as the first process hears no signal to stop, and its service is killed after ten seconds."""
    service = SERVICES[name]
    words = [*service.get("entrypoint", ()), *service.get("command", ())]
    if "sh" in words:
        assert any(re.search(r"(^|&& )exec ", word) for word in words)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_are_pinned_or_built_here(name):
    service = SERVICES[name]
    if "build" in service:
        return
    if service["image"] == "lockguard-local":
        assert service["pull_policy"] == "never"
    else:
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", service["image"])


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
    assert {name for name in mounted if not name.startswith("./")} == set(COMPOSE["volumes"])


def test_files_of_the_checkout_are_there_and_are_only_read():
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    files = [mount.split(":") for mount in mounts if mount.startswith("./")]
    assert len(files) >= 4
    for name, _, mode in files:
        assert (ROOT / name).is_file()
        assert mode == "ro"


def test_prometheus_scrapes_the_exporter_and_reads_its_rules():
    config = YAML(typ="safe").load((ROOT / "docker/observe/prometheus.yml").read_text(encoding="utf-8"))
    mounted = [mount.split(":")[1] for mount in SERVICES["prometheus"]["volumes"]]
    assert set(config["rule_files"]) <= set(mounted)
    (job,) = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["exporter:9465"]}]
    assert SERVICES["exporter"]["command"] == ["exporter", "--listen", "0.0.0.0:9465"]


def test_grafana_asks_prometheus_and_finds_its_dashboard():
    read = YAML(typ="safe").load
    observe = ROOT / "docker/observe"
    (source,) = read((observe / "grafana-datasource.yml").read_text(encoding="utf-8"))["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    (provider,) = read((observe / "grafana-dashboards.yml").read_text(encoding="utf-8"))["providers"]
    mounted = [mount.split(":")[1] for mount in SERVICES["grafana"]["volumes"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in mounted
    assert home.startswith(f"{provider['options']['path']}/")


def test_what_is_waited_for_says_when_it_is_healthy():
    for service in SERVICES.values():
        for name, waited in service.get("depends_on", {}).items():
            assert waited["condition"] == "service_healthy"
            assert "healthcheck" in SERVICES[name]


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
    for name in ("race", "quorum-race"):
        assert "exec lockguard race $${*:-$$LOCKGUARD_RACE_OPTIONS}" in SERVICES[name]["entrypoint"]
    options = re.search(r"LOCKGUARD_RACE_OPTIONS:-([^}]*)\}", TEXT)[1].split()
    with race.make_context("race", options):
        pass
    for name in ("bot", "pooled-bot"):
        assert SERVICES[name]["entrypoint"][-1].split(" && ") == [
            "trap exit TERM",
            "lockguard fence install",
            "lockguard positions migrate",
            "exec lockguard bot run $$LOCKGUARD_BOT_OPTIONS",
        ]
    assert {"install"} <= set(fence.commands)
    assert {"migrate"} <= set(positions.commands)
    options = {option.envvar for option in bot.commands["run"].params if isinstance(option, click.Option)}
    of_no_option = {"LOCKGUARD_EXCHANGE_API_KEY", "LOCKGUARD_EXCHANGE_SECRET", "LOCKGUARD_BOT_OPTIONS"}
    assert set(SERVICES["bot"]["environment"]) <= options | of_no_option
    help_text = CliRunner().invoke(race, ["--help"]).output
    assert "--no-guard" in help_text


def test_the_image_installs_what_is_pinned_by_hash():
    assert "--require-hashes" in DOCKERFILE
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+)", DOCKERFILE, re.MULTILINE)
    code = {"pyproject.toml", "lockguard", "integrations", "lab"}
    pinned = {"requirements/demo.txt", "requirements/dev.txt"}
    assert set(copied) == {*pinned, *code, "docker/pgbouncer"}


def test_no_secret_gets_into_an_image():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {".env", ".git"} <= set(ignored)
    assert ".env" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_passwords_are_written_once_and_are_the_owners_alone(tmp_path):
    script = tmp_path / "docker/passwords"
    script.parent.mkdir()
    shutil.copy2(ROOT / "docker/passwords", script)

    def written():
        done = subprocess.run(script, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")
        return dict(line.split("=") for line in file.read_text(encoding="utf-8").split())

    file = tmp_path / ".env"
    file.write_text("LOCKGUARD_REDIS_PASSWORD=mine", encoding="utf-8")  # without a line's end
    file.chmod(0o644)
    first = written()
    assert first.pop("LOCKGUARD_REDIS_PASSWORD") == "mine"
    assert first.keys() == {"LOCKGUARD_POSTGRES_PASSWORD", "LOCKGUARD_GRAFANA_PASSWORD"}
    assert all(re.fullmatch("[0-9a-f]{32}", password) for password in first.values())
    assert len(set(first.values())) == 2
    assert file.stat().st_mode & 0o777 == 0o600
    assert written() == {"LOCKGUARD_REDIS_PASSWORD": "mine", **first}


def test_every_password_that_is_asked_for_is_written():
    script = (ROOT / "docker/passwords").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(LOCKGUARD_\w*PASSWORD)", TEXT)) <= set(
        re.findall(r"LOCKGUARD_\w*PASSWORD", script)
    )
