"""The processes that a race, a load, a benchmark or the demo starts: told, heard, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import threading
from pathlib import Path

import psutil
import pytest

import lockguard_lab
from lockguard.errors import ConfigurationError
from lockguard_lab.child_process import Child, signal_child

PROGRAMS = {
    "talks": "say({'ready': 1})\nfor line in sys.stdin:\n    say({'heard': line.strip()})",
    "fails": "raise SystemExit('no room left')",
    "stays": "say({'ready': 1})\nwhile True:\n    time.sleep(60)",
}


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Modules that a child may run."""
    for name, text in PROGRAMS.items():
        head = "import sys, time\nfrom lockguard_lab.child_process import begin_as_child, say\n"
        (tmp_path / f"child_that_{name}.py").write_text(f"{head}begin_as_child()\n{text}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "child_that_{}".format


async def test_a_child_is_told_and_heard_in_lines(program):
    async with Child(program("talks")) as child:
        assert await child.expect("ready") == 1
        await child.write("go")
        assert await child.hear() == {"heard": "go"}
        await child.tell({"do": "this"})
        assert await child.expect("heard") == '{"do": "this"}'
        await child.write("go")
        with pytest.raises(ConfigurationError, match="child_that_talks said heard instead of ready"):
            await child.expect("ready")


async def test_a_child_that_ends_is_told_with_its_name_its_code_and_its_last_line(program):
    async with Child(program("fails"), name="process 3") as child:
        with pytest.raises(ConfigurationError, match=r"^process 3 ended with 1: no room left$"):
            await child.expect("ready")
        with pytest.raises(ConfigurationError, match=r"^process 3 ended with 1: no room left$"):
            await child.write("go")


async def test_a_child_that_says_nothing_for_too_long_is_told(program):
    async with Child(program("talks"), patience_s=30) as child:
        await child.expect("ready")
        child._patience_s = 0.05
        with pytest.raises(ConfigurationError, match=r"child_that_talks said nothing for 0\.05 s"):
            await child.hear()


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("fails", [False, True])
async def test_no_child_is_left_behind_by_its_block(program, fails, stopped):
    left = []
    with contextlib.suppress(ZeroDivisionError):
        async with Child(program("stays"), end_s=0.2) as child:
            await child.expect("ready")
            left.append(psutil.Process(child.pid))
            if stopped:
                await child.suspend()
                assert left[0].status() == psutil.STATUS_STOPPED
            if fails:
                raise ZeroDivisionError
    assert [process.is_running() for process in left] == [False]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing reaches a process that is stopped")
async def test_a_stopped_child_dies_with_its_parent(program):
    parent = (
        "import asyncio\nfrom lockguard_lab.child_process import Child\n"
        "async def main():\n"
        f"    async with Child({program('stays')!r}) as child:\n"
        "        await child.expect('ready')\n        print(child.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", parent), stdout=asyncio.subprocess.PIPE
    )
    assert owner.stdout is not None
    child = psutil.Process(int(await owner.stdout.readline()))
    child.send_signal(signal.SIGSTOP)
    signal_child(owner, signal.SIGKILL)
    assert await owner.wait() == -signal.SIGKILL
    await asyncio.to_thread(psutil.wait_procs, [child], 10)
    assert not child.is_running()


async def test_a_child_whose_parent_died_before_it_could_be_watched_ends(program, monkeypatch):
    monkeypatch.setenv("LOCKGUARD_LAB_PARENT", "1")
    orphan = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", program("talks")), stdout=asyncio.subprocess.PIPE
    )
    assert await orphan.communicate() == (b"", None)
    assert orphan.returncode == 1


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="an end cannot be awaited without taking its exit code")
async def test_a_child_that_ends_at_the_moment_of_its_signal_keeps_its_exit_code(monkeypatch):
    """Whether asyncio waits for it in a thread, as on Python 3.11, or in its loop, as on newer ones."""
    signalled = threading.Event()
    wait = os.waitpid

    def wait_late(pid, options):
        signalled.wait()
        return wait(pid, options)

    monkeypatch.setattr(os, "waitpid", wait_late)  # that of asyncio: subprocess keeps its own
    theirs, ours = os.pipe()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "input(); raise SystemExit(7)"), stdin=theirs
    )
    os.close(theirs)
    try:
        os.write(ours, b"\n")
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - no turn for the loop
        signal_child(child, signal.SIGTERM)
    finally:
        signalled.set()
        os.close(ours)
    assert await child.wait() == 7
    signal_child(child, signal.SIGTERM)  # it is not there any more, which is no error


def test_each_child_of_the_lab_is_kept_by_the_same_code():
    """One that is started elsewhere, or does not end with its parent, may be left behind."""
    root = Path(lockguard_lab.__file__).parent
    sources = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.py")}
    starts = {name for name, text in sources.items() if "create_subprocess_exec" in text}
    assert starts == {"child_process.py"}
    # Those of the chaos race are kept by the warden, as servers are; races of two bots, a benchmark, the
    # models and the mutants are run by hand.
    run_as_main = {name for name, text in sources.items() if re.search(r"^if __name__", text, re.MULTILINE)}
    unwatched = {name for name in run_as_main if "    begin_as_child()" not in sources[name]}
    assert unwatched == {
        "servers/warden.py",
        "chaos/worker.py",
        "bench/listing.py",
        "models/__main__.py",
        "mutants/cli.py",
        "one_account/__main__.py",
        "own_bot/__main__.py",
    }
