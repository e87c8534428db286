"""Runs tests of a copy, each time in a fork of a process that has everything imported already.

In the fork, the modules that a mutant changes, and all that import them, are imported anew. One Redis and
one Postgres serve all tests: imports and servers are most of the time of a test process. It reads requests,
one JSON object a line, and answers each by one line. Run as ``python -m lockguard_lab.mutants.nursery
DIRECTORY``, with the copy in ``PYTHONPATH``.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lockguard_lab.child_process import begin_as_child
from lockguard_lab.servers import PostgresServer, RedisServer

_IMPORTED = (
    *(
        "aiohttp",
        "asyncpg",
        "click",
        "hiredis",
        "hypothesis",
        "psutil",
        "psycopg",
        "psycopg_pool",
        "redis.asyncio",
    ),
    *(
        "pytest_asyncio.plugin",
        "pytest_cov.plugin",
        "pytest_timeout",
        "rich.console",
        "rich.table",
        "uvloop",
        "lupa",
    ),
    *("sqlalchemy.ext.asyncio", "tenacity", "ccxt.async_support", "_hypothesis_pytestplugin"),
    *(
        "lockguard.testing",
        "lockguard_asyncpg",
        "lockguard_ccxt",
        "lockguard_positions",
        "lockguard_lab.exchange",
    ),
    *("lockguard_lab.sim.run", "lockguard_bot"),
)


class Seen:
    """A pytest plugin: gives the servers that run already, orders tests, and notes what failed."""

    def __init__(self, servers: Mapping[str, object], request: Mapping[str, Any]) -> None:
        self._servers = servers
        self._first: list[str] = request["first"]
        self._left_out: list[str] = request["left_out"]
        self.failed: list[str] = []
        self.passed: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> object:
        """Give a server that runs already where the tests would start one for the session."""
        server = self._servers.get(fixturedef.argname)
        if server is None or fixturedef.scope != "session":
            return None
        fixturedef.cached_result = (server, fixturedef.cache_key(request), None)
        return server

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what is not asked for, and begin with what failed before."""
        left_out = [
            item for item in items if any(fnmatchcase(item.nodeid, pattern) for pattern in self._left_out)
        ]
        config.hook.pytest_deselected(items=left_out)
        ranks = {name: rank for rank, name in enumerate(self._first)}
        items[:] = sorted(
            (item for item in items if item not in left_out),
            key=lambda item: ranks.get(item.nodeid, len(ranks)),
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what failed."""
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file of tests that cannot be imported has seen the mutant too."""
        if report.failed:
            self.failed.append(report.nodeid)


def _forget(modules: list[str]) -> None:
    """Have modules imported anew, also by those who ask their package for them."""
    for name in modules:
        if sys.modules.pop(name, None) is not None:
            package, _, last = name.rpartition(".")
            if package in sys.modules:
                vars(sys.modules[package]).pop(last, None)


def _child(copy: Path, servers: Mapping[str, object], request: Mapping[str, Any]) -> NoReturn:
    code, answer = 70, {"code": 70, "failed": ["(it cannot be imported)"], "passed": []}
    try:
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(copy)
        _forget(request["changed"])
        importlib.import_module("lockguard")
        seen = Seen(servers, request)
        answer = {"code": 70, "failed": seen.failed, "passed": seen.passed}  # pytest may fail after its tests
        options = [
            "-q",
            *request["options"],
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",
            "--no-header",
            "--tb=short",
        ]
        options += ["-p", "no:cacheprovider", "-p", "no:xdist"]
        timeout = f"--timeout={request['test_timeout_s']:g}"
        answer["code"] = code = int(pytest.main([*options, timeout, *request["tests"]], plugins=[seen]))
    except BaseException:  # noqa: BLE001 - such as a syntax error of the product: the mutant was seen
        traceback.print_exc()
    finally:
        Path(request["answer"]).write_text(json.dumps(answer), "utf-8")
        sys.stdout.flush()
        os._exit(code)


def _run(copy: Path, servers: Mapping[str, object], request: Mapping[str, Any]) -> dict[str, Any]:
    Path(request["answer"]).unlink(missing_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _child(copy, servers, request)
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    in_time = bool(poll.poll(request["timeout_s"] * 1000))
    os.close(ended)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # also what a test left behind
    os.waitpid(pid, 0)
    if not in_time:
        return {"code": -1, "failed": ["(timeout)"], "passed": []}
    try:
        answer: dict[str, Any] = json.loads(Path(request["answer"]).read_text("utf-8"))
    except FileNotFoundError:  # it ended itself, or was killed
        return {"code": 71, "failed": [], "passed": []}
    return answer


def main() -> None:
    """Answer requests until there are no more."""
    copy = Path(sys.argv[1])
    for name in _IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    product = str(sys.modules["lockguard"].__file__)
    assert product.startswith(str(copy)), product
    with RedisServer() as redis_server, PostgresServer(max_connections=200) as postgres_server:
        servers = {"redis_server": redis_server, "postgres_server": postgres_server}
        for line in sys.stdin:
            print(json.dumps(_run(copy, servers, json.loads(line))), flush=True)  # noqa: T201


if __name__ == "__main__":
    begin_as_child()
    main()
