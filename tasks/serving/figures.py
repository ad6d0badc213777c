"""What Prometheus reads at /metrics: requests, latency, queue, batch, tokens, the model's version."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from model.apps.engine import Figures
from tasks.serving.models import Served

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
Running = Callable[[], list[Served]]  # the model that answers first, then those that still finish their rows


class ServerFigures:
    """The server's own counters, and the engines' read when somebody asks."""

    def __init__(self, running: Running) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "unmask_requests",
            "Chat requests by HTTP status; 499: the client went away",
            ["status"],
            registry=self.registry,
        )
        self.latency = Histogram(
            "unmask_request_seconds",
            "From a request's arrival to its last byte",
            buckets=SECONDS,
            registry=self.registry,
        )
        self.first_block = Histogram(
            "unmask_first_block_seconds",
            "From arrival to the first block's end",
            buckets=SECONDS,
            registry=self.registry,
        )
        tokens = Counter("unmask_tokens", "Tokens read and written", ["kind"], registry=self.registry)
        self.prompt_tokens, self.completion_tokens = tokens.labels("prompt"), tokens.labels("completion")
        self.reloads = Counter(
            "unmask_reloads", "Models loaded in place of another", ["result"], registry=self.registry
        )
        self.model = Gauge(
            "unmask_model", "1 for the version that answers", ["name", "version"], registry=self.registry
        )
        self.registry.register(_Engines(running))

    def serves(self, served: Served) -> None:
        """Another version answers from now on."""
        self.model.clear()
        self.model.labels(served.source.name, served.source.version).set(1)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)


class _Engines:
    """Sums over the running engines, and over those that have ended: a counter never falls."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._seen: dict[int, Figures] = {}

    def collect(self) -> list[Metric]:
        """Called by the registry."""
        running = self._running()
        for served in running:
            self._seen[id(served.engine.figures)] = served.engine.figures
        seen = list(self._seen.values())
        total = {name: sum(getattr(one, name) for one in seen) for name in Figures.__dataclass_fields__}
        per_forward = total["answer_tokens"] / max(total["answer_forwards"], 1)
        return [
            GaugeMetricFamily(
                "unmask_queue_requests", "Requests without a row", sum(s.engine.num_waiting for s in running)
            ),
            GaugeMetricFamily(
                "unmask_batch_rows", "Rows that share the next forward", sum(s.engine.num_live for s in running)
            ),
            GaugeMetricFamily(
                "unmask_tokens_per_forward", "Tokens of finished answers over their decoding forwards", per_forward
            ),
            CounterMetricFamily("unmask_forwards", "Decoding forwards of batches", value=total["forwards"]),
            CounterMetricFamily(
                "unmask_forward_rows", "Rows in them: over forwards, the mean batch", value=total["rows"]
            ),
            CounterMetricFamily("unmask_decoder_errors", "Batches lost to an error", value=total["errors"]),
        ]
