"""Token and request counts."""

from msgspec import Struct


class Tokens(Struct, frozen=True, kw_only=True):
    """Token counts of the backend: ``cached`` is part of ``input``, ``reasoning`` is part of ``output``."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


class Amount(Struct, kw_only=True):
    """Requests and their tokens; ``input`` to ``reasoning`` are as in ``Tokens``."""

    requests: int = 0
    failed: int = 0
    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0

    def join(self, other: "Amount") -> None:
        for name in Amount.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def add(self, tokens: Tokens | None, *, failed: bool) -> None:
        self.requests += 1
        self.failed += failed
        if tokens is not None:
            self.input += tokens.input
            self.cached += tokens.cached
            self.output += tokens.output
            self.reasoning += tokens.reasoning


class Row(Amount, kw_only=True):
    """Usage of one day. ``day`` is ``2030-12-31`` in the local time zone; ``key`` is empty if none was required."""

    day: str
    model: str
    key: str


class Hour(Amount, kw_only=True):
    """Usage of one hour. ``hour`` is Unix seconds divided by 3600."""

    hour: int
