"""What is shipped is what is in the checkout, and it works where nothing else is."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

import lockguard
from lockguard._cli import app

CHECKOUT = Path(__file__).resolve().parents[2]
INTEGRATIONS = (
    "lockguard_command",
    "lockguard_asyncpg",
    "lockguard_postgres",
    "lockguard_psycopg",
    "lockguard_ccxt",
    "lockguard_tenacity",
    "lockguard_positions",
    "lockguard_bot",
    "lockguard_logs",
    "lockguard_metrics",
    "lockguard_ops",
)
PACKAGES = {"lockguard": CHECKOUT / "lockguard"} | {
    name: CHECKOUT / "integrations" / name for name in INTEGRATIONS
}

# What fails first when none of a module's third-party packages are there.
EXTRA_OF = {
    "lockguard_asyncpg": "postgres",
    "lockguard_ccxt": "ccxt",
    "lockguard_positions": "positions",
    "lockguard_tenacity": "tenacity",
}


LAB = {"lockguard_lab": CHECKOUT / "lab" / "lockguard_lab"}


def expected_files(packages: dict[str, Path]) -> set[str]:
    return {
        f"{name}/{path.relative_to(package)}"
        for name, package in packages.items()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def dist_info(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [one for one in archive.namelist() if one.endswith(f".dist-info/{name}")]
        return archive.read(path).decode()


def run(python: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_packages_whole_and_nothing_else(wheel: Path) -> None:
    assert files_of(wheel) == expected_files(PACKAGES)


def test_the_lab_is_a_wheel_of_its_own_of_the_same_version(wheel: Path, lab_wheel: Path) -> None:
    assert files_of(lab_wheel) == expected_files(LAB)
    product, lab = (email.message_from_string(dist_info(one, "METADATA")) for one in (wheel, lab_wheel))
    assert lab["Version"] == product["Version"] == lockguard.__version__
    assert f"lockguard=={product['Version']}" in lab.get_all("Requires-Dist")
    for extra in ("testing", "bench", "demo"):
        (asked,) = [
            line
            for line in product.get_all("Requires-Dist")
            if line.startswith("lockguard-lab") and f"extra == '{extra}'" in line
        ]
        assert f"=={product['Version']};" in asked


def test_the_wheel_holds_scripts_statements_and_the_marks_of_typed_packages(wheel: Path) -> None:
    files = files_of(wheel)
    assert {"lockguard/lua/acquire.lua", "lockguard/lua/release.lua"} <= files
    assert any(name.startswith("lockguard_postgres/sql/") and name.endswith(".sql") for name in files)
    assert {f"{name}/py.typed" for name in PACKAGES} <= files


def test_the_wheel_names_licence_extras_and_command(wheel: Path) -> None:
    metadata = email.message_from_string(dist_info(wheel, "METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in dist_info(wheel, "licenses/LICENSE")
    extras = set(metadata.get_all("Provides-Extra", []))
    assert {"postgres", "ccxt", "tenacity", "cli", "positions", "testing", "demo"} <= extras
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.partition(">")[0] for line in required} == {"redis", "hiredis"}
    assert "lockguard = lockguard_command:main" in dist_info(wheel, "entry_points.txt")


def test_each_wheel_carries_the_licence(wheel: Path, lab_wheel: Path) -> None:
    licence = (CHECKOUT / "LICENSE").read_text(encoding="utf-8")
    for one in (wheel, lab_wheel):
        with zipfile.ZipFile(one) as archive:
            texts = [archive.read(n).decode() for n in archive.namelist() if n.endswith("/licenses/LICENSE")]
        assert texts == [licence], one.name


def test_a_wheel_from_the_source_distribution_is_the_same(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        # Python 3.11.0 to 3.11.3 know no filter; the archive is our own.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(tmp_path, **safely)
    (unpacked,) = tmp_path.iterdir()
    assert (unpacked / "tests" / "packaging").is_dir()
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", tmp_path / "dist"],
        cwd=unpacked,
        check=True,
        capture_output=True,
    )
    (rebuilt,) = (tmp_path / "dist").glob("*.whl")
    assert files_of(rebuilt) == files_of(wheel)


def test_the_core_imports_with_its_own_dependencies_alone(bare_python: Path) -> None:
    done = run(
        bare_python,
        "import lockguard, lockguard._scripts; print(lockguard.__file__, len(lockguard._scripts.SCRIPTS))",
    )
    assert done.returncode == 0, done.stderr
    path, scripts = done.stdout.split()
    assert Path(path).is_relative_to(bare_python.parents[1])
    assert int(scripts) > 0


def test_servers_without_the_lab_are_told_how_to_be_had(bare_python: Path) -> None:
    done = run(bare_python, "from lockguard.testing import RedisServer")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("pip install 'lockguard[testing]'")


def test_a_command_of_the_lab_is_told_how_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockguard._cli.plugins.entry_points", lambda group: ())  # as without the lab
    with pytest.raises(click.ClickException, match=re.escape("pip install 'lockguard[testing]'")):
        app.lockguard.get_command(click.Context(app.lockguard), "servers")


def test_a_guard_in_memory_needs_neither_the_lab_nor_a_server(bare_python: Path, wheel: Path) -> None:
    metadata = email.message_from_string(dist_info(wheel, "METADATA"))
    lines = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    brought = {each.name for each in lines if each.marker and each.marker.evaluate({"extra": "memory"})}
    needed = brought - {each.name for each in lines if not each.marker}
    assert needed == {"fakeredis"}
    packages = Path(run(bare_python, "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    extra = packages.parent / "memory"
    extra.mkdir()
    installed = Path(sysconfig.get_path("purelib"))
    for name in ("fakeredis", "sortedcontainers", "lupa", "redis"):  # all that fakeredis[lua] brings
        for found in (*installed.glob(name), *installed.glob(f"{name}-*.dist-info")):
            (extra / found.name).symlink_to(found)
    work = """
async def main():
    fence = MemoryFence()
    rows = fence.table(protect="{key}")
    guard = LockGuard.in_memory(fence=fence)
    async with guard.hold("a"):
        rows["a"] = 1
    try:
        rows["a"] = 2
    except StaleToken:
        print(dict(rows))
asyncio.run(main())
"""
    code = f"import sys; sys.path.append({str(extra)!r}); import asyncio\n"
    code += "from lockguard import LockGuard, StaleToken\nfrom lockguard.testing import MemoryFence\n" + work
    done = run(bare_python, code)
    assert (done.stdout, done.stderr) == ("{'a': 1}\n", "")


@pytest.mark.parametrize("module", EXTRA_OF)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(bare_python: Path, module: str) -> None:
    done = run(bare_python, f"import {module}")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"pip install 'lockguard[{EXTRA_OF[module]}]'" in last
