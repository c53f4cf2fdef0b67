"""What Prometheus asks for: how many requests, how fast, how full the engine is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gptoss.server.connection_metrics import OfBodies, OfConnections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gptoss.engine import Engine
    from gptoss.request import Timing
    from gptoss.server.bodies import Bodies
    from gptoss.server.connections import Connections

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """Counters of one server. Names and units follow Prometheus' conventions."""

    def __init__(
        self, engine: Engine, bodies: Bodies, connections: Connections | None = None
    ) -> None:
        self._registry = CollectorRegistry()
        if connections is not None:
            self._registry.register(OfConnections(connections))
        self._registry.register(OfBodies(bodies))
        self._requests = Counter(
            "gptoss_requests", "Requests by route and HTTP status.", ["route", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._tokens = Counter(
            "gptoss_tokens", "Tokens read (prompt) and written (completion).", ["kind"],
            registry=self._registry,
        )  # fmt: skip
        self._cancelled = Counter(
            "gptoss_cancelled_texts", "Texts that were not written to their end.",
            registry=self._registry,
        )  # fmt: skip
        self._queue = self._histogram("gptoss_queue_seconds", "Until a request's first step.")
        self._first = self._histogram("gptoss_time_to_first_token_seconds", "Queueing included.")
        self._each = self._histogram(
            "gptoss_time_per_output_token_seconds", "After the first one.", _TOKEN_SECONDS
        )
        self._registry.register(_OfEngine(engine))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = _SECONDS) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self._registry)

    def answered(self, route: str, status: int) -> None:
        """A request has come to its end, a stream to that of its last event."""
        self._requests.labels(route, status).inc()

    def generated(
        self, timings: Iterable[Timing], cancelled: Sequence[tuple[int, int]] = ()
    ) -> None:
        """Texts that came to their end; and of those that were cancelled, the tokens of the prompt
        that were read, and those that were written. These tokens were work, too.
        """
        for read, written in cancelled:
            self._cancelled.inc()
            self._tokens.labels("prompt").inc(read)
            self._tokens.labels("completion").inc(written)
        for timing in timings:
            self._tokens.labels("prompt").inc(timing.prompt_tokens)
            self._tokens.labels("completion").inc(timing.completion_tokens)
            self._queue.observe(timing.queue_seconds)
            self._first.observe(timing.ttft)
            if timing.completion_tokens > 1:
                self._each.observe(timing.decode_seconds / (timing.completion_tokens - 1))

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)


class _OfEngine:
    """Gauges that are read when they are asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        info = self._engine.info()
        pages = GaugeMetricFamily("gptoss_kv_pages", "Pages of the cache.", labels=["state"])
        pages.add_metric(["free"], info["kv_pages_free"])
        pages.add_metric(["used"], info["kv_pages"] - info["kv_pages_free"])
        pages.add_metric(["kept"], info["kv_pages_kept"])  # free ones that the prefix cache knows
        yield pages
        sequences = GaugeMetricFamily("gptoss_sequences", "Texts in work.", labels=["state"])
        for state in ("running", "waiting"):
            sequences.add_metric([state], info[state])
        yield sequences
        for name, text in (
            ("steps", "Steps of the model; tokens of all requests share them."),
            ("preemptions", "Requests sent back to the queue for want of pages."),
        ):
            yield CounterMetricFamily(f"gptoss_{name}", text, value=info[name])
        prompts = CounterMetricFamily(
            "gptoss_admitted_prompt_tokens",
            "Tokens of admitted prompts, by whether the prefix cache had them.",
            labels=["cache"],
        )
        prompts.add_metric(["hit"], info["cached_tokens"])
        prompts.add_metric(["miss"], info["prompt_tokens"] - info["cached_tokens"])
        yield prompts
