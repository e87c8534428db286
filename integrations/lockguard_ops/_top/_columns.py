"""The columns of the table of locks: what each shows, how it sorts, and which of them fit a width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lockguard_ops._top._writing import span

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lockguard_ops._installation import LockView
    from lockguard_ops._top._seen import Seen

__all__ = ["COLUMNS", "SORTS", "Column", "Order", "fitting", "state_of"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: its name.
        title: its heading.
        least: how narrow it may be.
        share: its share of the width that is left over; 0: it stays as narrow as that.
        stays: which columns go first where there is no room; the highest stays longest.
        tell: its text for a lock.
        right: whether it is aligned on the right.
        middle: whether it is cut in the middle: both ends of a resource, and host and task, tell most.
    """

    name: str
    title: str
    least: int
    share: int
    stays: int
    tell: Callable[[LockView], str]
    right: bool = False
    middle: bool = False


def state_of(view: LockView) -> str:
    """Who holds it, or why nothing does."""
    lock = view.lock
    if lock.held:
        return lock.holder
    return f"(closed for {span(lock.closed_ms)})" if lock.closed_ms else "(free)"


def _if_held(tell: Callable[[LockView], str]) -> Callable[[LockView], str]:
    return lambda view: tell(view) if view.lock.held else ""


def _late(view: LockView) -> str:
    late = view.lock.renewal_late_ms
    return "" if not late else f"{span(late)}!" if late < 60_000 else f"{late // 60_000}m!"


def _fence(view: LockView) -> str:
    if view.fence is None:
        return "-"
    return f"{view.fence.value}!" if view.fence.value == "ahead" else view.fence.value


COLUMNS = (
    Column("resource", "RESOURCE", 16, 3, 9, lambda view: view.lock.resource, middle=True),
    Column("holder", "HOLDER", 17, 3, 7, state_of, middle=True),
    Column("operation", "OPERATION", 9, 2, 2, _if_held(lambda view: view.lock.operation or "-")),
    Column("token", "TOKEN", 16, 0, 1, lambda view: str(view.lock.token or ""), right=True),
    Column("age", "AGE", 5, 0, 8, _if_held(lambda view: span(view.lock.age_ms)), right=True),
    Column("left", "LEFT", 5, 0, 5, _if_held(lambda view: span(view.lock.remaining_ms)), right=True),
    Column("late", "LATE", 5, 0, 4, _if_held(_late), right=True),
    Column("waiters", "WAIT", 4, 0, 6, lambda view: str(len(view.lock.waiters) or ""), right=True),
    Column("wanted", "WANT", 4, 0, 3, lambda view: "yes" if view.lock.wanted else "", right=True),
    Column("fence", "FENCE", 6, 0, 3, _fence, right=True),
)


def fitting(width: int, sorted_by: str) -> list[tuple[Column, int]]:
    """The columns that fit, each with its width; one cell is between two.

    The resource is always there, and that which sorts goes last.
    """

    def stays(column: Column) -> tuple[bool, bool, int]:
        return column is COLUMNS[0], column.name == sorted_by, column.stays

    shown = list(COLUMNS)
    while len(shown) > 1 and sum(column.least + 1 for column in shown) - 1 > width:
        shown.remove(min(shown, key=stays))
    spare = max(width - sum(column.least + 1 for column in shown) + 1, 0)
    widths = {column.name: min(column.least, width) for column in shown}
    shares = sum(column.share for column in shown)
    for column in shown:
        widths[column.name] += spare * column.share // shares
    widths[shown[0].name] += width - sum(widths.values()) - len(shown) + 1
    return [(column, widths[column.name]) for column in shown]


@dataclass(frozen=True, slots=True)
class Order:
    """How the locks are sorted.

    Attributes:
        by: the column.
        backwards: whether against its usual direction.
    """

    by: str = "age"
    backwards: bool = False

    @property
    def down(self) -> bool:
        """Whether the highest comes first."""
        return SORTS[self.by][1] != self.backwards

    def then(self, by: str) -> Order:
        """The order after the key of a column was pressed: pressed again, it turns round."""
        return Order(by, backwards=by == self.by and not self.backwards)

    def sort(self, seen: Seen, locks: Iterable[LockView]) -> list[LockView]:
        """The locks of ``seen`` in this order; those with the same value by their names, free ones last."""
        key, _ = SORTS[self.by]
        by_name = sorted(locks, key=lambda view: view.lock.resource)
        by_key = sorted(by_name, key=lambda view: key(seen, view), reverse=self.down)
        held_matters = self.by in _OF_THE_HELD
        return sorted(by_key, key=lambda view: not view.lock.held) if held_matters else by_key


SORTS: dict[str, tuple[Callable[[Seen, LockView], Any], bool]] = {
    "age": (lambda seen, view: seen.age(view), True),
    "waiters": (lambda _, view: len(view.lock.waiters), True),
    "left": (lambda _, view: view.lock.remaining_ms, False),
    "late": (lambda _, view: view.lock.renewal_late_ms, True),
    "resource": (lambda _, view: view.lock.resource, False),
}
"""What a column sorts by, and whether the highest comes first."""

_OF_THE_HELD = ("age", "left", "late")
