"""``python -m lockguard_lab.one_account``: every case, one line for each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from lockguard import _interrupt as interrupt
from lockguard_lab.one_account.freqtrade import freqtrades
from lockguard_lab.one_account.plain_bot import plain_bots
from lockguard_lab.one_account.race import GUARDS, PAIRS, Bought, End, Guard, race

__all__ = ["main"]

_ENDS: dict[End, str] = {"": "both run", "SIGSTOP": "one stopped", "SIGKILL": "one killed"}


def main() -> None:
    """Run the cases."""
    parser = argparse.ArgumentParser(prog="python -m lockguard_lab.one_account", description=main.__doc__)
    parser.add_argument(
        "--python", type=Path, help="an interpreter that has freqtrade; without it: plain bots"
    )
    parser.add_argument("--recipe", type=Path, default=Path("docs/examples/one_account.py"), help="its file")
    parser.add_argument("--keep", type=Path, help="a folder for freqtrade's logs")
    parser.add_argument("--guard", choices=list(GUARDS), action="append", help="only this guard")
    parser.add_argument("--end", choices=list(_ENDS), action="append", help="only this end of the first")
    options = parser.parse_args()

    async def one(guard: Guard, end: End) -> Bought:
        bots = (
            freqtrades(options.python, options.recipe, guard, options.keep)
            if options.python
            else plain_bots(guard)
        )
        async with bots as stage:
            return await race(stage, end)

    for end in get_args(End):
        for guard in GUARDS:
            if end in (options.end or _ENDS) and guard in (options.guard or GUARDS):
                found = interrupt.run(one(guard, end))
                sys.stdout.write(
                    f"{_ENDS[end]:12} {GUARDS[guard]:36} {found.doubled:2} of {len(PAIRS)} doubled,"
                    f" {sum(found.entries.values())} orders, positions of {sum(found.positions.values()):g},"
                    f" all bought after {found.took_s:.1f} s\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
