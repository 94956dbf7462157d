"""What Prometheus is told at /metrics, under vLLM's names, so that its dashboards work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from qtransformers.machine import resident

if TYPE_CHECKING:
    from qtransformers.generate import Completion
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry
    from qtransformers.serve.server import Server

MODEL = ("model_name",)
FIRST = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
)
BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
WHOLE = (
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
)
# Name -> what it counts
COUNTERS = {
    "prompt_tokens": "Tokens of prompts.",
    "generation_tokens": "Tokens of answers.",
    "prefix_cache_queries": "Tokens of prompts that were looked for in the cache.",
    "prefix_cache_hits": "Tokens of prompts that were in the cache.",
    "spec_decode_num_draft_tokens": "Tokens guessed ahead.",
    "spec_decode_num_accepted_tokens": "Tokens guessed ahead that were right.",
}  # fmt: skip
HISTOGRAMS = {
    "time_to_first_token_seconds": ("Seconds until the first token of an answer.", FIRST),
    "inter_token_latency_seconds": ("Seconds between tokens as they are sent.", BETWEEN),
    "request_queue_time_seconds": ("Seconds until an answer begins to be computed.", WHOLE),
    "e2e_request_latency_seconds": ("Seconds until an answer is complete.", WHOLE),
}


@dataclass(frozen=True)
class Meters:
    """What is counted of one model."""

    counters: dict[str, Counter]
    histograms: dict[str, Histogram]
    ended: Callable[[str], Counter]
    between: Callable[[float], None]

    def finished(self, done: Iterable[Completion]) -> None:
        """Answers have ended, complete or not."""
        for c in done:
            t = c.timings
            counts = (t.prompt_tokens, t.tokens, t.prompt_tokens, t.cached_tokens, t.drafted_tokens, t.accepted_tokens)
            for counter, n in zip(self.counters.values(), counts, strict=True):
                counter.inc(n)
            self.ended(c.finish_reason or "cancelled").inc()
            if t.tokens:
                waited = t.queue_seconds
                for name, seconds in (
                    ("time_to_first_token_seconds", waited + t.prompt_seconds),
                    ("request_queue_time_seconds", waited),
                    ("e2e_request_latency_seconds", waited + t.prompt_seconds + t.seconds),
                ):
                    self.histograms[name].observe(seconds)


class Metrics:
    """The counters of a server; gauges are read when they are asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"vllm:{name}", text, MODEL, registry=self._registry) for name, text in COUNTERS.items()
        }
        self._histograms = {
            name: Histogram(f"vllm:{name}", text, MODEL, buckets=buckets, registry=self._registry)
            for name, (text, buckets) in HISTOGRAMS.items()
        }
        self._ended = Counter("vllm:request_success", "Answers, by how they ended.", (*MODEL, "finished_reason"), registry=self._registry)  # fmt: skip
        self.refused = Counter("qtransformers:requests_refused", "Requests that got an error.", ("status", "code"), registry=self._registry)  # fmt: skip

    def of(self, model: str) -> Meters:
        """The counters of a model."""
        histograms = {name: metric.labels(model) for name, metric in self._histograms.items()}
        return Meters(
            {name: metric.labels(model) for name, metric in self._counters.items()},
            histograms,
            lambda reason: self._ended.labels(model, reason),
            histograms["inter_token_latency_seconds"].observe,
        )

    def watch(self, entries: list[Entry]) -> None:
        """Let the gauges of these models be read."""
        self._registry.register(_Gauges(entries))

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _Gauges(Collector):
    def __init__(self, entries: list[Entry]) -> None:
        self._entries = entries

    def collect(self) -> Iterator[Metric]:
        """Of prometheus_client."""
        running = GaugeMetricFamily("vllm:num_requests_running", "Answers that are computed.", labels=MODEL)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Answers that wait for their turn.", labels=MODEL)
        cache = GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of the cache's pages that answers hold, 1 is all.", labels=MODEL)  # fmt: skip
        loaded = GaugeMetricFamily("qtransformers:model_loaded", "Whether a model is loaded.", labels=MODEL)
        for entry in self._entries:
            name, usage = [entry.spec.name], entry.usage
            running.add_metric(name, usage.running if usage else 0)
            waiting.add_metric(name, usage.waiting if usage else entry.answers)
            cache.add_metric(name, 1 - usage.free_pages / usage.pages if usage and usage.pages else 0.0)
            loaded.add_metric(name, entry.state == "ready")
        yield from (running, waiting, cache, loaded)
        yield GaugeMetricFamily("process_resident_memory_bytes", "Main memory of the process.", value=resident() or 0)


async def metrics(server: Server, call: Call, body: bytes) -> None:
    """Counters and gauges for Prometheus."""
    await call.data(server.models.metrics.text(), CONTENT_TYPE_LATEST.encode())
