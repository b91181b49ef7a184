"""Metrics for Prometheus. Counting is a few additions; the client library is imported on the first scrape."""

import itertools
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from codexd.protocol.adjustments import Adjustment
from codexd.protocol.codex.rate_limits import Window
from codexd.telemetry.trace import Trace

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
LAG = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0)

_Values = Iterable[tuple[tuple[str, ...], float]]

MAX_ERRORS, MAX_MODELS = 100, 100
"""Codes of errors and models that are counted separately. The limit is needed because the backend chooses them."""

MAX_ADJUSTMENTS = 200
"""Distinct adjustments that are counted separately. The limit is needed because clients choose parameter names."""


class Gauges(NamedTuple):
    """Current values; memory in bytes. ``windows`` are the account's limits as last reported."""

    version: str
    signed_in: bool
    streams_open: int
    websockets: int
    websockets_idle: int
    refreshes: int
    refresh_failures: int
    memory_used: int
    memory_limit: int
    windows: Iterable[Window]


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Returns cumulative buckets, as Prometheus requires."""
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        return list(zip(names, itertools.accumulate(self._counts), strict=True))


class Metrics:
    """Counters since the start of the process."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._requests: Counter[tuple[str, str, str, str]] = Counter()
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._errors: Counter[str] = Counter()
        self._adjusted: Counter[Adjustment] = Counter()
        self._lanes: Counter[tuple[str, str, str]] = Counter()
        self._sent: Counter[str] = Counter()
        self._fallbacks: Counter[str] = Counter()
        self._handshakes = 0
        self._model_fallbacks: Counter[tuple[str, str]] = Counter()
        self._hosted: Counter[str] = Counter({"ok": 0, "failed": 0})
        self._first: dict[str, _Histogram] = {}
        self._duration: dict[str, _Histogram] = {}
        self.lag = _Histogram(LAG)

    def add(self, trace: Trace, adjusted: Iterable[Adjustment] = ()) -> None:
        model, key = trace.model or "", trace.key or ""
        model = self._known(model)
        self._requests[trace.endpoint, model, str(trace.status), key] += 1
        if trace.tokens is not None:
            for kind in ("input", "cached", "output", "reasoning"):
                self._tokens[kind, model, key] += getattr(trace.tokens, kind)
        if trace.error is not None and trace.tries:
            known = trace.error in self._errors or len(self._errors) < MAX_ERRORS
            self._errors[trace.error if known else "other"] += 1
        if trace.lane is not None:
            connection = "kept" if trace.websocket_kept else "new"
            self._lanes[trace.lane, connection, "delta" if trace.delta else "whole"] += 1
            self._sent[trace.lane] += trace.sent_bytes
            self._handshakes += trace.handshakes
        if trace.limited_model is not None:
            self._model_fallbacks[self._known(trace.limited_model), model] += 1
        self._hosted["ok"] += trace.hosted_calls - trace.hosted_failures
        self._hosted["failed"] += trace.hosted_failures
        if trace.fallback is not None:
            self._fallbacks[trace.fallback] += 1
        for each in adjusted:
            known = each in self._adjusted or len(self._adjusted) < MAX_ADJUSTMENTS
            self._adjusted[each if known else Adjustment("other", "")] += 1
        if trace.spans.first is not None:
            self._first.setdefault(model, _Histogram(SECONDS)).add(trace.spans.first / 1000)
        if trace.spans.end is not None:
            self._duration.setdefault(trace.endpoint, _Histogram(SECONDS)).add(trace.spans.end / 1000)

    def _known(self, model: str) -> str:
        if model not in self._models and len(self._models) >= MAX_MODELS:
            return "other"
        self._models.add(model)
        return model

    def lagged(self, seconds: float) -> None:
        """Records how many seconds late a timer ran."""
        self.lag.add(seconds)

    def render(self, gauges: Gauges) -> bytes:
        """Returns all metrics in Prometheus's text format."""
        from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
        from prometheus_client.registry import Collector

        metrics = self

        class Ours(Collector):
            def collect(self) -> "Iterator[Metric]":
                yield from metrics._families(gauges)

        registry = CollectorRegistry()
        registry.register(Ours())
        ProcessCollector(registry=registry)
        return generate_latest(registry)

    def _families(self, gauges: Gauges) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def counter(
            name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]
        ) -> "Metric":
            family = CounterMetricFamily(f"codexd_{name}", text, labels=labels)
            for place, value in values:
                family.add_metric(place, value)
            return family

        def gauge(name: str, text: str, labels: list[str], values: _Values) -> "Metric":
            family = GaugeMetricFamily(f"codexd_{name}", text, labels=labels)
            for place, value in values:
                family.add_metric(place, value)
            return family

        def histogram(name: str, text: str, label: str, values: dict[str, _Histogram]) -> "Metric":
            family = HistogramMetricFamily(f"codexd_{name}", text, labels=[label] if label else [])
            for place, value in values.items():
                family.add_metric([place] if label else [], value.buckets(), value.total)
            return family

        yield counter(
            "requests", "Requests by status; 499 means that the client disconnected.",
            ["endpoint", "model", "status", "key"], self._requests.items(),
        )  # fmt: skip
        yield counter(
            "tokens", "Tokens as reported by the backend; cached is part of input, reasoning is part of output.",
            ["kind", "model", "key"], self._tokens.items(),
        )  # fmt: skip
        yield counter(
            "upstream_errors", "Requests that failed at the backend or on the way to it, by error code.", ["code"],
            (((code,), count) for code, count in self._errors.items()),
        )  # fmt: skip
        yield counter(
            "adjusted_parameters", "Request parameters that were not passed on unchanged.", ["parameter", "how"],
            self._adjusted.items(),
        )  # fmt: skip
        yield counter(
            "backend_requests", "Requests to the backend by lane, by connection, and by what was sent of the input.",
            ["lane", "connection", "sent"], self._lanes.items(),
        )  # fmt: skip
        yield counter(
            "backend_sent_bytes", "Bytes of requests to the backend.", ["lane"],
            (((lane,), count) for lane, count in self._sent.items()),
        )  # fmt: skip
        yield counter(
            "backend_fallbacks", "Requests sent over HTTP instead of a websocket, by reason.", ["reason"],
            (((reason,), count) for reason, count in self._fallbacks.items()),
        )  # fmt: skip
        yield counter("backend_handshakes", "Websocket handshakes with the backend.", [], [((), self._handshakes)])
        yield counter(
            "model_fallbacks", "Requests that another model answered because the first was at its limit.",
            ["limited", "model"], self._model_fallbacks.items(),
        )  # fmt: skip
        yield counter(
            "hosted_calls", "Searches and image generations that codexd ran for a model in an answer.", ["outcome"],
            (((outcome,), count) for outcome, count in self._hosted.items()),
        )  # fmt: skip
        yield counter(
            "token_refreshes", "Attempts to refresh the access token.", ["outcome"],
            [(("ok",), gauges.refreshes), (("failed",), gauges.refresh_failures)],
        )  # fmt: skip
        yield histogram(
            "time_to_first_token_seconds", "Time from the request to the first token.", "model", self._first
        )
        yield histogram("request_duration_seconds", "Time from the request to its end.", "endpoint", self._duration)
        yield histogram(
            "event_loop_lag_seconds", "Delay of the event loop, sampled every five seconds.", "",
            {"": self.lag},
        )  # fmt: skip
        yield gauge("streams_open", "Requests in progress.", [], [((), gauges.streams_open)])
        yield gauge(
            "backend_websockets", "Open websockets to the backend.", ["state"],
            [(("idle",), gauges.websockets_idle), (("answering",), gauges.websockets - gauges.websockets_idle)],
        )  # fmt: skip
        yield gauge("request_memory_bytes", "Memory taken by requests in progress.", [], [((), gauges.memory_used)])
        yield gauge(
            "request_memory_limit_bytes", "Memory that requests in progress may take.", [], [((), gauges.memory_limit)]
        )
        yield gauge("signed_in", "1 if codexd is signed in, else 0.", [], [((), gauges.signed_in)])
        windows = list(gauges.windows)
        labels = ["limit", "window"]
        yield gauge(
            "rate_limit_used_ratio", "Used share of the account's limit, from 0 to 1.", labels,
            {(each.limit, each.label): each.used_percent / 100 for each in windows}.items(),
        )  # fmt: skip
        yield gauge(
            "rate_limit_resets_timestamp_seconds", "Time at which the limit resets, in Unix seconds.", labels,
            {(each.limit, each.label): each.resets_at for each in windows if each.resets_at is not None}.items(),
        )  # fmt: skip
        yield gauge("build_info", "Version of codexd.", ["version"], [((gauges.version,), 1)])
