"""Numbers for Prometheus: requests, seconds, and click-through rates by popularity group. No user, item or text."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from ltrec_jax.serve.clicks import Clicks

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Telemetry:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("ltrec_requests", "Requests", ["method", "route", "status"], registry=self._registry)
        self._seconds = Histogram(
            "ltrec_request_seconds", "Seconds per request", ["route"], buckets=_BUCKETS, registry=self._registry
        )
        self._shown = self._gauge("ltrec_items_shown", "Items shown")
        self._clicks = self._gauge("ltrec_items_clicked", "Items clicked")
        self._rate = self._gauge("ltrec_click_through_rate", "Clicks per item shown")
        self._corrected = self._gauge("ltrec_click_through_rate_corrected", "The same, corrected for places in lists")

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request is over."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def prometheus(self, clicks: Clicks) -> tuple[bytes, str]:
        """(body, content type) of /metrics."""
        for group, of_group in clicks.groups.items():
            self._shown.labels(group).set(of_group.shown)
            self._clicks.labels(group).set(of_group.clicks)
            if of_group.rate is not None and of_group.corrected is not None:
                self._rate.labels(group).set(of_group.rate)
                self._corrected.labels(group).set(of_group.corrected)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["group"], registry=self._registry)
