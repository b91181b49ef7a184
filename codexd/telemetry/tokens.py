"""Amounts of what was used."""

from msgspec import Struct


class Tokens(Struct, frozen=True, kw_only=True):
    """As the backend counts: cached ones are part of ``input``, reasoning is part of ``output``."""

    input: int = 0
    cached: int = 0
    output: int = 0
    reasoning: int = 0


class Amount(Struct, kw_only=True):
    """``input`` and so on are tokens, as in ``Tokens``."""

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
    """``day`` as 2030-12-31, by this machine's time zone; ``key`` is empty where none was asked for."""

    day: str
    model: str
    key: str


class Hour(Amount, kw_only=True):
    """``hour`` is Unix seconds by 3600."""

    hour: int
