"""The judge of recorded chaos, on small records that each break one law, and the command that reads them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lockguard._cli import app
from lockguard._cli.mistake import Mistake
from lockguard._clock import SystemClock
from lockguard_lab.chaos import ChaosPlan, RoundReport, series
from lockguard_lab.chaos.cli import own_directory
from lockguard_lab.chaos.judged import read_round
from lockguard_lab.chaos.plan import TOPOLOGIES, planned
from lockguard_lab.chaos.recording import History, Recorder
from lockguard_lab.chaos.running import to_the_end
from lockguard_lab.chaos.selfcheck import DOUBLE_GRANT, PAST_THE_FENCE, STALE_WRITE, self_check
from lockguard_lab.chaos.spans import covered_s, without
from lockguard_lab.chaos.verdict import judge_round
from lockguard_lab.fence_race.planted import WEAK_CHECKS

Line = dict[str, Any]


class Record:
    """A round's record as it is written; each call appends to the file of a process."""

    def __init__(self, directory: Path, topology: str = "single") -> None:
        self.directory = directory
        self._numbers = iter(range(1, 10_000))
        self.rows: dict[str, list[Line]] = {"ledger": [], "entries": [], "bypasses": []}
        plan = asdict(ChaosPlan(ways=(), topology=topology)) | {"length": 20.0, "ttl": 1.0, "processes": 0}
        (directory / "round.json").write_text(json.dumps(plan))
        (directory / "conductor.jsonl").touch()

    def line(self, process: str, at: float, **facts: Any) -> None:
        with (self.directory / f"{process}.jsonl").open("a") as file:
            file.write(json.dumps({**facts, "t": at}) + "\n")

    def call(
        self,
        process: str,
        call: str,
        begin: float,
        end: float | None = None,
        how: str = "ok",
        *,
        resource: str = "r",
        answered: Line | None = None,
        **facts: Any,
    ) -> int:
        number = next(self._numbers)
        self.line(process, begin, begin=number, call=call, resource=resource, pid=1, **facts)
        if end is not None:
            self.line(process, end, end=number, how=how, **(answered or {}))
        return number

    def grant(
        self,
        process: str,
        token: int,
        begin: float,
        end: float,
        *,
        deadline: float = 1e9,
        released: float | None = None,
        wait: float = 5,
        sealed_ms: float = 0,
    ) -> str:
        grant = f"grant-{token}"
        answered = {"token": token, "grant": grant, "deadline": deadline, "sealed_ms": sealed_ms}
        self.call(process, "acquire", begin, end, answered=answered, wait=wait, travels=False)
        if released is not None:
            shut = {"shut": True, "lazy": False}
            self.call(process, "release", released, released + 0.01, answered=shut, grant=grant, token=token)
        return grant

    def write(self, process: str, token: int, begin: float, end: float) -> None:
        number = self.call(process, "write", begin, end, "committed", token=token, way="w")
        n = len(self.rows["ledger"]) + 1
        self.rows["ledger"].append({"resource": "r", "n": n, "token": token, "op": number, "at": begin})

    def fault(self, kind: str, begin: float, end: float, target: str = "") -> None:
        number = next(self._numbers)
        self.line("conductor", begin, fault=number, kind=kind, target=target)
        self.line("conductor", end, healed=number)

    def judge(self) -> RoundReport:
        (self.directory / "tables.json").write_text(json.dumps(self.rows))
        report = RoundReport()
        judge_round(self.directory, report)
        return report


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path)


def test_leases_one_after_the_other_are_sound(record: Record) -> None:
    record.grant("process-1", 1, 0, 0.1, released=1)
    record.write("process-1", 1, 0.2, 0.3)
    record.grant("process-2", 2, 0.5, 1.1, released=2)
    record.write("process-2", 2, 1.2, 1.3)
    report = record.judge()
    assert report.violations == 0, report.told
    assert report.recovery_s["released lock: granted to a waiter"] == [pytest.approx(0.09)]
    assert report.calls == {"acquire ok": 2, "release ok": 2, "write committed": 2}


def test_two_holders_at_once_are_convicted_though_the_rows_are_sound(record: Record) -> None:
    record.grant("process-1", 1, 0, 0.1, released=3)
    record.grant("process-2", 2, 0.5, 1.1, released=2)
    assert record.judge().broken == {"linearizability of the lock": 1}


def test_a_lease_that_is_granted_before_the_last_one_s_deadline_is_convicted(record: Record) -> None:
    record.grant("process-1", 1, 0, 0.1, deadline=1.1)
    record.grant("process-2", 2, 0.2, 1.0, released=2)
    assert record.judge().broken == {"linearizability of the lock": 1}


