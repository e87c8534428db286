"""Readings of an installation as a collector of prometheus_client.

A scrape comes in a thread of the HTTP server and is answered from the event loop in which the servers are
read. A reading serves all scrapes for a few seconds, and there is one at a time, so that no number of
scrapers makes more work for the servers. It ends in time: a scrape that hangs tells nothing at all.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lockguard._clock import SYSTEM_CLOCK, Clock
from lockguard_ops import _exporter_catalog as the
from lockguard_ops._exporter_catalog import EXPORTED
from lockguard_ops._figures import Figures, Reading

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family

    from lockguard_metrics._catalog import Metric

__all__ = ["InstallationCollector"]

_OLD_S = 30.0
"""Seconds for which the last reading is shown while there is none in time."""


class InstallationCollector(Collector):
    """Shows an installation. It is made in the event loop that reads it.

    Args:
        figures: reads the servers.
        every: how long a reading is shown before the servers are read again.
        within: how long a scrape waits for a reading.
        tell: called with one line when a source cannot be read any more, and when it can again.
        clock: measures the age of a reading.
    """

    def __init__(
        self,
        figures: Figures,
        *,
        every: timedelta,
        within: timedelta,
        tell: Callable[[str], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._figures = figures
        self._every_s = every.total_seconds()
        self._within_s = within.total_seconds()
        self._tell = tell
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._last: Reading | None = None
        self._reading: asyncio.Task[Reading] | None = None
        self._troubles: dict[str, str] = {}

    def describe(self) -> Iterable[Family]:
        """The names of all metrics."""
        return [_family(metric) for metric in EXPORTED]

    def collect(self) -> Iterator[Family]:
        """All metrics, of the last reading or a new one. ``lockguard_up`` is 0 if there is none in time."""
        waited_for = asyncio.run_coroutine_threadsafe(self._current(), self._loop)
        late = False
        try:
            reading: Reading | None = waited_for.result(self._within_s)
        except (TimeoutError, concurrent.futures.CancelledError):
            waited_for.cancel()
            reading, late = self._last, True
        values: dict[Metric, Mapping[tuple[str, ...], float]] = {}
        age_s = 0.0 if reading is None else max(0.0, self._clock.now() - reading.at)
        if reading is not None and not (late and age_s > _OLD_S):
            values = {**reading.values, the.READING_AGE: {(): age_s}}
        if late:
            values[the.UP] = {(): 0.0}
        for metric in EXPORTED:
            family = _family(metric)
            for labels, value in values.get(metric, {}).items():
                family.add_metric(labels, value)
            yield family

    async def _current(self) -> Reading:
        last = self._last
        if last is not None and self._clock.now() - last.at < self._every_s:
            return last
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="lockguard-exporter-reading")
        # The reading goes on for the next scrape if this one is given up.
        return await asyncio.shield(self._reading)

    async def _read(self) -> Reading:
        self._last = reading = await self._figures.read()
        for source in self._troubles.keys() - reading.troubles.keys():
            self._tell(f"{source} can be read again")
        for source, why in reading.troubles.items():
            if source not in self._troubles:
                self._tell(f"{source} cannot be read: {why}")
        self._troubles = dict(reading.troubles)
        return reading

    async def aclose(self) -> None:
        """End a reading that is under way."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])


def _family(metric: Metric) -> GaugeMetricFamily | CounterMetricFamily:
    if metric.kind == "counter":
        return CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    return GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels, unit=metric.unit)
