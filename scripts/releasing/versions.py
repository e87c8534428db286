"""The one version of both distributions, in every place that says it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.version import InvalidVersion, Version

from releasing.tools import Refused, run

# Where the version stands, and as what.
STATED = {
    "pyproject.toml": re.compile(r'^(version = ")([^"]+)(")', re.MULTILINE),
    "lab/pyproject.toml": re.compile(r'^(version = ")([^"]+)(")', re.MULTILINE),
    "lockguard/__init__.py": re.compile(r'^(__version__ = ")([^"]+)(")', re.MULTILINE),
}
# One distribution asks for the other in the same version, and so may a page.
PIN = re.compile(r"(\blockguard(?:-lab)?(?:\[[\w,]+\])?==)([0-9][\w.]*)()")
PINNED = ("pyproject.toml", "lab/pyproject.toml", "README.md", "lab/README.md", "docs/**/*.md")


def checked(version: str) -> str:
    """Return a version of three numbers, perhaps with a1, b1 or rc1; raises `Refused` for any other."""
    try:
        parsed = Version(version)
    except InvalidVersion:
        parsed = None
    odd = parsed is None or parsed.local or parsed.epoch or parsed.is_devrelease or parsed.is_postrelease
    if parsed is None or odd or len(parsed.release) != 3 or str(parsed) != version:
        raise Refused(f"{version!r} is no version: give three numbers, as 0.2.0, or 0.2.0rc1 for a trial")
    return version


def pinned_files(checkout: Path) -> list[Path]:
    """The files that may ask for one of the distributions in a version."""
    return sorted(path for pattern in PINNED for path in checkout.glob(pattern))


def read(checkout: Path) -> str:
    """Return the version that all places agree on; raises `Refused` naming the first that does not."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = str(project["version"])
    for name, pattern in STATED.items():
        found = pattern.search((checkout / name).read_text(encoding="utf-8"))
        stated = found[2] if found else "no version"
        if stated != version:
            raise Refused(
                f"{name} says {stated} and pyproject.toml {version}: both distributions have one version"
            )
    for path in pinned_files(checkout):
        for found in PIN.finditer(path.read_text(encoding="utf-8")):
            if found[2] != version:
                place = path.relative_to(checkout)
                remedy = f"write {found[1]}{version}"
                raise Refused(f"{place} asks for {found[0]} and the version is {version}: {remedy}")
    return version


def refuse_unless_newer(wanted: str, stated: str, released: dict[str, Version]) -> None:
    """Refuse a version that is released already, or that follows none of the released ones."""
    tag = f"v{wanted}"
    if tag in released:
        raise Refused(f"{tag} is tagged already: give a greater version")
    newest = max(released.values(), default=None)
    if newest is not None and Version(wanted) <= newest:
        raise Refused(f"{wanted} is not greater than {newest}, which is tagged: give a greater version")
    if Version(wanted) < Version(stated):
        raise Refused(f"{wanted} is less than {stated}, which pyproject.toml says: give a greater version")


def write(checkout: Path, version: str) -> None:
    """Write a version in every place."""
    for name, pattern in STATED.items():
        _replace(checkout / name, pattern, version)
    for path in pinned_files(checkout):
        _replace(path, PIN, version)
    read(checkout)


def publish_installs(checkout: Path, version: str) -> None:
    """Have the pages install from the package index, from the first release on that is no trial."""
    unpublished = "<!-- not published yet -->" in (checkout / "README.md").read_text(encoding="utf-8")
    if unpublished and not Version(version).is_prerelease:
        run(sys.executable, checkout / "scripts" / "installs.py", "--published", cwd=checkout)


def _replace(path: Path, pattern: re.Pattern[str], version: str) -> None:
    text = path.read_text(encoding="utf-8")
    count = 1 if pattern in STATED.values() else 0
    replaced = pattern.sub(lambda found: f"{found[1]}{version}{found[3]}", text, count=count)
    if replaced != text:
        path.write_text(replaced, encoding="utf-8")
