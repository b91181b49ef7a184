"""From a decoded request to its answer: the steps that are the same in every dialect."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakSet

import msgspec
import structlog
import trio

from codexd import errors
from codexd.config.model import Config
from codexd.exchange import Document, Record, Reply, Streamed
from codexd.protocol import limits, parameters
from codexd.protocol import request as convert
from codexd.protocol.conversion import Conversion
from codexd.protocol.memory import Items, Memory, Turn
from codexd.protocol.models import Resolved
from codexd.protocol.responses import RawObject
from codexd.relay.relay import Header, Relay, Source
from codexd.state.instructions import Instructions
from codexd.state.keys import Keys
from codexd.upstream.attempt import Attempts
from codexd.upstream.catalog import Catalog
from codexd.upstream.client import Call, Upstream

log = structlog.get_logger()


class Asked(Protocol):
    """What every request for an answer has."""

    @property
    def model(self) -> str: ...

    @property
    def stream(self) -> bool | None: ...


class Answers:
    """What makes answers. ``clock`` gives Unix seconds."""

    def __init__(
        self,
        config: Config,
        *,
        keys: Keys,
        catalog: Catalog,
        upstream: Upstream,
        instructions: Instructions,
        clock: Callable[[], float],
    ) -> None:
        self._instructions = instructions
        self.config = config
        self.clock = clock
        self.catalog = catalog
        self._keys = keys
        self._upstream = upstream
        self._relays: WeakSet[Relay] = WeakSet()
        self._memory = Memory(config.codex.reasoning_memory_bytes, config.codex.reasoning_memory_seconds)

    def configure(self, config: Config) -> None:
        """Take over a changed configuration; answers that are on their way go on under the old one."""
        self.config = config
        self._memory.configure(config.codex.reasoning_memory_bytes, config.codex.reasoning_memory_seconds)

    @property
    def open(self) -> int:
        """Answers that are on their way, streamed or being collected."""
        return sum(relay.running for relay in self._relays)

    def close(self) -> None:
        """End all open answers, with a word to their clients: the drain is over."""
        for relay in self._relays:
            relay.abort(errors.shutting_down())

    def understand(self, record: Record, asked: Asked, body: bytes, rules: dict[str, parameters.Rule]) -> Resolved:
        """Raises ApiError 400, 403 or 404."""
        record.streamed, model = bool(asked.stream), asked.model
        if not model:
            raise errors.bad_request("model must not be empty; GET /v1/models lists the names.", param="model")
        record.adjusted += parameters.sort_out(body, rules)
        resolved = self.catalog.resolve(model)
        record.model = resolved.model.slug
        if record.key is not None and not self._keys.may_use(record.key, record.model):
            raise errors.key_not_for_model(record.key, record.model, self._keys.limits(record.key).models)
        if self.config.logging.enable_request_logging:
            record.received = body
            log.debug("request as it came", body=body.decode(errors="replace"))
        return resolved

    def refuse_drops(self, record: Record) -> None:
        if record.key is None or not self._keys.is_strict(record.key):
            return
        dropped = next((entry for entry in record.adjusted if entry.endswith("=dropped")), "").removesuffix("=dropped")
        if dropped:
            raise errors.unsupported(
                dropped,
                f"{dropped!r} cannot be honoured, and the key {record.key!r} is strict: leave it out, or use a key "
                "that is not strict (then it is dropped, and x-codexd-adjusted says so).",
            )

    def settings(self, resolved: Resolved) -> convert.Settings:
        codex = self.config.codex
        return convert.Settings(
            prompt=self._instructions.for_model(resolved.model.slug) if codex.mode else None,
            effort=codex.default_reasoning_effort,
            verbosity=codex.default_text_verbosity,
            repair_history=codex.repair_history,
        )

    async def respond(self, record: Record, relay: Relay) -> Reply:
        """Raises ApiError."""
        if record.streamed:
            return Streamed(relay)
        return Document(*await relay.collect())

    def single(self, record: Record, converted: convert.Converted, conversion: Callable[[], Conversion]) -> Relay:
        """The one relay of a request. Raises ApiError 400 for a strict key, when anything is dropped."""
        record.adjusted += converted.adjusted
        self.refuse_drops(record)
        relay = self.relay(record, converted, conversion)
        record.usage = lambda: relay.usage
        return relay

    def relay(self, record: Record, converted: convert.Converted, conversion: Callable[[], Conversion]) -> Relay:
        up = converted.request
        call = Call(msgspec.json.encode(up), _header_key(up.prompt_cache_key), converted.lite, record.timings)
        if self.config.logging.enable_request_logging:
            record.sent = call.body
            log.debug("request as it goes up", body=call.body.decode())

        def without_reasoning() -> Call | None:
            rest = convert.without_reasoning(up)
            if rest is None:
                return None
            if "reasoning=dropped" not in record.adjusted:
                record.adjusted.append("reasoning=dropped")
            return call._replace(body=msgspec.json.encode(rest))

        attempts = Attempts(self._upstream, call, without_reasoning)
        relay = Relay(attempts.open, conversion, self._limits, self.config.backend, attempts.forget)
        self._relays.add(relay)
        record.relays.append(relay)
        return relay

    def _limits(self, source: Source) -> Sequence[Header]:
        return limits.client_headers(source.headers, self.clock())

    # --- reasoning that chat clients cannot carry

    def recall(self, model: str, key: str) -> Items:
        return self._memory.recall(model, key, trio.current_time())

    def turn(self, model: str) -> Turn | None:
        """What gathers the reasoning of one answer; None when it is not to be kept."""
        if not self.config.codex.reasoning_memory_bytes:
            return None

        def keep(key: str, items: Sequence[RawObject]) -> None:
            self._memory.remember(model, key, items, trio.current_time())

        return Turn(keep)


def _header_key(key: str) -> str:
    """A prompt cache key that can stand in a header: itself, or a hash of it when it cannot."""
    if key.isascii() and key.isprintable() and len(key) <= 256 and key == key.strip():
        return key
    return hashlib.sha256(key.encode()).hexdigest()