def test_a_renewed_lease_is_believed_until_its_last_deadline(record: Record) -> None:
    grant = record.grant("process-1", 1, 0, 0.1, deadline=1.1)
    record.line("process-1", 0.5, renewed=grant, deadline=1.5)
    record.grant("process-2", 2, 0.2, 1.3, released=2)
    assert record.judge().broken == {"linearizability of the lock": 1}


def test_a_lease_may_follow_one_that_was_lost_before_its_deadline(record: Record) -> None:
    grant = record.grant("process-1", 1, 0, 0.1, deadline=1.1)
    record.line("process-1", 0.5, lost=grant, reason="refused")
    record.grant("process-2", 2, 0.2, 0.7, released=2)
    assert record.judge().violations == 0


@pytest.mark.parametrize(
    ("topology", "kind", "convicted"),
    [
        ("single", "server flushed", 0),
        ("single", "server restarted empty", 0),
        ("single", "server restarted with old data", 0),
        ("single", "server restarted with its data", 1),
        ("single", "server stopped", 1),
        ("quorum-3", "server flushed", 1),
        ("quorum-5", "server restarted empty", 1),
        ("quorum-5", "server restarted with old data", 1),
        ("sentinel", "failover ordered", 0),
        ("cluster", "master killed", 0),
        ("cluster", "link cut", 1),
    ],
)
def test_only_what_the_guarantees_name_excuses_two_holders(
    tmp_path: Path, topology: str, kind: str, convicted: int
) -> None:
    record = Record(tmp_path, topology)
    record.grant("process-1", 1, 0, 0.1, deadline=1.1, released=None)
    record.fault(kind, 0.3, 0.4, "process-1" if kind.startswith("link") else "")
    record.grant("process-2", 2, 0.2, 0.6, released=2)
    assert record.judge().broken["linearizability of the lock"] == convicted


@pytest.mark.parametrize("kind", ["server flushed", "failover ordered", "master killed"])
def test_nothing_excuses_a_stale_write(tmp_path: Path, kind: str) -> None:
    record = Record(tmp_path, "sentinel")
    record.grant("process-1", 1, 0, 0.1, deadline=1.1)
    record.fault(kind, 0.3, 0.4)
    record.grant("process-2", 2, 0.2, 0.6, released=2)
    record.write("process-1", 1, 0.7, 0.8)
    assert record.judge().broken["linearizability of the fence"] == 1


def test_a_write_after_its_own_close_is_convicted(record: Record) -> None:
    record.grant("process-1", 1, 0, 0.1, released=1)
    record.write("process-1", 1, 1.5, 1.6)
    assert record.judge().broken == {"linearizability of the fence": 1}


def test_a_row_of_a_process_that_was_killed_before_its_answer_counts_as_written(record: Record) -> None:
    record.grant("process-1", 1, 0, 0.1, deadline=1.1)
    number = record.call("process-1", "write", 0.9, token=1, way="w")
    record.grant("process-2", 2, 0.5, 0.6, released=2)
    row = {"resource": "r", "n": 1, "token": 1, "op": number, "at": 0.9}
    report = record.judge()
    assert "linearizability of the fence" not in report.broken
    record.rows["ledger"].append(row)
    assert record.judge().broken["linearizability of the fence"] == 1


def test_a_waiter_that_sleeps_beside_a_free_lock_is_convicted(record: Record) -> None:
    record.grant("process-1", 1, 0, 0.1, released=1)
    record.grant("process-2", 2, 0.5, 2.5, released=3)
    report = record.judge()
    assert report.broken == {"a waiter beside a free lock": 1, "L4, released lock: granted to a waiter": 1}
    assert "1.490 s" in report.told[0]


def test_so_is_one_that_gives_up_beside_it(record: Record) -> None:
    record.grant("process-1", 1, 0, 0.1, released=1)
    record.call("process-2", "acquire", 0.5, 3.5, "busy", wait=3, travels=False)
    assert record.judge().broken == {"a waiter beside a free lock": 1}


@pytest.mark.parametrize(
    "excuse",
    [
        "the machine did not run it",
        "its server was down",
        "its link was cut",
        "it was stopped",
        "it was sealing",
    ],
)
def test_a_waiter_is_not_late_for_what_kept_it_from_asking(record: Record, excuse: str) -> None:
    record.grant("process-1", 1, 0, 0.1, released=1)
    sealed_ms = 1_000 if excuse == "it was sealing" else 0
    record.grant("process-2", 2, 0.5, 2.5, released=3, sealed_ms=sealed_ms)
    match excuse:
        case "the machine did not run it":
            record.line("process-2", 2.3, stalled=1.0)
        case "its server was down":
            record.fault("server stopped", 0.9, 1.5)
        case "its link was cut":
            record.fault("link cut", 0.9, 1.5, "process-2")
        case "it was stopped":
            record.fault("process stopped", 0.9, 2.3, "process-2")
    assert record.judge().violations == 0


