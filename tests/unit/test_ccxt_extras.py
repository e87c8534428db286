"""A missing extra is named, and the local exchange comes without ccxt's weight."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "module", "extra"),
    [
        ("ccxt", "lockguard_ccxt", "ccxt"),
        ("aiohttp", "lockguard_lab.exchange", "testing"),
        ("click", "lockguard_lab.exchange.cli", "cli"),
        ("tenacity", "lockguard_tenacity", "tenacity"),
    ],
)
def test_a_missing_package_names_its_extra(package: str, module: str, extra: str) -> None:
    done = run(f"import sys; sys.modules[{package!r}] = None; import {module}")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith(f"pip install 'lockguard[{extra}]'")


def test_importing_does_not_import_ccxt() -> None:
    done = run("import sys, lockguard_ccxt, lockguard_lab.exchange.cli; print('ccxt' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr
