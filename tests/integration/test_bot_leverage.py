"""The option ``leverage`` from the command line to the exchange."""

from __future__ import annotations

from pathlib import Path

from lockguard_lab.exchange import Fault, FaultKind, Operation, connect
from tests.integration.test_bot import OPEN, Stage, lines, stage

__all__ = ["stage"]


async def test_the_leverage_that_was_asked_for_is_set_before_the_entry_and_once(
    stage: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "signals.jsonl"
    close = {"id": "c1", "action": "close", "symbol": "APTUSDT"}
    file.write_text(lines(OPEN, close, {**OPEN, "id": "s2"}))
    done = await stage.run(
        "--once", "--json", "--at-once", "1", "--signals", str(file), "--option", "leverage=7"
    )
    assert done.outcomes() == {"s1": "opened", "c1": "closed", "s2": "opened"}
    wanted = {Operation.LEVERAGE, Operation.CREATE_ORDER}
    sent = [one.operation for one in stage.exchange.record().requests if one.operation in wanted]
    assert sent == [Operation.LEVERAGE, *[Operation.CREATE_ORDER] * 3]
    client = connect(stage.exchange.url)
    try:
        (position,) = await client.fetch_positions(["APT/USDT:USDT"], {"useV2": True})
    finally:
        await client.close()
    assert position["leverage"] == 7


async def test_a_leverage_that_the_exchange_refuses_refuses_the_signal_before_the_entry(
    stage: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "signals.jsonl"
    file.write_text(lines(OPEN))
    stage.exchange.inject(
        Fault(FaultKind.REJECTED, Operation.LEVERAGE, code=-4028, message="Leverage is not valid")
    )
    done = await stage.run("--once", "--json", "--signals", str(file), "--option", "leverage=150")
    assert done.outcomes() == {"s1": "refused"}
    assert stage.exchange.record().entries("APTUSDT") == ()