@pytest.mark.parametrize(("granted", "late"), [(2.2, 0), (2.3, 1)])
def test_the_lock_of_a_killed_holder_is_granted_within_its_ttl_and_a_quarter_second(
    record: Record, granted: float, late: int
) -> None:
    record.grant("process-1", 1, 0, 0.1, deadline=1.9)
    record.fault("process killed", 1.0, 1.5, "process-1")
    record.grant("process-2", 2, 0.5, granted, released=3)
    report = record.judge()
    assert report.broken["L1, killed holder: granted to a waiter"] == late
    assert len(report.recovery_s["killed holder: granted to a waiter"]) == 1


def test_a_holder_that_goes_on_to_believe_in_what_is_gone_is_convicted(record: Record) -> None:
    grant = record.grant("process-1", 1, 0, 0.1, deadline=99)
    record.fault("server flushed", 1.0, 1.1)
    record.line("process-1", 3.0, lost=grant, reason="refused")
    assert record.judge().broken == {"L4, data gone: the holder knows": 1}


def test_the_judge_convicts_what_is_put_into_a_sound_record_and_what_went_past_the_fence(
    record: Record,
) -> None:
    for token in range(1, 6):
        record.grant(f"process-{token % 2}", token, token - 0.5, token, released=token + 0.8)
        record.write(f"process-{token % 2}", token, token + 0.2, token + 0.3)
    number = record.call("process-1", "bypass", 4.2, 4.3, "committed", token=2)
    record.rows["bypasses"].append({"resource": "r", "token": 2, "op": number})
    assert record.judge().violations == 0
    found = self_check(read_round(record.directory))
    assert found == {STALE_WRITE: [True] * 3, DOUBLE_GRANT: [True] * 3, PAST_THE_FENCE: [True]}


def test_a_judge_that_accepts_everything_is_found_out(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.grant("process-1", 1, 0, 0.1, released=1)
    record.grant("process-2", 2, 0.5, 1.1, released=2)
    record.judge()
    monkeypatch.setattr("lockguard_lab.chaos.models.Fence.step", lambda _, state, __: state)
    monkeypatch.setattr("lockguard_lab.chaos.models.FencedMutex.step", lambda _, state, __: state)
    found = self_check(read_round(record.directory))
    assert not any([*found[STALE_WRITE], *found[DOUBLE_GRANT]])


# The record itself.


def test_each_line_is_written_at_once_and_one_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "process-1.jsonl"
    recorder = Recorder(str(path), 1)
    number = recorder.begin("acquire", "r", wait=1)
    assert json.loads(path.read_text())["begin"] == number
    recorder.end(number, "ok", grant="g")
    path.write_bytes(path.read_bytes() + b'{"begin": 1, "call": "acq')
    recorder.close()
    history = History.read([path])
    (call,) = history.calls.values()
    assert (call.how, call.facts["grant"], call.process) == ("ok", "g", "process-1")
    assert call.begin <= call.end < math.inf


def test_a_restarted_process_does_not_go_on_in_the_line_that_its_kill_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "process-1.jsonl"
    path.write_bytes(b'{"begin": 1, "call": "acq')
    recorder = Recorder(str(path), 1)
    number = recorder.begin("acquire", "r", wait=1)
    recorder.close()
    assert [*History.read([path]).calls] == [number]


def test_a_restarted_process_begins_with_numbers_that_were_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = []
    for started, process in enumerate((1, 1, 2)):
        monkeypatch.setattr(SystemClock, "wall", lambda _, at=started: 1_800_000_000 + 0.1 * at)
        recorder = Recorder(str(tmp_path / f"{process}.jsonl"), process)
        numbers += [recorder.begin("acquire", "r") for _ in range(3)]
        recorder.close()
    assert len({*numbers}) == 9


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_the_same_seed_plans_the_same_faults_and_another_one_others(topology: str) -> None:
    plan = ChaosPlan(ways=(), topology=topology, crashes=True, length=timedelta(minutes=5))
    assert planned(plan) == planned(plan) != planned(replace(plan, seed=2))
    kinds = {fault.kind for fault in planned(plan)}
    assert {"process killed", "process stopped", "link cut", "Postgres crashed", "lock broken"} <= kinds


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], [(0, 10)]),
        ([(2, 3), (5, 6)], [(0, 2), (3, 5), (6, 10)]),
        ([(-1, 4), (3, 6)], [(6, 10)]),
        ([(5, 6), (1, 8)], [(0, 1), (8, 10)]),
        ([(-5, 50)], []),
        ([(10, 20), (-3, 0)], [(0, 10)]),
    ],
)
def test_what_of_a_span_is_left(others: list[tuple[float, float]], left: list[tuple[float, float]]) -> None:
    assert without((0, 10), others) == left
    assert covered_s((0, 10), others) == 10 - sum(end - begin for begin, end in left)


