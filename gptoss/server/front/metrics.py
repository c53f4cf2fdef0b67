"""Metrics of a front, and its replicas' with a label that says whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from gptoss.server.bodies import Bodies
from gptoss.server.connection_metrics import OfBodies, OfConnections
from gptoss.server.connections import Connections
from gptoss.server.front.router import STATES, Router


class FrontMetrics:
    """Counters of the front itself, and gauges of what its router counts."""

    def __init__(
        self, router: Router, bodies: Bodies, connections: Connections | None = None
    ) -> None:
        self._own = CollectorRegistry()
        if connections is not None:
            self._own.register(OfConnections(connections, "gptoss_front"))
        self._own.register(OfBodies(bodies, "gptoss_front"))
        self._requests = Counter(
            "gptoss_front_requests", "Requests by route and HTTP status.", ["route", "status"],
            registry=self._own,
        )  # fmt: skip
        self._own.register(_OfRouter(router))

    def answered(self, route: str, status: int) -> None:
        """A request has come to its end, a stream to that of its last event."""
        self._requests.labels(route, status).inc()

    def text(self, replicas: Sequence[str | None]) -> bytes:
        """All of them, in Prometheus' text format. replicas: what each said; None: nothing."""
        theirs = CollectorRegistry()
        theirs.register(_OfReplicas(replicas))
        return generate_latest(self._own) + generate_latest(theirs)


class _OfRouter(Collector):
    def __init__(self, router: Router) -> None:
        self._router = router

    def collect(self) -> Iterator[Metric]:
        router, labels = self._router, ["replica"]
        up = GaugeMetricFamily("gptoss_replica_up", "Whether it answers.", labels=labels)
        running = GaugeMetricFamily("gptoss_replica_running", "Requests there.", labels=labels)
        ended = CounterMetricFamily("gptoss_replica_ended", "How often it went.", labels=labels)
        for family, values in ((up, router.up), (running, router.requests), (ended, router.ended)):
            for replica, value in enumerate(values):
                family.add_metric([str(replica)], float(value))
            yield family
        states = GaugeMetricFamily(
            "gptoss_replica_state", "1 for the state it is in.", labels=["replica", "state"]
        )
        for replica, found in enumerate(router.state):
            for state in STATES:
                states.add_metric([str(replica), state], float(state == found))
        yield states


class _OfReplicas(Collector):
    def __init__(self, texts: Sequence[str | None]) -> None:
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        merged: dict[str, Metric] = {}
        for replica, text in enumerate(self._texts):
            for family in text_string_to_metric_families(text or ""):
                into = merged.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                )
                for sample in family.samples:
                    labels = {"replica": str(replica), **sample.labels}
                    into.samples.append(sample._replace(labels=labels))
        return merged.values()
