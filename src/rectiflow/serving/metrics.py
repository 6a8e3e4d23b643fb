"""What a server counts, in Prometheus' text format."""

from collections.abc import Callable
from typing import final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)


@final
class Metrics:
    """Counters, gauges and histograms of one engine, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rectiflow_requests",
            "Requests by outcome: completed, failed, cancelled, refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.pictures = Counter("rectiflow_pictures", "Pictures completed.", registry=self.registry)
        self.rows = self._histogram("rectiflow_call_rows", "Rows of a call of the network.", _ROWS)
        self.call_seconds = self._histogram(
            "rectiflow_call_seconds", "Seconds of a call of the network.", _CALL_SECONDS
        )
        self.waiting_seconds = self._histogram(
            "rectiflow_waiting_seconds", "Seconds of a request in the queue.", _SECONDS
        )
        self.request_seconds = self._histogram("rectiflow_request_seconds", "Seconds of a completed request.", _SECONDS)

    def watch(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Show two numbers as they are when asked for: requests that wait, and the weight of pictures in flight."""
        queue = Gauge("rectiflow_queue_length", "Requests that wait.", registry=self.registry)
        queue.set_function(waiting)
        flight = Gauge("rectiflow_pictures_in_flight", "Weight of the pictures being made.", registry=self.registry)
        flight.set_function(running)

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, words, buckets=buckets, registry=self.registry)