# The command.


@pytest.fixture
def run() -> Callable[..., Result]:
    runner = CliRunner()
    return lambda *args: runner.invoke(app.lockguard, ["chaos", *map(str, args)])


def test_a_record_is_judged_again(record: Record, run: Callable[..., Result], tmp_path: Path) -> None:
    for token in range(1, 6):
        record.grant(f"process-{token % 2}", token, token - 0.5, token, released=token + 0.8)
    number = record.call("process-1", "bypass", 4.2, 4.3, "committed", token=2)
    record.rows["bypasses"].append({"resource": "r", "token": 2, "op": number})
    record.judge()
    told = tmp_path / "told.json"
    done = run("--check", record.directory, "--json", told)
    assert done.exit_code == 0, done.output
    facts = json.loads(told.read_text())
    assert facts["counts"]["operations"] == 11
    assert facts["violations"] == []
    record.grant("process-1", 9, 2, 2.1, released=2.2)
    done = run("--check", record.directory, "--json", told)
    assert done.exit_code == 1
    assert json.loads(told.read_text())["violations"][0].startswith("1 single: linearizability of the ")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--check", "{}"), "has no round"),
        (("--check", "{}/none"), "does not exist"),
        (("--check", "{}", "--seed", "1"), "leave --seed out"),
        (("--check", "{}/broken"), "cannot be judged: round.json is damaged: it is no JSON"),
        (("--history", "{}"), "is not empty: name another directory"),
        (("--history", "{}/file"), "is a file"),
        (("--history", "{}/file/below"), "cannot be used: not a directory"),
        (("--topology", "ring"), "'ring' is not one of"),
        (("--minutes", "0"), "0"),
        (("--minutes", "nan"), "'nan' is no number"),
        (("--seed", "-1"), "-1 is not in the range"),
        (("--processes", "1"), "1 is not in the range"),
    ],
)
def test_bad_input_is_one_line(
    run: Callable[..., Result], tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    (tmp_path / "file").touch()
    if "broken" in args[1]:
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "round.json").write_text("{")
    done = run(*(arg.format(tmp_path) for arg in args))
    assert done.exit_code == 2, done.output
    assert says in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


def test_the_record_of_a_killed_run_is_judged_but_for_the_round_that_was_not_over(
    tmp_path: Path, run: Callable[..., Result]
) -> None:
    for number in (1, 2):
        (tmp_path / f"round-{number}").mkdir()
        record = Record(tmp_path / f"round-{number}")
        record.grant("process-1", 1, 0, 0.1, released=1)
        record.judge()
    (tmp_path / "round-2" / "tables.json").unlink()
    done = run("--check", tmp_path)
    assert done.exit_code == 1, done.output
    assert "round-1: 2 operations, 0 faults, 0 violations" in done.output
    assert "its run was killed, or failed, before the round was over" in done.output.replace("\n", " ")
    assert "rounds that could not be judged" in done.output


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("process-1.jsonl", b"\xff\x00\n{\n[]\n", "process-1.jsonl has 3 lines that cannot be read"),
        ("process-1.jsonl", b"[" * 50_000 + b"\n{\n", "process-1.jsonl has 2 lines that cannot be read"),
        ("process-1.jsonl", b'{"end": 1, "how": "ok", "t": 1}\n' * 2, "2 lines that cannot be read"),
        ("process-1.jsonl", b"", "no process noted write 3, which is in the tables"),
        ("process-1.jsonl", None, "process-1.jsonl is missing"),
        ("conductor.jsonl", None, "conductor.jsonl is missing"),
        ("process-1.jsonl", b'{"counts": 5}\n', "no process noted write 3"),
        ("process-2.jsonl", b'{"counts": 5}\n', "is damaged or of another version (TypeError"),
        ("tables.json", b"\xff", "tables.json is damaged: it is no JSON"),
        ("tables.json", b"[" * 50_000, "tables.json is damaged: it is no JSON"),
        ("tables.json", b"[]", "tables.json is damaged: it is no object"),
        ("tables.json", b"{}", "tables.json is damaged or of another version"),
        ("round.json", b"", "round.json is damaged: it is no JSON"),
        ("round.json", b"{}", "round.json is damaged or of another version: ttl None"),
        ("round.json", b'{"format": 2}', "it is of another version: format 2, not 1"),
        ("round.json", b'{"ttl": 1.0, "topology": "ring"}', "topology 'ring'"),
        ("round.json", b'{"ttl": 1.0, "topology": "single", "seed": Infinity}', "no seed"),
    ],
)
def test_a_record_that_is_not_whole_is_refused_and_not_held_against_the_lock(
    record: Record, run: Callable[..., Result], file: str, content: bytes | None, says: str
) -> None:
    record.grant("process-1", 1, 0, 0.1, released=1)
    record.write("process-1", 1, 0.2, 0.3)
    plan = record.directory / "round.json"
    plan.write_text(plan.read_text().replace('"processes": 0', '"processes": 1'))
    assert record.judge().violations == 0
    if content is None:
        (record.directory / file).unlink()
    else:
        (record.directory / file).write_bytes(content)
    done = run("--check", record.directory)
    assert done.exit_code == 2, done.output
    assert says in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


