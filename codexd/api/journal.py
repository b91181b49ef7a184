"""The journal of requests: those in progress, and for each that ends its metrics, usage and trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from codexd.api.record import Record
from codexd.protocol.codex.rate_limits import Limits
from codexd.relay.relay import Relay
from codexd.state.usage import Ledger
from codexd.telemetry.log import Repeated
from codexd.telemetry.metrics import Metrics
from codexd.telemetry.trace import Recent, Trace

_UNINTERESTING = ("/health", "/metrics", "/", "/docs", "/docs/<path:page>")
"""Endpoints of probes and pages, which come every few seconds and would push other requests out of ``recent``."""


AT_ONCE = 64
"""Requests in progress that are described without letting others run."""


class Journal:
    """``limits`` are the account's newest known; ``clock`` gives Unix seconds.

    ``last_request`` is when a request, not a probe, began or ended, in trio's time.
    """

    def __init__(
        self, ledger: Ledger, limits: Callable[[], Limits | None] = lambda: None, *, clock: Callable[[], float]
    ) -> None:
        self._ledger = ledger
        self._limits = limits
        self._clock = clock
        self._in_progress: set[Record] = set()
        self.metrics = Metrics()
        self._repeated = Repeated()
        self.recent = Recent()
        self.last_request = trio.current_time()

    @contextmanager
    def entry(self, record: Record) -> Iterator[None]:
        """Lists a request as in progress inside the block; accounts for it and logs it at the end."""
        self._in_progress.add(record)
        self._touch(record)
        try:
            yield
        finally:
            self._in_progress.discard(record)
            self._touch(record)
            trace = record.trace(self._clock(), over=True, bodies=True)
            self.metrics.add(trace, record.adjusted)
            # Only where keys share the account is it asked how much each has used.
            known = self._limits() if trace.key is not None else None
            self._ledger.add(trace, known.windows if known is not None else ())
            if trace.endpoint not in _UNINTERESTING or trace.error is not None:
                self.recent.add(trace)
            record.finish(self._repeated)

    def _touch(self, record: Record) -> None:
        if record.endpoint != "/health":
            self.last_request = trio.current_time()

    def answers_of(self, key: str) -> list[Relay]:
        """Returns the answers in progress for a client key."""
        return [relay for record in self._in_progress if record.key == key for relay in record.relays if relay.running]

    async def all_in_progress(self) -> list[Trace]:
        """Returns all requests in progress, oldest first, and lets others run meanwhile: there may be thousands."""
        traces = []
        for number, record in enumerate(list(self._in_progress), 1):
            if record in self._in_progress:
                traces.append(record.trace(self._clock(), over=False, bodies=False))
            if number % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return sorted(traces, key=lambda trace: trace.at)

    def in_progress(self, begin: str = "", *, bodies: bool = False) -> list[Trace]:
        """Returns the requests in progress whose id starts with ``begin``, oldest first."""
        now = self._clock()
        found = [record for record in self._in_progress if record.id.startswith(begin)]
        traces = [record.trace(now, over=False, bodies=bodies) for record in found]
        return sorted(traces, key=lambda trace: trace.at)
