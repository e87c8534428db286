"""Makes ``.venv`` in the checkout from the pinned requirements, with uv if it is there, otherwise with pip.

An environment is trusted only when its stamp says that it is complete and that it was made from the present
requirements, for this checkout. The stamp is removed before anything is changed and written when all is done,
so an interrupted installation is begun anew by the next run.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import bringing_pip

CHECKOUT = Path(__file__).resolve().parent.parent
VENV = CHECKOUT / ".venv"
STAMP = VENV / "lockguard-stamp.json"
VENV_PYTHON = VENV / "bin" / "python"
# Each contains the ones before it, in the same versions.
LEVELS = ("demo", "dev")


def wanted_stamp(level: str) -> dict[str, str]:
    """What the stamp says of an environment that was completed for this level."""
    inputs = [
        CHECKOUT / "pyproject.toml",
        CHECKOUT / "lab" / "pyproject.toml",
        *(CHECKOUT / "requirements" / f"{name}.txt" for name in LEVELS),
    ]
    digest = hashlib.sha256()
    for path in inputs:
        digest.update(path.read_bytes())
    return {"level": level, "inputs": digest.hexdigest(), "checkout": str(CHECKOUT)}


def is_ready(level: str) -> bool:
    """Whether the environment is complete for this level or a higher one, and its Python still runs."""
    try:
        stamp = json.loads(STAMP.read_text())
        levels = LEVELS[LEVELS.index(level) :]
        if stamp not in [wanted_stamp(one) for one in levels]:
            return False
        return subprocess.run([VENV_PYTHON, "-c", ""], check=False, stderr=subprocess.DEVNULL).returncode == 0
    except (OSError, ValueError):
        return False


def is_extensible() -> bool:
    """Whether the environment is complete for a lower level, so that packages need only be added."""
    return is_ready(LEVELS[0]) and _python_version() == list(sys.version_info[:2])


def _python_version() -> list[int]:
    question = "import json, sys; print(json.dumps(sys.version_info[:2]))"
    answer = subprocess.run([VENV_PYTHON, "-c", question], check=True, capture_output=True, text=True)
    version: list[int] = json.loads(answer.stdout)
    return version


def say(text: str) -> None:
    """Tell the user what happens; standard output is for the command itself."""
    print(f"lockguard: {text}", file=sys.stderr, flush=True)


def make(level: str) -> None:
    """Make the environment, or add to it what the level needs."""
    uv = shutil.which("uv")
    if is_extensible():
        STAMP.unlink()
    else:
        tool = "uv" if uv else "venv and pip"
        version = ".".join(map(str, sys.version_info[:3]))
        say(f"making .venv with Python {version} ({tool})")
        STAMP.unlink(missing_ok=True)
        shutil.rmtree(VENV, ignore_errors=True)
        create(uv)
    requirements = f"requirements/{level}.txt"
    say(f"installing the {count_pinned(requirements)} packages that {requirements} pins by hash")
    install(uv, "--require-hashes", "--requirement", requirements)
    install(uv, "--no-deps", "--no-build-isolation", "--editable", ".", "--editable", "lab")
    STAMP.write_text(json.dumps(wanted_stamp(level)))
    say("done: later runs start at once")


def count_pinned(requirements: str) -> int:
    """How many packages a requirements file names."""
    lines = (CHECKOUT / requirements).read_text().splitlines()
    return sum("==" in line and not line.startswith((" ", "#")) for line in lines)


def create(uv: str | None) -> None:
    """Make an empty environment."""
    if uv:
        run(uv, "venv", "--quiet", "--no-project", "--python", interpreter(), str(VENV))
    elif not bringing_pip.is_needed():
        run(interpreter(), "-m", "venv", str(VENV))
    else:
        say("this Python has no ensurepip, so pip is brought from elsewhere")
        run(interpreter(), "-m", "venv", "--without-pip", str(VENV))
        bringing_pip.bring(interpreter(), VENV_PYTHON)


def interpreter() -> str:
    """The Python beneath any environment: an activated ``.venv`` has just been removed."""
    beneath = getattr(sys, "_base_executable", None)
    return beneath if sys.prefix != sys.base_prefix and beneath else sys.executable


def install(uv: str | None, *what: str) -> None:
    """Install into the environment."""
    if uv:
        run(uv, "pip", "install", "--quiet", "--python", str(VENV_PYTHON), *what)
    else:
        quietly = ("--quiet", "--no-input", "--disable-pip-version-check")
        run(str(VENV_PYTHON), "-m", "pip", "install", *quietly, *what)


def run(*argv: str) -> None:
    """Run a tool to its end; its own words are shown when it fails."""
    # Either setting, made for other uses of pip, would have it refuse here.
    env = os.environ | {"PIP_USER": "0", "PIP_REQUIRE_HASHES": "0"}
    if sys.platform == "darwin" or ssl.get_default_verify_paths().cafile or Path("/etc/ssl/certs").is_dir():
        # uv trusts a list of its own by default, and so not the proxy of a company's network. As pip does:
        env |= {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}  # newer and older name
    subprocess.run(argv, check=True, cwd=CHECKOUT, env=env, stdin=subprocess.DEVNULL)


def main() -> int:
    """Make the environment that the arguments name; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("level", choices=LEVELS)
    parser.add_argument("--check", action="store_true", help="make nothing: tell by the exit code")
    arguments = parser.parse_args()
    if arguments.check:
        return 0 if is_ready(arguments.level) else 1
    try:
        # Two scripts that are started at once must not make it both.
        with (CHECKOUT / ".venv.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not is_ready(arguments.level) or _python_version() != list(sys.version_info[:2]):
                make(arguments.level)
    except subprocess.CalledProcessError as error:
        command = " ".join(error.cmd[:4])
        say(f"{command} ... failed with exit code {error.returncode}: .venv is not complete; run again")
        return 1
    except bringing_pip.NoPip as error:
        say(f"{error}")
        return 1
    except OSError as error:
        say(f"{error.filename or CHECKOUT}: {error.strerror}: .venv cannot be made")
        return 1
    except KeyboardInterrupt:
        say("interrupted: .venv is not complete; the next run begins anew")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