# An interruption.


async def test_an_interruption_while_a_round_winds_up_loses_nothing_of_it() -> None:
    steps: list[str] = []

    async def wind_up() -> None:
        for step in ("finished", "tables", "closed"):
            await asyncio.sleep(0.01)  # an interruption comes meanwhile
            steps.append(step)

    ending = asyncio.create_task(to_the_end(wind_up()))
    for _ in range(2):
        await asyncio.sleep(0)
        ending.cancel()
        await asyncio.sleep(0.002)  # it arrives before the step is over
    assert await ending
    assert steps == ["finished", "tables", "closed"]
    assert not await to_the_end(wind_up())


@pytest.mark.parametrize("how", ["interrupted", "failed"])
async def test_the_first_planted_round_that_is_interrupted_or_fails_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    first = WEAK_CHECKS[0].name
    tried: list[Path] = []

    @contextlib.asynccontextmanager
    async def no_servers(_: str) -> AsyncIterator[None]:
        yield

    async def run_round(_: ChaosPlan, *, directory: Path, **__: Any) -> RoundReport:
        tried.append(directory)
        if how == "failed":
            raise OSError(errno.ENOSPC, "No space left on device")
        report = RoundReport()
        report.of(first).stale_commits, report.counts["interrupted"] = 1, 1
        return report

    monkeypatch.setattr(series, "servers_of", no_servers)
    monkeypatch.setattr(series, "run_round", run_round)
    postgres: Any = SimpleNamespace(running=True)
    seen, ended = await series.convict_planted(ChaosPlan(ways=()), postgres=postgres, directory=tmp_path)
    assert tried == [tmp_path / "planted-1"]
    assert not tried[0].exists()
    if how == "interrupted":
        assert seen == {first: 1}  # of the others nothing is known
        assert ended.counts == {"interrupted": 1}
    else:
        assert not any(seen.values())
        assert ended.counts == {"rounds that failed": 1}
        assert "No space left on device" in ended.told[0]


def test_of_two_runs_at_once_one_gets_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(()))  # each looked before the other had begun
    assert own_directory(tmp_path / "history") == tmp_path / "history"
    with pytest.raises(Mistake, match="is not empty: name another directory"):
        own_directory(tmp_path / "history")


def test_where_the_lab_is_not_installed_the_command_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result]
) -> None:
    monkeypatch.setattr("lockguard._cli.plugins.contributed", lambda _: {})
    done = run("--minutes", "1")
    assert done.exit_code == 2
    says = "'chaos' is not installed; pip install 'lockguard[testing,postgres]'"
    assert says in done.output.replace("\n", " ")


def test_the_judge_is_not_blamed_where_all_that_it_could_try_broke_the_law_already(
    record: Record, run: Callable[..., Result]
) -> None:
    record.grant("process-1", 1, 0, 0.1, released=3)
    record.grant("process-2", 2, 0.5, 1.1, released=2)
    number = record.call("process-1", "bypass", 4.2, 4.3, "committed", token=1)
    record.rows["bypasses"].append({"resource": "r", "token": 1, "op": number})
    record.judge()
    done = run("--check", record.directory)
    assert done.exit_code == 1
    assert "linearizability of the lock" in done.output
    assert "was not possible" in done.output
    assert "did not convict" not in done.output
