"""The scripts make ``.venv`` also where it is the environment that is activated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
