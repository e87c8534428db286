"""Runs ``lockguard doctor`` as an operator does, and carries out the remedies that it prints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from lockguard._cli.app import lockguard
from lockguard_lab.servers import find_postgres

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CODES = {0, 1, 3}
MEND_S = 60
NONE_OF_OURS = ("LOCKGUARD_REDIS_URL", "LOCKGUARD_DATABASE_URL", "LOCKGUARD_EXCHANGE_URL", "LOCKGUARD_CONFIG")


@dataclass
class Visit:
    """What the doctor said.

    Attributes:
        code: the exit code.
        told: the JSON.
    """

    code: int
    told: dict[str, Any]

    @property
    def amiss(self) -> list[dict[str, Any]]:
        """Warnings and errors."""
        return [one for one in self.told["findings"] if one["severity"] in {"warning", "error"}]

    @property
    def codes(self) -> set[str]:
        return {one["code"] for one in self.amiss}

    def of(self, code: str) -> dict[str, Any]:
        """The one finding of that code that is not ``ok``."""
        (found,) = [one for one in self.told["findings"] if one["code"] == code and one["severity"] != "ok"]
        assert found["why"]
        assert found["remedy"]
        return found


@dataclass
class Doctor:
    """A doctor for one set-up.

    Attributes:
        arguments: the servers.
        env: the environment of the doctor, and of its remedies beside their passwords.
        passwords: in the environment of remedies: REDISCLI_AUTH, PGUSER, PGPASSWORD.
    """

    arguments: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    passwords: Mapping[str, str] = field(default_factory=dict)

    def visit(self, *more: str) -> Visit:
        watch = () if "--watch" in more else ("--watch", "0s")
        arguments = ["doctor", "--json", *watch, *self.arguments, *more]
        ended = CliRunner(env={**dict.fromkeys(NONE_OF_OURS), **self.env}).invoke(lockguard, arguments)
        assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
        assert ended.exit_code in CODES, ended.output
        return Visit(ended.exit_code, json.loads(ended.stdout))

    def mend(self, findings: Iterable[Mapping[str, Any]]) -> None:
        """Paste each remedy into a shell."""
        for one in findings:
            assert not one["remedy"].startswith("#"), one
            paste(one["remedy"], {**self.env, **self.passwords})


def paste(line: str, env: Mapping[str, str]) -> str:
    """Run a line in a shell, with the programs that an operator has."""
    if shutil.which("redis-cli") is None and line.startswith("redis-cli"):
        pytest.skip("redis-cli is not installed: apt-get install redis-tools")
    found = [str(Path(sys.executable).parent), str(find_postgres().path.parent), os.environ["PATH"]]
    # A clean-up leaves its backup where it runs.
    with TemporaryDirectory() as scratch:
        done = subprocess.run(
            ["sh", "-c", line],
            env={**os.environ, **env, "PATH": ":".join(found)},
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=MEND_S,
            check=False,
        )
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    assert "ERR" not in done.stdout, (line, done.stdout)
    return done.stdout
