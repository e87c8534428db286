"""The code on the page about observers runs as printed."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import get_args

from prometheus_client import REGISTRY

from lockguard import LossReason
from lockguard._lease import Grant, Resource, Token, new_grant_id
from lockguard.events import Event, Lost, Released
from lockguard_positions import PositionEvent

PAGE = (Path(__file__).parents[2] / "docs/howto/observe.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
GRANT = Grant(Resource("binance:A"), new_grant_id(), Token(41), "vm:5999/Task-1", "open long", 10_000)


def test_every_block_runs_and_the_observer_of_ten_lines_tells_what_it_says(caplog):
    names: dict = {}
    try:
        for block in BLOCKS:
            # Nothing is connected before a guard is used, and the page's port may be in use.
            exec(block.replace("start_http_server(9464", "start_http_server(0"), names)
        observer = names["LongHolds"]()
        observer.on(Released(GRANT, 1_500.0, found=True))
        observer.on(Released(GRANT, 500.0, found=True))
        observer.on(Lost(GRANT, LossReason.EXPIRED))
        assert [record.getMessage() for record in caplog.records] == [
            "open long held binance:A for 1500 ms",
            "open long lost binance:A: expired",
        ]
    finally:
        if "metrics" in names:
            REGISTRY.unregister(names["metrics"])
            names["server"].shutdown()
            names["server"].server_close()
            names["thread"].join()
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 12


def test_the_record_that_is_shown_is_the_one_that_is_written():
    names: dict = {"logging": logging}
    exec(next(block for block in BLOCKS if "class Json" in block), names)
    (shown,) = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    from lockguard.observe import LogObserver

    lines = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(names["Json"]().format(record))

    logger, handler = logging.getLogger("lockguard"), Kept()
    logger.addHandler(handler)
    try:
        LogObserver().on(Lost(GRANT, LossReason.EXPIRED))
    finally:
        logger.removeHandler(handler)
    assert json.loads(lines[0]) == json.loads(shown)


def test_the_page_has_every_event():
    told = set(re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE))
    assert {event.__name__ for event in (*get_args(Event), *get_args(PositionEvent))} - told == set()
