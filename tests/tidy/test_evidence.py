"""The pages of evidence say what the runs found, and each fault of the track record has its fix and test."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import evidence  # noqa: E402
from evidencing import running, runs, sample, sources, tables, track_record  # noqa: E402
from evidencing.claims import claimed  # noqa: E402


def test_the_pages_are_what_the_runs_tell():
    kept = list(runs.load().values())
    for page in tables.pages():
        text = page.read_text("utf-8")
        assert "unknown table" not in tables.written(text, kept), page.name
        assert tables.written(text, kept) == text, f"{page.name}: run scripts/evidence"


def test_each_promise_has_what_holds_it():
    told = json.loads((ROOT / "docs/evidence/promises.json").read_text("utf-8"))["promises"]
    promised = re.findall(
        r"^\| \*\*([SLP]\d+)\*\* \|",
        (ROOT / "docs/explanation/guarantees.md").read_text("utf-8"),
        re.MULTILINE,
    )
    assert list(told) == promised
    missing = [path for about in told.values() for path in about["mechanism"] if not (ROOT / path).is_file()]
    assert missing == []


def test_every_row_of_the_track_record_is_one():
    lines = (
        (ROOT / track_record.PAGE)
        .read_text("utf-8")
        .partition("|---|---|---|---|---|---|\n")[2]
        .strip()
        .splitlines()
    )
    assert [line for line in lines if not track_record.ROW.fullmatch(line)] == []


def test_every_fault_found_has_a_fix_and_a_test():
    changes = " ".join((ROOT / "CHANGELOG.md").read_text("utf-8").split())
    for _, found_by, broke, told, fix, tests in track_record.rows(ROOT):
        assert found_by, told
        assert re.search(r"`test_\w+`", tests), told
        assert broke == "-" or re.fullmatch(r"[SLP]\d+(, [SLP]\d+)*", broke), f"{told}: broke {broke!r}"
        if quoted := re.fullmatch('"(.+)"', fix):
            assert quoted[1] in changes, f"{told}: CHANGELOG.md does not say {fix}"
        else:
            # Whether the history has it is told by --check: one that was rewritten has other ids for all.
            assert re.fullmatch("[0-9a-f]{7,40}", fix), f"{told}: {fix!r} is neither a commit nor quoted"


def a_run(**given):
    about = {
        "kind": "sim",
        "command": "lockguard sim --seeds 1..2",
        "commits": ["a" * 40],
        "sources": "5eed" * 4,
        "began": "2026-11-30T12:00:00Z",
        "seconds": 2.0,
        "counts": {"schedules": 2, "slowest_max": 3},
        "violations": [],
        "machine": {"cores": 2, "model": "a processor", "memory_gib": 8},
        "versions": {"Python": "3.11"},
        "seeds": [[1, 2]],
    }
    return runs.Run(**{**about, **given})


def test_sittings_on_the_same_code_add_up_and_no_others(tmp_path):
    runs.save(a_run(), tmp_path)
    runs.save(a_run(command="lockguard sim --seeds 3..4", commits=["b" * 40], seeds=[[3, 4]]), tmp_path)
    runs.save(a_run(sources="0dd" * 5 + "0", began="2026-11-30T13:00:00Z"), tmp_path)
    runs.save(
        a_run(command="lockguard sim --topology single --seeds 5..6", began="2026-11-30T13:10:00Z"), tmp_path
    )
    other, newer, both = runs.load(tmp_path).values()
    assert (both.seeds, both.seconds, both.counts) == ([[1, 4]], 4.0, {"schedules": 4, "slowest_max": 3})
    assert both.commits == ["a" * 40, "b" * 40]
    assert (other.command, newer.sources[:3]) == ("lockguard sim --topology single --seeds 5..6", "0dd")


def test_what_was_planted_in_parts_on_the_same_code_is_one_table():
    def part(began, name, law, **given):
        row = {"name": name, "law": law, "convicted": True}
        return a_run(kind="planted", command="lockguard sim --planted x", began=began, rows=[row], **given)

    found = [  # the newest first
        part("2026-11-30T14:00:00Z", "no seal", "S3"),
        part("2026-11-30T13:00:00Z", "no check", "S1"),
        part("2026-11-30T12:00:00Z", "no seal", "S1"),
        part("2026-11-30T11:00:00Z", "no owner", "S6", sources="0dd" * 5 + "0"),
    ]
    lines = tables.TABLES["rows"]("planted", found).splitlines()[2:]
    assert [[cell.strip() for cell in line.split("|")[1:5]] for line in lines] == [
        ["no seal", "-", "-", "S3"],
        ["no check", "-", "-", "S1"],
    ]
    about = tables.TABLES["about"]("planted", found)
    assert "`lockguard sim --planted NAME` in 3 parts, 2026-11-30, 6 s" in about


def test_seeds_are_counted_once(tmp_path):
    runs.save(a_run(), tmp_path)
    with pytest.raises(runs.Unusable, match="seeds"):
        runs.save(a_run(), tmp_path)
    assert runs.ranges_without((1, 9), [[3, 4], [7, 20]]) == [(1, 2), (5, 6)]
    assert runs.ranges_without((3, 4), [[1, 9]]) == []


def test_no_more_of_a_machine_is_told_than_its_size(tmp_path):
    assert set(runs.machine()) == {"cores", "model", "memory_gib"}
    with pytest.raises(runs.Unusable, match="machine"):
        runs.save(a_run(machine={"cores": 2, "model": "", "memory_gib": 8, "host": "mine"}), tmp_path)


def test_where_the_checkout_of_a_run_lies_is_not_told(tmp_path):
    """What a process said as it failed named the file of a library."""
    report = tmp_path / "report.json"
    told = f"a process failed: {ROOT}/.venv/lib/asyncpg/pool.py:223"
    report.write_text(json.dumps({"counts": {"operations": 1}, "violations": [told]}))
    assert evidence._json(report)["violations"] == ["a process failed: .venv/lib/asyncpg/pool.py:223"]


def test_the_digest_follows_the_code_and_not_its_comments(tmp_path):
    module = tmp_path / "kept/module.py"
    module.parent.mkdir()

    def digest(text, script="return 1\n"):
        module.write_text(text, "utf-8")
        module.with_name("script.lua").write_text(script, "utf-8")
        return sources.digest(tmp_path, ["kept"])

    before = digest('"""Says."""\nONE = (1, 2)\n\n\ndef told():\n    """Tells."""\n    return ONE\n')
    assert digest("ONE = (\n    1,  # one\n    2,\n)\n\n\ndef told():\n    return ONE\n") == before
    assert digest("ONE = (1, 3)\n\n\ndef told():\n    return ONE\n") != before
    assert digest("ONE = (1, 2)\n\n\ndef told():\n    return ONE\n", "return 2\n") != before
    assert digest("ONE = (1, 2)\n\n\nasync def told():\n    return ONE\n") != before


def in_git(folder):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")

    def git(*words):
        subprocess.run(("git", "-C", folder, "-c", "user.name=a", "-c", "user.email=a@b", *words), check=True)

    return git


def test_a_commit_has_the_digest_of_its_checkout(tmp_path):
    git = in_git(tmp_path)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/one.py").write_text("ONE = 1\n", "utf-8")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "One")
    assert sources.digest_at(tmp_path, "HEAD", ["kept", "lacking"]) == sources.digest(
        tmp_path, ["kept", "lacking"]
    )
    assert sources.changed(tmp_path, ["kept"]) == []
    (tmp_path / "kept/two.py").write_text("TWO = 2\n", "utf-8")
    assert sources.changed(tmp_path, ["kept"]) == ["kept/two.py"]


def test_a_sample_that_comes_out_otherwise_is_told():
    wanted = {"traces": {"7": "5e1f"}, "violations": {}}
    assert sample.differs(wanted, {"traces": {"7": "5e1f", "8": "0"}, "violations": []}) == []
    assert sample.differs(wanted, {"traces": {"7": "0000"}, "violations": {"7": ["S1"]}}) == [
        "traces.7: recorded '5e1f', now '0000'",
        "violations: recorded {}, now {'7': ['S1']}",
    ]


def test_a_report_without_counts_is_none():
    with pytest.raises(runs.Unusable, match="counts"):
        runs.Run.of("sim", {"violations": []}, command="c", commits=[], sources="", began="", seconds=0)


def test_what_is_left_out_of_a_digest_does_not_count(tmp_path):
    for name in ("kept/one.py", "kept/planted/two.py", "kept/planted_not.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("ONE = 1\n", "utf-8")
    before = sources.digest(tmp_path, ["kept", "!kept/planted"])
    (tmp_path / "kept/planted/two.py").write_text("TWO = 2\n", "utf-8")
    assert sources.digest(tmp_path, ["kept", "!kept/planted"]) == before
    (tmp_path / "kept/planted_not.py").write_text("TWO = 2\n", "utf-8")
    assert sources.digest(tmp_path, ["kept", "!kept/planted"]) != before


def test_the_sample_is_what_was_convicted_or_checked_soonest_and_is_found_by_its_name():
    rows = [
        {
            "name": "a quorum of half",
            "layer": "lock",
            "law": "S1",
            "seed": 4,
            "seconds": 2.5,
            "convicted": True,
        },
        {"name": "a quorum", "layer": "lock", "law": "S1", "seed": 9, "seconds": 1.0, "convicted": True},
        {"name": "no seal", "layer": "fence", "law": "", "seed": None, "seconds": 0.1, "convicted": False},
    ]
    assert sample.of_planted({"rows": rows}) == []  # its name is a part of another's, and so finds both
    (one,) = sample.of_planted({"rows": rows[:1]})
    assert one["command"] == "lockguard sim --planted 'a quorum of half'"
    assert one["exactly"] == {"rows": [{"seed": 4, "law": "S1"}]}
    checks = [
        {"model": "queue", "check": "clean", "states": 10, "verdict": "clean", "seconds": 0.1},
        {"model": "queue", "check": "clean, two", "states": 99, "verdict": "clean", "seconds": 0.2},
    ]
    (one,) = sample.of_models({"rows": checks})
    assert one["command"] == "scripts/models queue --only 'clean, two'"
    assert one["exactly"] == {"rows": [{"states": 99, "verdict": "clean"}]}
    assert sample.of_models({"command": "scripts/models --long", "rows": checks}) == []


def test_a_seed_that_broke_a_law_is_no_sample():
    report = {"traces": {"1": "aa", "2": "bb"}, "violations": {"1": ["S1"]}}
    assert [one["command"] for one in sample.of_sim("lockguard sim", report)] == ["lockguard sim --seeds 2"]


def test_a_history_that_was_rewritten_is_told_and_is_no_fault(tmp_path, monkeypatch, capsys):
    git = in_git(tmp_path)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "One")
    page = tmp_path / track_record.PAGE
    page.parent.mkdir(parents=True)
    page.write_text(f"| 2026-11-30 | case | S1 | It was lost. | {'b' * 7} | `test_it` |\n", "utf-8")
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    runs.save(a_run(), kept := tmp_path / "runs")
    assert evidence._wrong_commits(runs.load(kept).items()) == []
    told = " ".join(evidence._not_in_the_history(runs.load(kept).items()))
    assert "aaaaaaa is not in the history" in told
    assert "bbbbbbb is not in the history" in told


def test_an_archive_inside_of_another_repository_does_not_take_its_history_for_its_own(tmp_path):
    git = in_git(tmp_path)
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "One")
    (unpacked := tmp_path / "lockguard").mkdir()
    assert (sources.is_shallow(tmp_path), sources.is_shallow(unpacked)) == (False, True)
    with pytest.raises(runs.Unusable, match="is no clone"):
        sources.changed(unpacked, ["kept"])


def test_without_git_and_without_a_history_nothing_is_compared_and_nothing_recorded(tmp_path, monkeypatch):
    for path in (os.environ["PATH"], ""):
        monkeypatch.setenv("PATH", path)
        assert sources.is_shallow(tmp_path)
        assert not sources.exists(tmp_path, "a" * 40)
        with pytest.raises(runs.Unusable, match="names the commit"):
            sources.changed(tmp_path, ["kept"])


@pytest.mark.parametrize(
    "report",
    [
        [],
        {"counts": {"states": 1}, "violations": 7},
        {"counts": {"states": 1}, "violations": [], "seeds": 5},
        {"counts": {"states": 1}, "violations": [], "seeds": [[5]]},
        {"counts": {"states": 1}, "violations": [], "rows": [1]},
        {"violations": [], "rows": [{"convicted": True}]},
    ],
)
def test_a_file_that_is_no_report_is_refused_in_words(tmp_path, report):
    with pytest.raises(runs.Unusable):
        runs.save(
            runs.Run.of(
                "models",
                report,
                command="c",
                commits=["a" * 40],
                sources="5eed" * 4,
                began="2026-11-30T12:00:00Z",
                seconds=1,
            ),
            tmp_path,
        )
    assert runs.load(tmp_path) == {}


def test_runs_that_begin_in_one_second_are_all_kept(tmp_path):
    for seed in (31, 32, 33):
        run = a_run(kind="models", seeds=[], counts={"states": 1}, command=f"scripts/models --seed {seed}")
        runs.save(run, tmp_path)
    assert len(runs.load(tmp_path)) == 3


def test_a_run_that_is_kept_is_not_overwritten_by_another_of_its_second(tmp_path):
    runs.save(a_run(kind="models", seeds=[], counts={"states": 1}, violations=["it broke"]), tmp_path)
    with pytest.raises(runs.Unusable, match="is there already"):
        runs.save(a_run(kind="models", seeds=[], counts={"states": 1}), tmp_path)
    (kept,) = runs.load(tmp_path).values()
    assert kept.violations == ["it broke"]


def test_sittings_that_end_at_once_are_all_kept(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path; from test_evidence import a_run, runs\n"
        "for seed in range(int(sys.argv[4]), 40, 2):\n"
        "    runs.save(a_run(seeds=[[seed, seed]], counts={'schedules': 1}), Path(sys.argv[3]))"
    )
    arguments = (sys.executable, "-c", code, ROOT / "scripts", Path(__file__).parent, tmp_path)
    both = [subprocess.Popen((*arguments, str(one))) for one in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    (kept,) = runs.load(tmp_path).values()
    assert (kept.counts, kept.seeds) == ({"schedules": 40}, [[0, 39]])


def test_seeds_that_another_process_runs_are_left_to_it(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from evidencing.claims import claimed\n"
        "with claimed(Path(sys.argv[2]), 'c', *map(int, sys.argv[3:])) as mine: print(mine)"
    )

    def another(first, last):
        asked = (sys.executable, "-c", code, ROOT / "scripts", tmp_path, str(first), str(last))
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()

    with claimed(tmp_path, "c", 1, 200) as mine:
        assert mine
        assert (another(200, 400), another(201, 400)) == ("False", "True")
    assert another(1, 200) == "True"


@pytest.mark.parametrize("background", [False, True])
def test_an_interrupted_command_has_the_time_to_stop_its_servers(tmp_path, background):
    """Half a second, more than the quarter that subprocess.run gives after Ctrl-C."""
    child = (
        "import pathlib, sys, time\n"
        "try:\n    pathlib.Path(sys.argv[1]).touch(); time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5); pathlib.Path(sys.argv[2]).touch()"
    )
    began, stopped = tmp_path / "began", tmp_path / "stopped"

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    # As a shell starts a job in the background.
    sigint = signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 1.0, 0)
        with pytest.raises(KeyboardInterrupt):
            running.run([sys.executable, "-c", child, str(began), str(stopped)], cwd=tmp_path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGINT, sigint)
    assert stopped.exists() or not began.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a child that its parent has ended")
def test_a_command_does_not_outlive_a_parent_that_is_killed(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from evidencing import running\n"
        "running.run(['sh', '-c', 'echo $$ > pid.new; mv pid.new pid; exec sleep 60'], cwd=Path(sys.argv[2]))"
    )
    parent = subprocess.Popen((sys.executable, "-c", code, ROOT / "scripts", tmp_path))
    ends = time.monotonic() + 60
    while not (tmp_path / "pid").exists():
        assert time.monotonic() < ends
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    pid = int((tmp_path / "pid").read_text())
    with suppress(FileNotFoundError, ProcessLookupError):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < ends
            time.sleep(0.02)


def test_a_run_that_tried_nothing_is_no_evidence(tmp_path):
    with pytest.raises(runs.Unusable, match="nothing was tried"):
        runs.save(a_run(kind="models", seeds=[], counts={"states": 0}), tmp_path)
