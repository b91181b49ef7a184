"""Early ends of an answer: stop sequences and a token limit. The backend supports neither.

Tokens of text and tool arguments are estimated while the answer streams (``codexd.protocol.tokens``), from below, so an
answer that fits is never cut. The backend reports the real number only in its last event, which a cut answer does not
wait for. Reasoning is not counted.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from codexd import errors
from codexd.protocol.tokens import TokenCounter

MAX_STOPS = 4

Reason = Literal["stop", "length"]


class StopLimits(Struct, frozen=True):
    """The client's limits. ``stop`` holds no empty text."""

    stop: tuple[str, ...] = ()
    max_tokens: int | None = None


def limits_of(
    stop: str | Sequence[str] | None,
    *max_tokens: tuple[str, int | None],
    stop_name: str = "stop",
    max_stops: int = MAX_STOPS,
) -> StopLimits:
    """Returns the limits; the first ``max_tokens`` that is set applies. Raises ApiError 400 naming the parameter."""
    stops = tuple(filter(None, [stop] if isinstance(stop, str) else stop or ()))
    if len(stops) > max_stops:
        raise errors.bad_request(f"{stop_name} can have at most {max_stops} sequences.", param=stop_name)
    for name, number in max_tokens:
        if number is not None and number < 1:
            raise errors.bad_request(f"{name} must be 1 or more.", param=name)
    return StopLimits(stops, next((number for _, number in max_tokens if number is not None), None))


class Cutoff:
    """Limits of one answer. ``reason`` is set at its end, ``matched`` is the stop sequence that ended it."""

    def __init__(self, limits: StopLimits) -> None:
        self.limits = limits
        self._stops = limits.stop
        self._counter = TokenCounter(limits.max_tokens)
        self._held = ""
        self.reason: Reason | None = None
        self.matched: str | None = None

    def text(self, text: str) -> str:
        """Takes a piece of the answer's text; returns what can be sent now, including text held back before."""
        if not self._stops:
            return self.spend(text)
        text = self._held + text
        # The stop sequence that is complete first wins; of two that end together, the one that began first.
        ends = [(place + len(stop), place, stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self._held = ""
            _, place, stop = min(ends)
            out = self.spend(text[:place])
            if self.reason is None:
                self.reason, self.matched = "stop", stop
            return out
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return self.spend(text[: len(text) - keep])

    def flush(self) -> str:
        """Returns the text that was held back: the text has ended without completing a stop sequence."""
        text, self._held = self._held, ""
        return self.spend(text)

    @property
    def spent(self) -> int:
        """The estimated tokens so far."""
        return self._counter.total()

    def spend(self, text: str) -> str:
        """Counts a piece of text or arguments; returns the part that fits the limit."""
        fits = self._counter.take(text)
        if len(fits) < len(text):
            self.reason = "length"
        return fits


def _overlap(text: str, stop: str) -> int:
    """Returns how many characters at the end of the text could begin the stop sequence."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
