"""The examples of the page that says where a guard lives, in the frameworks themselves."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading

import pytest

from lockguard import ConfigurationError, sync
from tests.integration.examples import EXAMPLES, Stage

LOCK = "lockguard:{binance:APTUSDT}"


async def test_one_guard_and_its_fence_serve_two_runs_of_asyncio(redis_url, example_database, database_url):
    async with Stage(redis_url, database_url) as stage:
        done = await stage.example("asyncio_run_twice.py")
        assert await done.ended() == 0, done.lines
        assert done.lines == []
    assert await example_database.fetchval("select count(*) from beats where process = $1", done.pid) == 2


async def test_one_guard_serves_each_tests_own_loop_and_unit_tests_need_no_server(redis_url, tmp_path):
    async with Stage(redis_url) as stage:
        words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", f"--rootdir={tmp_path}")
        done = await stage.run(sys.executable, *words, EXAMPLES / "test_bot.py")
        assert await done.ended() == 0, "\n".join(done.lines)
        assert done.said("3 passed") == 1, done.lines


ON_UVLOOP = """
import uvloop

def pytest_asyncio_loop_factories():
    return {"uvloop": uvloop.new_event_loop}
"""
WITH_ANYIO = """
import pytest

@pytest.fixture
def anyio_backend():
    return "asyncio"
"""


@pytest.mark.parametrize(
    ("plugin", "conftest"), [("asyncio", ""), ("asyncio", ON_UVLOOP), ("anyio", WITH_ANYIO)], ids=str
)
async def test_a_bots_tests_need_no_server(plugin, conftest, tmp_path):
    text = (EXAMPLES / "test_bot_without_servers.py").read_text(encoding="utf-8")
    if plugin == "anyio":
        text = text.replace("pytest.mark.asyncio", "pytest.mark.anyio")
    (tmp_path / "test_bot.py").write_text(text, encoding="utf-8")
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    other = () if plugin == "asyncio" else ("-p", "no:asyncio", "-W", "ignore::pytest.PytestConfigWarning")
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *other)
    async with Stage("redis://127.0.0.1:1/0") as stage:
        done = await stage.run(sys.executable, *words, tmp_path / "test_bot.py")
        assert await done.ended() == 0, "\n".join(done.lines)
    assert done.said("5 passed") == 1, done.lines


def test_threads_that_gevent_has_replaced_are_refused(monkeypatch):
    """No thread of theirs runs while a body works, so nothing would renew the lease."""
    guard = sync.LockGuard.in_memory()
    monkeypatch.setattr(threading, "get_ident", lambda: 1)
    with pytest.raises(ConfigurationError, match="gevent or eventlet"), guard.hold("binance:APTUSDT"):
        raise AssertionError("the body ran")


# --- notebooks ---


@pytest.fixture
def notebook(redis_url, monkeypatch):
    """Runs cells in a kernel, one after the other."""
    for name, value in Stage(redis_url).environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCKGUARD_TTL", "1s")
    return lambda *cells: Notebook(cells)


class Notebook:
    def __init__(self, cells):
        # Not above: it makes parsers for seconds, in each process that collects the tests.
        import nbformat
        from nbclient import NotebookClient

        self.book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        self.client = NotebookClient(self.book, timeout=60, kernel_name="python3")

    async def __aenter__(self):
        self._stack = contextlib.AsyncExitStack()
        await self._stack.enter_async_context(self.client.async_setup_kernel())
        return self

    async def __aexit__(self, *exc):
        await self._stack.__aexit__(*exc)

    async def run(self, number):
        """What a cell printed."""
        cell = await self.client.async_execute_cell(self.book.cells[number], number)
        return "".join(output.get("text", "") for output in cell.outputs)


def refused(why):
    from nbclient.exceptions import CellExecutionError

    return pytest.raises(CellExecutionError, match=why)


def example_cells():
    text = (EXAMPLES / "notebook.py").read_text(encoding="utf-8")
    return ["# %%" + cell for cell in text.split("# %%")[1:]]


async def test_a_notebook_holds_a_lease_in_a_cell_and_over_several(notebook, redis_server):
    async with notebook(*example_cells()) as book:
        await book.run(0)
        assert "held, token" in await book.run(1)
        assert not redis_server.command("EXISTS", LOCK)
        await book.run(2)
        await until_renewed(redis_server, 3)
        assert "still held" in await book.run(3)
        await book.run(4)
        assert not redis_server.command("EXISTS", LOCK)


async def until_renewed(redis_server, times):
    async with asyncio.timeout(30):
        while int(redis_server.command("HGET", LOCK, "renewals") or 0) < times:
            await asyncio.sleep(0.01)


WAITS = """
async with guard.hold("binance:APTUSDT"):
    await asyncio.sleep(600)
"""
ENTERED = """
hold = guard.hold("binance:APTUSDT")
lease = await hold.__aenter__()
"""


async def test_an_interrupted_cell_releases_and_a_killed_kernel_keeps_the_lock_for_ttl(
    notebook, redis_server
):
    async with notebook("import asyncio\n" + example_cells()[0], WAITS, WAITS) as book:
        await book.run(0)
        cell = asyncio.create_task(book.run(1))
        await until_renewed(redis_server, 1)
        await book.client.km.interrupt_kernel()
        with refused(r"CancelledError|KeyboardInterrupt"):
            await cell
        assert not redis_server.command("EXISTS", LOCK)

        cell = asyncio.create_task(book.run(2))
        await until_renewed(redis_server, 1)
        await book.client.km.restart_kernel(now=True)
        assert 0 <= redis_server.command("PTTL", LOCK) <= 1000
        async with asyncio.timeout(10):
            while redis_server.command("EXISTS", LOCK):
                await asyncio.sleep(0.01)
        cell.cancel()
        await asyncio.wait([cell])


async def test_a_hold_that_a_cell_enters_and_does_not_leave_ends_with_the_cell(notebook, redis_server):
    async with notebook(example_cells()[0], ENTERED, "lease.ensure()") as book:
        await book.run(0)
        await book.run(1)
        with refused(r"LeaseLost.*abandoned"):
            await book.run(2)
        assert not redis_server.command("EXISTS", LOCK)
