"""What the doctor knows without a server: its codes, the commands that scripts need, and its arithmetic."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from lockguard._scripts import HISTORY, SCRIPTS
from lockguard_ops._doctor._codes import CODES
from lockguard_ops._doctor._exchange import _permissions
from lockguard_ops._doctor._findings import Report, Severity
from lockguard_ops._doctor._redis import check_server
from lockguard_ops._doctor._rights import REQUIRED, TRIED, _rule
from lockguard_ops._doctor._show import lines
from lockguard_ops._doctor._timing import Sample, Timing, tell_clocks, tell_latency

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/doctor.md").read_text(encoding="utf-8")
HERE = ROOT / "integrations/lockguard_ops/_doctor"
TTL = timedelta(seconds=10)


def test_the_page_has_every_code_and_no_other() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    assert {code: (subject, why) for code, subject, why in rows} == {
        code: (known.subject, known.why) for code, known in CODES.items()
    }


def test_every_code_is_used_and_every_used_code_is_known() -> None:
    source = "".join(
        path.read_text(encoding="utf-8") for path in HERE.glob("*.py") if path.name != "_codes.py"
    )
    used = set(
        re.findall(
            r'"((?:redis|replicas|sentinel|cluster|quorum|postgres|exchange|positions|clock)\.[a-z_]+)"',
            source,
        )
    )
    assert used | {"latency"} == set(CODES)
    assert all(known.why.endswith(".") for known in CODES.values())


def test_each_command_of_the_scripts_is_tried() -> None:
    source = "".join(script.source for script in SCRIPTS if script is not HISTORY)  # an operator's
    called = set(re.findall(r"call\('([A-Z]+)'", source))
    assert len(called) > 15
    assert called <= set(TRIED)
    needed = set(re.findall(r"(?:redis\.call|[^p.]call)\('([A-Z]+)'", source))
    assert needed <= REQUIRED


@pytest.mark.parametrize(
    ("told", "rule"),
    [
        ("NOPERM User bot has no permissions to run the 'zrank' command", "+zrank"),
        ("NOPERM this user has no permissions to run the 'zrank' command or its subcommand", "+zrank"),
        ("NOPERM No permissions to access a key", "~lockguard:*"),
        ("NOPERM this user has no permissions to access one of the keys used as arguments", "~lockguard:*"),
        ("NOPERM No permissions to access a channel", "&lockguard:inbox:*"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", None),
        ("READONLY You can't write against a read only replica.", None),
    ],
)
def test_a_refusal_names_its_rule(told: str, rule: str | None) -> None:
    assert _rule("zrank", RuntimeError(told)) == rule
    assert _rule("zrank", b"OK") is None


# --- clocks and round trips ---


def timing(trips: Sequence[float], *, ahead: float = 0.0, drift: float = 0.0, server: str = "S") -> Timing:
    """Readings a tenth of a second apart."""
    return Timing(
        server,
        tuple(
            Sample(at=n / 10, trip=trip, ahead=ahead + drift * n / 10, since=1e9 + ahead + drift * n / 10)
            for n, trip in enumerate(trips)
        ),
    )


def severities(report: Report) -> dict[str, Severity]:
    return {one.code: one.severity for one in report.findings}


@pytest.mark.parametrize(
    ("trips", "severity"),
    [
        ([0.001] * 5, Severity.OK),
        ([0.001, 0.001, 3.4], Severity.WARNING),  # once a third of the ttl
        ([1.1] * 3, Severity.WARNING),  # usually a tenth
        ([3.4] * 3, Severity.ERROR),
    ],
)
def test_round_trips_are_compared_with_the_ttl(trips: list[float], severity: Severity) -> None:
    report = Report()
    tell_latency(timing(trips), TTL, report)
    assert severities(report) == {"latency": severity}


@pytest.mark.parametrize("ahead", [-3600.0, -1.2, 1.2, 3600.0])
def test_a_clock_that_is_off_is_compared_with_all_others(ahead: float) -> None:
    report = Report()
    tell_clocks([timing([0.001], ahead=ahead, server="A"), timing([0.001], server="B")], report)
    first, second = report.findings
    assert (first.severity, second.severity) == (Severity.WARNING, Severity.OK)
    assert "B's" in first.found
    assert ("ahead of" if ahead > 0 else "behind") in first.found


def test_a_slow_link_is_no_clock_that_is_off() -> None:
    report = Report()
    tell_clocks([timing([4.0], ahead=1.9)], report)
    assert severities(report) == {"clock.offset": Severity.OK}


@pytest.mark.parametrize(
    ("drift", "trip", "found"),
    [(0.005, 0.001, False), (0.02, 0.001, True), (-0.02, 0.001, True), (0.02, 0.5, False)],
)
def test_a_drift_beyond_the_allowance_is_told_where_it_is_certain(
    drift: float, trip: float, found: bool
) -> None:
    report = Report()
    tell_clocks([timing([trip] * 30, drift=drift)], report)
    assert ("clock.drift" in severities(report)) == found


def test_a_clock_that_is_set_while_it_is_watched_is_told() -> None:
    before, after = timing([0.001] * 3), timing([0.001] * 30, ahead=-0.5)
    report = Report()
    tell_clocks([Timing("S", (*before.samples, *after.samples))], report)
    assert ["it was set by -500.0 ms" in one.found for one in report.findings] == [False, True]


# --- what an exchange tells of a key ---


class _Bybit:
    id = "bybit"

    def __init__(self, **told: object) -> None:
        self._told = told

    async def private_get_v5_user_query_api(self) -> dict[str, object]:
        return {"result": self._told}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({"readOnly": 0, "permissions": {"ContractTrade": ["Order"], "Wallet": []}}, (True, False, False)),
        ({"readOnly": 1, "permissions": {"ContractTrade": ["Order"]}, "ips": ["*"]}, (False, False, True)),
        ({"readOnly": 0, "permissions": {"Wallet": ["Withdraw"]}}, (False, True, False)),
    ],
)
async def test_what_bybit_tells_of_a_key(told: dict[str, object], found: tuple[bool, bool, bool]) -> None:
    assert await _permissions(_Bybit(**told)) == found


# --- one server, as INFO tells it ---


class _Link:
    protocol = 3


def seen(url: str = "redis://127.0.0.1", **info: str) -> Report:
    from lockguard._nodes.address import Address
    from lockguard_ops._doctor._places import Part, Place, Seen

    place = Place(Address.parse(url), Part.ALONE)
    sound = {"redis_version": "7.0.0", "redis_mode": "standalone", "role": "master", "aof_enabled": "1"}
    report = Report()
    check_server(Seen(place, _Link(), {**sound, **info}, {"save": ""}), TTL, report)  # type: ignore[arg-type]
    return report


@pytest.mark.parametrize(
    ("info", "code"),
    [
        ({"redis_version": "6.0.16"}, "redis.version"),
        ({"aof_last_write_status": "err"}, "redis.writes"),
        ({"rdb_last_bgsave_status": "err"}, "redis.writes"),
        ({"loading": "1"}, "redis.writes"),
    ],
)
def test_what_info_tells_is_judged(info: dict[str, str], code: str) -> None:
    assert [one.code for one in seen(**info).findings if one.severity is Severity.ERROR] == [code]
    assert [one for one in seen().findings if one.severity is not Severity.OK] == []


def test_a_replica_that_has_lost_its_master_is_told() -> None:
    from lockguard._nodes.address import Address
    from lockguard_ops._doctor._places import Part, Place, Seen
    from lockguard_ops._doctor._together import check_replicas

    def told(status: str) -> list[str]:
        place, report = Place(Address.parse("redis://127.0.0.1"), Part.REPLICA), Report()
        info = {"role": "slave", "master_link_status": status, "master_host": "db1", "master_port": "6379"}
        check_replicas([Seen(place, _Link(), info)], 0, report)  # type: ignore[arg-type]
        return [one.found for one in report.findings]

    assert told("down") == ["its link to db1:6379 is down"]
    assert told("up") == []


def test_a_line_to_another_machine_without_tls_is_a_note() -> None:
    def notes(url: str) -> list[str]:
        return [one.code for one in seen(url).findings if one.severity is not Severity.OK]

    assert notes("redis://10.0.0.1") == ["redis.tls"]
    assert notes("rediss://10.0.0.1") == []
    assert notes("redis://localhost") == []


def test_a_report_is_grouped_by_server_with_the_worst_first() -> None:
    report = Report()
    report.add("redis.version", Severity.OK, "A", "fine")
    report.add("latency", Severity.WARNING, "B", "x" * 200, "redis-cli " + "y" * 100)
    report.add("redis.memory", Severity.ERROR, "A", "full\x1b[31m\nnext", "redis-cli PING")
    told = list(lines(report))
    assert told[0] == "A"
    assert told[1].startswith("  error    memory: full\\x1b[31m\\nnext [redis.memory]")
    assert "           redis-cli " + "y" * 100 in told
    assert told[-1] == "1 error, 1 warning, 0 notes, 1 ok"
