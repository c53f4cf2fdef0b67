"""How many connections a server has, why it let others go, and what it holds of their bodies, for
Prometheus.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gptoss.server.bodies import Bodies
from gptoss.server.connections import REASONS, Connections


class OfConnections(Collector):
    """Read when they are asked for."""

    def __init__(self, connections: Connections, prefix: str = "gptoss") -> None:
        self._connections = connections
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        name = f"{self._prefix}_connections"
        yield GaugeMetricFamily(name, "Open ones.", value=len(self._connections))
        closed = CounterMetricFamily(
            f"{name}_closed",
            "That were let go: head or body not complete, answer not read, to make room, refused.",
            labels=["reason"],
        )
        for reason in REASONS:
            closed.add_metric([reason], self._connections.closed[reason])
        yield closed


class OfBodies(Collector):
    """The same for bodies."""

    def __init__(self, bodies: Bodies, prefix: str = "gptoss") -> None:
        self._bodies = bodies
        self._prefix = prefix

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            f"{self._prefix}_body_bytes",
            "Of bodies that are being read, without the first 64 KiB of each.",
            value=self._bodies.held,
        )
