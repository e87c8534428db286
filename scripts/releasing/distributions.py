"""Both distributions: built so that anybody can build the same, checked, and tried where nothing else is."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from releasing.tools import ToolFailed, run, say

PROJECTS = (".", "lab")
REPORT = "report.json"
# These extras are for tests and for a look; what they bring is in no bill of materials.
NOT_FOR_PRODUCTION = ("memory", "testing", "bench", "demo")
# Settings that are made for other uses of pip would have it refuse here.
PIP = {"PIP_USER": "0", "PIP_REQUIRE_HASHES": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}

SMOKE = """
import asyncio
from datetime import timedelta

from lockguard import LockGuard, ResourceBusy


async def main():
    async with LockGuard.in_memory() as guard:
        held, tried = asyncio.Event(), asyncio.Event()

        async def first():
            async with guard.hold("binance:APTUSDT") as lease:
                held.set()
                await tried.wait()
                return lease.token

        async def second():
            await held.wait()
            try:
                async with guard.hold("binance:APTUSDT", wait=timedelta(0)):
                    return "held twice"
            except ResourceBusy:
                return "busy"
            finally:
                tried.set()

        token, answer = await asyncio.gather(first(), second())
        async with guard.hold("binance:APTUSDT") as lease:
            assert lease.token > token
        print(answer)


asyncio.run(main())
"""


def pyproject(source: Path) -> dict[str, Any]:
    """What pyproject.toml says."""
    return tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))


def archives(folder: Path) -> list[Path]:
    """What is uploaded."""
    return sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])


def digest(path: Path) -> str:
    """A file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build_twice(source: Path, folder: Path, epoch: int) -> None:
    """Build source distributions, and wheels from them, twice; both must be the same, byte for byte.

    The time inside them is that of the commit. The second time the folder, umask, time zone, order of hashes
    and language are others, as they would be for somebody who builds the tag to compare.
    """
    second = folder.parent / "built-again"
    elsewhere = folder.parent / "another-place" / "source"
    elsewhere.parent.mkdir()
    run("git", "clone", "--quiet", "--shared", source, elsewhere, cwd=folder.parent, umask=0o077)
    other = {"TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "17"}
    # Python 3.11 reads .pth files in the locale's encoding, so in C it starts only where paths are ASCII.
    if sys.prefix.isascii() and str(source).isascii():
        other["LC_ALL"] = "C"
    say("building both distributions, twice")
    for place, target, env, umask in ((source, folder, {}, 0o022), (elsewhere, second, other, 0o077)):
        for project in PROJECTS:
            run(
                *(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, place / project),
                cwd=folder.parent,
                env={"SOURCE_DATE_EPOCH": str(epoch)} | env,
                umask=umask,
            )
    one, two = ({path.name: digest(path) for path in archives(place)} for place in (folder, second))
    if one != two:
        differing = sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))
        raise ToolFailed("a second build is not the same", f"differ: {', '.join(differing)}")


def check(source: Path, folder: Path) -> None:
    """Check what the archives say of themselves, and what is in the wheels."""
    say("checking the archives")
    run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *archives(folder), cwd=folder)
    packages = pyproject(source)["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    for wheel in sorted(folder.glob("*.whl")):
        of_the_lab = wheel.name.startswith("lockguard_lab-")
        own = ["lockguard_lab"] if of_the_lab else [Path(one).name for one in packages]
        command = Path(sys.executable).with_name("check-wheel-contents")
        run(command, "--toplevel", ",".join(own), wheel, cwd=folder)


def wheel_of(folder: Path, name: str) -> Path:
    """The wheel of a distribution."""
    (wheel,) = folder.glob(f"{name.replace('-', '_')}-[0-9]*.whl")
    return wheel


def pip_install(python: Path, place: Path, *what: str) -> None:
    """Install into an environment without a pip of its own."""
    say(f"installing {' and '.join(Path(one).name for one in what if not one.startswith('-'))}")
    run(
        *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", *what),
        cwd=place,
        env=PIP,
    )


def installed(source: Path, folder: Path, place: Path) -> Path:
    """A fresh environment with the wheel of ``lockguard`` and all that its extras bring, without the lab.

    Beside it lies what pip reports of the files that it took.
    """
    run(sys.executable, "-m", "venv", "--without-pip", place / "environment", cwd=place)
    python = place / "environment" / "bin" / "python"
    extras = [
        one for one in pyproject(source)["project"]["optional-dependencies"] if one not in NOT_FOR_PRODUCTION
    ]
    wheel = f"{wheel_of(folder, 'lockguard')}[{','.join(extras)}]"
    pip_install(python, place, f"--report={place / REPORT}", wheel)
    return python


def taken(python: Path) -> dict[str, str]:
    """The SHA-256 of each file that pip has taken for that environment, by the name of its distribution."""
    report = json.loads((python.parents[2] / REPORT).read_text(encoding="utf-8"))
    return {
        normal(one["metadata"]["name"]): one["download_info"]["archive_info"]["hashes"]["sha256"]
        for one in report["install"]
    }


def normal(name: str) -> str:
    """A distribution's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def try_out(source: Path, folder: Path, python: Path, version: str) -> None:
    """Run the command, import every public module, and hold a lease, with both wheels installed."""
    place = python.parents[2]
    command = python.with_name("lockguard")
    said = run(command, "--version", cwd=place).strip()
    if said != f"lockguard {version}":
        raise ToolFailed(f"lockguard --version does not say {version}", said)
    modules = public_modules(source)
    own = [one for one in modules if not one.startswith(("lockguard_lab", "lockguard.testing"))]
    run_text(python, place / "imports.py", "\n".join(f"import {one}" for one in own))
    with_the_lab = f"{wheel_of(folder, 'lockguard')}[{','.join(NOT_FOR_PRODUCTION)}]"
    pip_install(python, place, str(wheel_of(folder, "lockguard-lab")), with_the_lab)
    # A plugin of pytest is for where pytest is.
    rest = [one for one in modules if one not in own and not one.endswith("pytest_plugin")]
    run_text(python, place / "imports_of_the_lab.py", "\n".join(f"import {one}" for one in rest))
    run(sys.executable, "-m", "pip", "--python", python, "check", cwd=place, env=PIP)
    run(command, "demo", "--help", cwd=place)
    held = run_text(python, place / "guard_in_memory.py", SMOKE).strip()
    if held != "busy":
        raise ToolFailed("a guard in memory does not exclude", f"a lock that is held was found {held!r}")
    say(f"lockguard {version} runs, and its {len(own) + len(rest)} public modules can be imported")


def run_text(python: Path, program: Path, text: str) -> str:
    """Run a program's text where nothing but the environment can be imported."""
    program.write_text(text, encoding="utf-8")
    return run(python, "-I", program, cwd=program.parent)


def public_modules(source: Path) -> list[str]:
    """The modules whose names docs/reference/api.txt lists, and the lab."""
    lines = (source / "docs" / "reference" / "api.txt").read_text(encoding="utf-8").splitlines()
    return [*(line.removeprefix("module ") for line in lines if line.startswith("module ")), "lockguard_lab"]
