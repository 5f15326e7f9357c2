"""Prometheus metrics of one server. No label names a user: what people do is nobody's statistic."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from memory_service.bootstrap import Service
from memory_service.domain.messages import Generation

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counts what the engine tells (`inference.engine.Watch`) and reads the rest when asked."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._waiting = Gauge("memory_waiting_requests", "Requests in the queue", registry=registry)
        self._rows = Histogram(
            "memory_batch_rows", "Answers in a step", buckets=ROWS, registry=registry
        )
        self._step = Histogram(
            "memory_inter_token_seconds", "Time of a step", buckets=SECONDS, registry=registry
        )
        self._first = Histogram(
            "memory_first_token_seconds",
            "Time to the first token, waiting included",
            buckets=SECONDS,
            registry=registry,
        )
        self._prompt = Counter(
            "memory_prompt_tokens", "Prompt tokens of finished answers", registry=registry
        )
        self._completion = Counter(
            "memory_completion_tokens", "Tokens of finished answers", registry=registry
        )
        self._answers = Counter("memory_answers", "Finished answers", ["ending"], registry=registry)
        self._hits = Gauge("memory_adapter_cache_hits", "Since the start", registry=registry)
        self._misses = Gauge("memory_adapter_cache_misses", "Since the start", registry=registry)
        self._cache = Gauge("memory_adapter_cache_bytes", "Adapters in memory", registry=registry)
        self._pending = Gauge("memory_encode_queue", "Users waiting", registry=registry)
        self._lag = Gauge(
            "memory_encode_lag_seconds", "Wait of the turns encoded last", registry=registry
        )

    def waiting(self, requests: int) -> None:
        """So many requests wait for a place in the batch."""
        self._waiting.set(requests)

    def stepped(self, rows: int, duration_s: float) -> None:
        """A step gave so many rows their next token."""
        self._rows.observe(rows)
        self._step.observe(duration_s)

    def answered(self, generation: Generation) -> None:
        """An answer is complete."""
        self._first.observe(generation.first_token_s)
        self._prompt.inc(generation.prompt_tokens)
        self._completion.inc(generation.completion_tokens)
        self._answers.labels(generation.ending.value).inc()

    def text(self, service: Service) -> bytes:
        """All of it in Prometheus's text format."""
        cache, queue = service.recall.cache, service.queue
        self._hits.set(cache.hits)
        self._misses.set(cache.misses)
        self._cache.set(cache.size_bytes)
        self._pending.set(queue.depth)
        self._lag.set(queue.lag_s)
        return generate_latest(self.registry)
