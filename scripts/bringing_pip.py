"""Brings pip into a new environment where Python lacks ensurepip, which Debian splits off; without root.

Tried in this order: the pip that this Python has, the wheel that the distribution has installed, and the one
in the distribution's package, which apt-get fetches and checks for any user.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = "python3-pip-whl"
WHEELS = "usr/share/python-wheels"  # in the package
INSTALLED = Path("/") / WHEELS


class NoPip(Exception):
    """There is no way to pip without root; the text names the command for root."""


def is_needed() -> bool:
    """Whether ``python -m venv`` cannot bring pip along here."""
    return importlib.util.find_spec("ensurepip") is None


def bring(interpreter: str, venv_python: Path) -> None:
    """Install pip into an environment that was made without it; raises `NoPip`."""
    if importlib.util.find_spec("pip") is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pinned:
            pinned.write(_pinned())
            pinned.flush()
            asked = (interpreter, "-m", "pip", "--python", str(venv_python), "install", "--require-hashes")
            _run(*asked, *_QUIETLY, "--requirement", pinned.name)
        return
    with _wheel() as wheel:
        # As ensurepip does it: the wheel installs itself.
        asked = (str(venv_python), "-m", "pip", "install", "--no-index", "--no-deps", "--no-compile")
        _run(*asked, *_QUIETLY, str(wheel), PYTHONPATH=str(wheel))


_QUIETLY = ("--quiet", "--no-input", "--disable-pip-version-check")


def _run(*argv: str, cwd: Path = CHECKOUT, **env: str) -> None:
    # Some settings, made for other uses of pip, would have it refuse here.
    own = {"PIP_USER": "0", "PIP_REQUIRE_HASHES": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    subprocess.run(argv, check=True, cwd=cwd, env=os.environ | own | env, stdin=subprocess.DEVNULL)


def _pinned() -> str:
    """Pip's own lines of the pinned requirements."""
    text = (CHECKOUT / "requirements" / "dev.txt").read_text(encoding="utf-8")
    found = re.search(r"^pip==(?:.*\\\n)*.*\n", text, re.MULTILINE)
    assert found is not None
    return found[0]


@contextlib.contextmanager
def _wheel() -> Iterator[Path]:
    """The distribution's wheel of pip, for as long as it is needed."""
    with tempfile.TemporaryDirectory(prefix="lockguard-pip-") as place:
        found = sorted(INSTALLED.glob("pip-*.whl")) or sorted(_fetched(Path(place)))
        if not found:
            raise NoPip(
                "this Python has no ensurepip, and no pip could be had without root:"
                " apt-get install python3-venv as root, or install uv, and run again"
            )
        yield found[-1]


def _fetched(place: Path) -> list[Path]:
    """The wheels of the package that apt-get fetches: with the system's lists, or with lists of our own."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return []
    for name in ("state/lists/partial", "cache/archives/partial"):
        (place / name).mkdir(parents=True)
    own = ("-o", f"Dir::State={place}/state", "-o", f"Dir::Cache={place}/cache", "-o", "Debug::NoLocking=1")
    own = (*own, "-o", "Dir::State::Status=/var/lib/dpkg/status", "-o", "APT::Sandbox::User=")
    try:
        try:
            _quietly("apt-get", "download", PACKAGE, cwd=place)
        except subprocess.CalledProcessError:
            _quietly("apt-get", *own, "update", cwd=place)
            _quietly("apt-get", *own, "download", PACKAGE, cwd=place)
        (package,) = place.glob(f"{PACKAGE}_*.deb")
        _quietly("dpkg-deb", "--extract", str(package), str(place / "package"), cwd=place)
    except subprocess.CalledProcessError:
        return []
    return list((place / "package" / WHEELS).glob("pip-*.whl"))


def _quietly(*argv: str, cwd: Path) -> None:
    subprocess.run(argv, check=True, cwd=cwd, capture_output=True, stdin=subprocess.DEVNULL)
