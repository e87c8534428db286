"""The figures as a table for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from lockguard_lab.bench.figures import Figures

__all__ = ["show"]


def show(figures: Figures, console: Console) -> None:
    """Print all figures."""
    console.print(_compared(figures))
    console.print(_counted(figures))
    about = figures.about
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    console.print(
        f"{about.topology}: {about.server}, Python {about.python} on {about.loop}, {about.machine},"
        f" {about.cores} cores, load {about.load_before:.1f} before; {versions};"
        f" medians of {about.sizes.rounds} rounds in turns",
        soft_wrap=True,
    )
    for peer, why in about.left_out.items():
        console.print(f"left out: {peer} ({why})", markup=False, soft_wrap=True)


def _compared(figures: Figures) -> Table:
    sizes = figures.about.sizes
    table = Table(title=f"lockguard, its limit and its peers, {figures.about.topology}")
    table.add_column("")
    table.add_column("lock + unlock, one task", justify="right")
    table.add_column(f"{sizes.tasks} tasks, {sizes.tasks} locks", justify="right")
    table.add_column("hand-off p50", justify="right")
    table.add_column("p99", justify="right")
    alone, together = figures.uncontended, figures.throughput
    ours = figures.hand_off
    table.add_row(
        "lockguard",
        _us(alone.lockguard_p50_us),
        _per_second(together.lockguard),
        _ms(ours.p50),
        _ms(ours.p99),
        style="bold",
    )
    table.add_row("bare socket, same scripts", _us(alone.limit_p50_us), _per_second(together.limit), "", "")
    for peer, handed in figures.hand_off_peers.items():
        table.add_row(
            peer,
            _us(alone.peers[peer]),
            _per_second(together.peers[peer]),
            _ms(handed.p50),
            _ms(handed.p99),
        )
    return table


def _counted(figures: Figures) -> Table:
    sizes, crowd, renewal, memory = figures.about.sizes, figures.waiters, figures.renewal, figures.memory
    waiters, leases = f"{sizes.waiters} waiters on one lock", f"{sizes.leases} held leases"
    table = Table(show_header=False, title="counted")
    table.add_row("commands per uncontended call", f"{figures.commands_per_call:g}")
    table.add_row(f"{waiters}: commands because of one release", f"{crowd.commands_per_release:.3f}")
    table.add_row("  commands per waiter and second", f"{crowd.commands_per_waiter_s:.4f}")
    table.add_row("  connections per process", f"{crowd.connections:g}")
    table.add_row("  served out of order", f"{crowd.fifo_inversions}")
    table.add_row(f"{leases}: writes per renewal", f"{renewal.writes_per_tick:g}")
    table.add_row("  share of one core at a ttl of 30 s", f"{renewal.cpu_share:.3%}")
    table.add_row("decorator over hold", f"{figures.decorator_us:.1f} us")
    table.add_row("bytes in Redis: a held lock", f"{memory.bytes_per_held_lock:.0f}")
    table.add_row("  a free lock, for seven days after its last use", f"{memory.bytes_per_free_lock:.0f}")
    table.add_row("  the same with a full history", f"{memory.bytes_per_free_lock_max:.0f}")
    table.add_row("  a waiter", f"{memory.bytes_per_waiter:.0f}")
    return table


def _us(value: float) -> str:
    return f"{value:.0f} us"


def _ms(value: float) -> str:
    return f"{value:.2f} ms"


def _per_second(value: float) -> str:
    return f"{value:,.0f}/s"
