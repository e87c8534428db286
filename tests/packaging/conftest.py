"""The wheel as a release would be, an environment that has little else, and containers of the checkout."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.packaging.composition import ASKED_S, CHECKOUT, Composition

if TYPE_CHECKING:
    from collections.abc import Iterator

COPIED_FOLDERS = ("docker", "requirements", "lockguard", "integrations", "lab")
COPIED_FILES = ("docker-compose.yml", ".dockerignore", "pyproject.toml", "README.md", "LICENSE")


def run(*argv: str | Path, cwd: Path = CHECKOUT) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(project: Path, target: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", target, cwd=project)
    (built,) = target.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(CHECKOUT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def lab_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(CHECKOUT / "lab", tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", target)
    (built,) = target.glob("*.tar.gz")
    return built


@pytest.fixture(scope="session")
def bare_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the wheel and the core's own dependencies, without any extra."""
    environment = tmp_path_factory.mktemp("bare")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel),
    )
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for name in ("redis", "hiredis", "async_timeout"):  # the last one for Python before 3.11.3
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            (packages / name).symlink_to(spec.submodule_search_locations[0])
    return python


@pytest.fixture(scope="session")
def engine() -> None:
    """Skip where no engine answers, or where it has no compose."""
    for command in (("docker", "info"), ("docker", "compose", "version")):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ASKED_S)
        except (OSError, subprocess.TimeoutExpired):
            done = None
        if done is None or done.returncode != 0:
            pytest.skip(f"no container engine answers `{' '.join(command)}`")


@pytest.fixture(scope="session")
def checkout_copy(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the file and its images are made of; passwords are written there, not into the checkout."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED_FOLDERS:
        shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED_FILES:
        shutil.copy2(CHECKOUT / name, folder)
    return folder


@pytest.fixture
def compose(checkout_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Composition]:
    """A composition that nothing has been started of. There is one at a time, however many processes test."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    with (shared / "compose.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (checkout_copy / ".env").unlink(missing_ok=True)
        composition = Composition(checkout_copy)
        try:
            yield composition
        finally:
            (checkout_copy / ".env").touch()
            composition.env |= {
                f"LOCKGUARD_{name}_PASSWORD": "x" for name in ("REDIS", "POSTGRES", "GRAFANA")
            }
            composition.remove()
