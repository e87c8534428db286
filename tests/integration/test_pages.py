"""Every block of every page is run or parsed, and prints what the page shows."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from page_blocks import blocks, every_page, same  # noqa: E402
from page_run import Servers, handled, run  # noqa: E402

from lockguard_lab.servers import PostgresServer, RedisServer  # noqa: E402

NOT_RUN_MAX = 43
"""How many blocks say why they are not run. It goes down: a new one takes the place of another."""

PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in every_page()}
TOOLS = ("redis-cli", "curl", "openssl")


@pytest.fixture(scope="module")
def servers():
    """Of this module alone: pages make roles and users, which a server's databases share."""
    with RedisServer() as redis_server, PostgresServer() as postgres_server:
        yield Servers(redis_server, postgres_server)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if "```" in text])
def test_a_page_prints_what_it_shows(page, servers):
    sessions = "".join(block.text for block in blocks(page, PAGES[page]) if block.language == "console")
    for tool in TOOLS:
        if f"$ {tool}" in sessions and shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    differences, _ = run(page, PAGES[page], servers)
    assert not differences, "\n".join([*differences, f"look, then: python scripts/pages.py --write {page}"])


def test_each_block_is_run_or_says_why_not():
    done = [
        handled(block)
        for page, text in PAGES.items()
        for block in blocks(page, text)
        if block.language != "setup"
    ]
    assert sum(words.startswith("not run") for words in done) <= NOT_RUN_MAX
    assert len(done) > 150


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```console\n$ echo one two\none three\n```", "something else than the page shows"),
        ("```console\n$ lockguard ls --no-such-option\n```", "ended with 2"),
        (
            "```console\n$ (setsid sleep 4242 > /dev/null 2>&1 &) \n```",
            "a block leaves a process behind: sleep 4242",
        ),
        ("```python\nraise ValueError('why')\n```", "ValueError: why"),
        (
            "```python\nprint('1')\n```\n<!-- printed -->\n```text\n2\n```",
            "something else than the page shows",
        ),
        ("<!-- not run: why -->\n```python\nfrom lockguard import NoSuchName\n```", "has no NoSuchName"),
        ("<!-- not run: why -->\n```python\nasync def (\n```", "invalid syntax"),
        ("```sql\nselect nothing from nowhere;\n```", "does not exist"),
        ('```json\n{"a": }\n```', "Expecting value"),
        ("```toml\na = \n```", "Invalid value"),
        ("```text\nwhat is this\n```", "a comment says why"),
        ("```\nwhat is this\n```", "no language"),
        ("<!-- run by test_nothing -->\n```text\nPING\n```", "there is no test test_nothing"),
        ("<!-- run by redis-cli -->\n```text\nNO SUCH\n```", "unknown command"),
        ("<!-- run by redis-cli -->\n```text\nACL SETUSER x on\n  +get\n```", "unknown command"),
    ],
)
def test_a_block_that_is_wrong_fails_its_page(text, says, servers):
    differences, _ = run("page.md", f"# A page\n\n{text}\n", servers)
    assert len(differences) >= 1
    assert says in differences[0]
    assert "page.md:" in differences[0]


def test_a_mistyped_comment_fails_its_page(servers):
    with pytest.raises(ValueError, match=r"page\.md:2: a comment says 'not ran"):
        run("page.md", "<!-- not ran: why -->\n```python\n```\n", servers)


def test_what_is_written_is_what_is_printed(servers):
    page = "1. In a list:\n\n   ```console\n   $ echo one; echo two\n   nothing\n   $ echo three\n   ```\n"
    differences, written = run("page.md", page, servers)
    assert len(differences) == 1
    assert written == page.replace("nothing", "one\n   two")
    assert run("page.md", written, servers) == ([], written)


def test_commands_share_a_directory_an_environment_and_servers(servers):
    page = """# A page

<!-- save as: program.py -->
```python
import os

print(os.environ["NAME"], os.environ["LOCKGUARD_REDIS_URL"])
```

```console
$ export NAME=mine LOCKGUARD_REDIS_URL=redis://localhost:6379/0
$ python program.py
mine redis://localhost:6379/0
$ psql -At -c 'select 1'
1
```
"""
    assert run("page.md", page, servers) == ([], page)
    assert run("page.md", "```sql\ncreate table t ();\n```\n", servers)[0] == []
    assert (
        run("page.md", "```sql\ncreate table t ();\n```\n", servers)[0] == []
    )  # each page has a new database


def test_numbers_that_differ_from_run_to_run_are_no_difference_and_words_are():
    shown = "held by vm:5999/Task-1 since 2026-11-21 05:11:52 under token 1795237912161801 for 14.2 s"
    assert same(shown, re.sub("1795237912161801", "1795237912161809", shown).replace("14.2", "3"))
    assert not same(shown, shown.replace("held", "wanted"))
    assert not same(shown, f"{shown}\nand more")
    assert same(f"...\n{shown}\n...", f"before\n{shown}\nafter")
    assert not same(f"...\n{shown}\n...", "before\nafter")
