"""The scripts make ``.venv`` also where it is the environment that is activated, and without ensurepip."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

CHECKOUT = Path(__file__).resolve().parents[2]


def test_an_environment_is_never_made_with_a_python_that_lies_in_it() -> None:
    """It was removed first, and then there was nothing left to make it with."""
    ask = "import sys; sys.path.insert(0, 'scripts'); import environment; print(environment.interpreter())"
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=CHECKOUT, check=True, capture_output=True, text=True
    )
    assert sys.prefix != sys.base_prefix  # else it shows nothing
    assert not Path(done.stdout.strip()).is_relative_to(sys.prefix)
    assert Path(done.stdout.strip()).exists()


@pytest.fixture
def bringing_pip(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, in a Python that has neither ensurepip nor pip."""
    monkeypatch.syspath_prepend(CHECKOUT / "scripts")
    import bringing_pip

    find = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name in {"pip", "ensurepip"} else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    assert bringing_pip.is_needed()
    return bringing_pip


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An environment without pip, as Debian's Python makes one where python3-venv is not installed."""
    venv.create(tmp_path / "bare", with_pip=False)
    return tmp_path / "bare" / "bin" / "python"


def pip_in(python: Path) -> bool:
    asked = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    return asked.returncode == 0 and str(python.parents[1]) in asked.stdout


def test_a_wheel_of_the_distribution_brings_pip(
    bringing_pip: ModuleType, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensurepip = pytest.importorskip("ensurepip", reason="Debian splits it off, and its wheels with it")
    monkeypatch.setattr(bringing_pip, "INSTALLED", Path(ensurepip.__file__).parent / "_bundled")
    assert not pip_in(bare)
    bringing_pip.bring(sys.executable, bare)
    assert pip_in(bare)


def test_the_package_of_the_distribution_brings_pip_to_a_user_without_root(
    bringing_pip: ModuleType, bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bringing_pip, "INSTALLED", tmp_path / "none")
    try:
        bringing_pip.bring(sys.executable, bare)
    except bringing_pip.NoPip:
        pytest.skip("there is no apt-get here, or it reaches no mirror")
    assert pip_in(bare)


def test_where_there_is_no_way_one_line_names_the_command(
    bringing_pip: ModuleType, bare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bringing_pip, "INSTALLED", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        bringing_pip.NoPip, match=r"apt-get install python3-venv as root, or install uv, and run again$"
    ):
        bringing_pip.bring(sys.executable, bare)
