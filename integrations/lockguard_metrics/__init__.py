"""Metrics and traces of leases, orders and positions: Prometheus and OpenTelemetry.

Needs ``pip install 'lockguard[metrics]'``.
"""

from __future__ import annotations

from importlib.util import find_spec

if _missing := [name for name in ("prometheus_client", "opentelemetry") if find_spec(name) is None]:
    raise ImportError(f"lockguard_metrics needs {', '.join(_missing)}; pip install 'lockguard[metrics]'")

from lockguard_metrics._opentelemetry import OpenTelemetryObserver
from lockguard_metrics._prometheus import PrometheusObserver

__all__ = ["OpenTelemetryObserver", "PrometheusObserver"]
