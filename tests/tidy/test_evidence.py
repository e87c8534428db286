"""The pages of evidence say what the runs found, and each fault of the track record has its fix and test."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from evidencing import runs, sample, sources, tables  # noqa: E402

TRACK_RECORD = ROOT / "docs/evidence/track-record.md"
ROW = re.compile(r"^\| (\d{4}-\d\d-\d\d) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", re.MULTILINE)


def rows():
    return [found.groups() for found in ROW.finditer(TRACK_RECORD.read_text("utf-8"))]


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
    lines = TRACK_RECORD.read_text("utf-8").partition("|---|---|---|---|---|---|\n")[2].strip().splitlines()
    assert [line for line in lines if not ROW.fullmatch(line)] == []


def test_every_fault_found_has_a_fix_and_a_test():
    changes = " ".join((ROOT / "CHANGELOG.md").read_text("utf-8").split())
    shallow = sources.is_shallow(ROOT)
    for _, found_by, broke, told, fix, tests in rows():
        assert found_by, told
        assert re.search(r"`test_\w+`", tests), told
        assert broke == "-" or re.fullmatch(r"[SLP]\d+(, [SLP]\d+)*", broke), f"{told}: broke {broke!r}"
        if quoted := re.fullmatch('"(.+)"', fix):
            assert quoted[1] in changes, f"{told}: CHANGELOG.md does not say {fix}"
        else:
            assert re.fullmatch("[0-9a-f]{7,40}", fix), f"{told}: {fix!r} is neither a commit nor quoted"
            assert shallow or sources.exists(ROOT, fix), f"{told}: no commit {fix}"


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


def test_a_commit_has_the_digest_of_its_checkout(tmp_path):
    def git(*words):
        subprocess.run(
            ("git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words), check=True
        )

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


def test_a_seed_that_broke_a_law_is_no_sample():
    report = {"traces": {"1": "aa", "2": "bb"}, "violations": {"1": ["S1"]}}
    assert [one["command"] for one in sample.of_sim("lockguard sim", report)] == ["lockguard sim --seeds 2"]
