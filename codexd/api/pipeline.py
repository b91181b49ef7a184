"""The pipeline from a request's body to its answer: the steps that all dialects share."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple, Protocol, TypeVar
from weakref import WeakSet

import msgspec
import structlog
import trio

from codexd import errors
from codexd.api.capacity import Capacity
from codexd.api.exchange import Exchange, Reply
from codexd.api.fallback import FallbackAnswer, Opened
from codexd.api.record import EVENT_STREAM, Record
from codexd.config.model import Config
from codexd.errors import ApiError
from codexd.lowlevel import workers
from codexd.protocol import members, parameters
from codexd.protocol.adjustments import Adjustment
from codexd.protocol.chat.stream import ImageFormat, ReasoningFormat
from codexd.protocol.codex import rate_limits
from codexd.protocol.codex.events import Usage, total_usage
from codexd.protocol.codex.models import Resolved
from codexd.protocol.conversion import Conversion
from codexd.protocol.convert import EFFORT_FIELDS, Converted, Settings, without_reasoning
from codexd.protocol.members import RequestDecoder
from codexd.protocol.raw import RawObject
from codexd.protocol.reasoning import Items, ReasoningMemory, Recall, Turn
from codexd.reasons import quoted
from codexd.relay.fanout import Fanout
from codexd.relay.relay import Header, Relay, UpstreamSource
from codexd.state.instructions import Instructions
from codexd.state.keys import Keys
from codexd.upstream.account_tools import AccountTools
from codexd.upstream.attempt import Attempts
from codexd.upstream.call import Call
from codexd.upstream.catalog import Catalog
from codexd.upstream.client import Upstream
from codexd.upstream.hosted import HostedAnswers

log = structlog.get_logger()


_Asked = TypeVar("_Asked", bound=msgspec.Struct)

_CHANGED = frozenset({"fitted", "repaired", "false"})
"""Adjustments that change what the client asked for; others only change how it is sent."""


class Asked(Protocol):
    """The members that every request for an answer has."""

    @property
    def model(self) -> str: ...

    @property
    def stream(self) -> bool | None: ...


class Context(NamedTuple):
    """The inputs of an answer besides its request. ``id`` is 48 hexadecimal digits; ``created`` is in Unix seconds.

    ``recall`` returns stored reasoning that the client did not send back; ``turn`` makes the collector that stores it.
    ``elapsed`` returns the seconds since the request came. ``large``: the request is converted in a thread, and what is
    wanted of it later is better taken now.
    """

    id: str
    created: int
    resolved: Resolved
    settings: Settings
    streamed: bool
    recall: Recall
    turn: Callable[[], Turn | None]
    reasoning_format: ReasoningFormat
    image_format: ImageFormat = "images"
    elapsed: Callable[[], float] = lambda: 0.0
    large: bool = False


class Joined(NamedTuple):
    """Functions that join several answers: into one usage chunk of a stream, and into one document."""

    usage: Callable[[Sequence[Usage]], bytes]
    documents: Callable[[Sequence[bytes]], bytes]


class Prepared(NamedTuple):
    """The backend requests of one client request, each with its conversion. Several are ``joined`` into one answer.

    ``lossless``: the API carries all items of an answer, also commentary and the calls of hosted tools.
    """

    parts: Sequence[tuple[Converted, Callable[[], Conversion]]]
    joined: Joined | None = None
    lossless: bool = False


def _only(documents: Sequence[bytes]) -> bytes:
    return documents[0]


@dataclass(frozen=True, eq=False)
class Kind:
    """One kind of request of the API. Routes and documentation are derived from it.

    ``name`` is that of its table of parameters in the reference. ``answer`` is the struct of a complete answer, None if
    it is the backend's own object. ``form``: whether the request may be a form, or must be one.
    ``stream_type`` is the media type of a streamed answer.
    """

    name: str
    request: RequestDecoder[Any]
    rules: dict[str, parameters.Rule]
    answer: type | None
    failure: Callable[[ApiError], bytes]
    form: Literal["no", "too", "only"] = field(default="no", kw_only=True)
    stream_type: str = field(default=EVENT_STREAM, kw_only=True)


@dataclass(frozen=True, eq=False)
class Dialect(Kind):
    """A kind of request that a model answers. ``prepare`` is pure; it gets the request, or what was made of it."""

    prepare: Callable[[Any, Context], Prepared]


class Pipeline:
    """Makes answers. ``clock`` gives Unix seconds."""

    def __init__(
        self,
        config: Config,
        *,
        keys: Keys,
        catalog: Catalog,
        upstream: Upstream,
        account: AccountTools,
        instructions: Instructions,
        clock: Callable[[], float],
    ) -> None:
        self._instructions = instructions
        self.config = config
        self.clock = clock
        self.catalog = catalog
        self._keys = keys
        self._upstream = upstream
        self._account = account
        self._relays: WeakSet[Relay] = WeakSet()
        self.capacity = Capacity(lambda: self.config.server.max_requests)
        self._memory = ReasoningMemory(config.codex.reasoning_memory_bytes, config.codex.reasoning_memory_seconds)

    def configure(self, config: Config) -> None:
        """Applies a changed configuration; answers in progress keep the old one."""
        self.config = config
        self._memory.configure(config.codex.reasoning_memory_bytes, config.codex.reasoning_memory_seconds)

    @property
    def open(self) -> int:
        """The number of answers in progress, streamed or collected."""
        return sum(relay.running for relay in self._relays)

    def close(self) -> None:
        """Ends all answers in progress with an error to their clients, at the end of the drain."""
        for relay in self._relays:
            relay.abort(errors.shutting_down())

    # --- the request

    async def read(self, exchange: Exchange, dialect: Dialect) -> tuple[Any, Context]:
        """Returns the decoded request of an exchange and its context. Raises ApiError."""
        body = await exchange.body()
        found, asked = await self.decode(body, dialect.request)
        return asked, self.understand(exchange.record, asked, found, dialect, body)

    async def decode(self, body: bytes, decoder: RequestDecoder[_Asked]) -> tuple[RawObject, _Asked]:
        """Returns the members of a body, and the request that they are. Raises ApiError 400 or 413."""

        def work() -> tuple[RawObject, _Asked]:
            found = members.split(body)
            return found, decoder.decode(found)

        return await workers.run(len(body), work)

    def understand(
        self, record: Record, asked: Asked, found: RawObject, dialect: Dialect, body: bytes = b""
    ) -> Context:
        """Resolves the model, applies the parameter rules and returns the context. Raises ApiError 400, 403 or 404."""
        record.streamed, model = bool(asked.stream), asked.model
        if not model:
            raise errors.bad_request("model must not be empty; GET /v1/models lists the names.", param="model")
        record.adjust(*parameters.apply_rules(found, dialect.rules))
        resolved = self.catalog.resolve(model)
        record.model = resolved.model.slug
        self.admit_model(record, record.model)
        if self.config.logging.enable_request_logging:
            record.received = body
            log.debug("request before conversion", body=body.decode(errors="replace"))
        return self.context(record, resolved)

    def admit_model(self, record: Record, model: str) -> None:
        """Raises ApiError 403 if the client's key may not use the model."""
        if record.key is not None and not self._keys.may_use(record.key, model):
            raise errors.key_not_for_model(record.key, model, self._keys.limits(record.key).models)

    def context(self, record: Record, resolved: Resolved) -> Context:
        codex, slug, now, started = self.config.codex, resolved.model.slug, trio.current_time(), self.clock()
        recalled = Adjustment("reasoning", "recalled")

        def recall(key: str) -> Items:
            found = self._memory.recall(slug, key, now)
            if found and recalled not in record.adjusted:
                workers.on_loop(partial(record.adjust, recalled))
            return found

        settings = Settings(
            prompt=self._instructions.for_model(slug) if codex.mode else None,
            effort=codex.default_reasoning_effort,
            verbosity=codex.default_text_verbosity,
            repair_history=codex.repair_history,
            think_tags=codex.reasoning_format == "think-tags",
            web_search=codex.web_search,
            hosted_calls=codex.max_hosted_calls,
        )
        return Context(
            secrets.token_hex(24),
            int(started),
            resolved,
            settings,
            record.streamed,
            recall,
            lambda: self._turn(slug),
            codex.reasoning_format,
            codex.image_format,
            lambda: self.clock() - started,
            record.weight > workers.LARGE,
        )

    def _turn(self, model: str) -> Turn | None:
        """Returns the collector for the reasoning of one answer; None if reasoning is not stored."""
        if not self.config.codex.reasoning_memory_bytes:
            return None

        def keep(key: str, items: Sequence[RawObject]) -> None:
            workers.on_loop(lambda: self._memory.remember(model, key, items, trio.current_time()))

        return Turn(keep)

    def refuse_drops(self, record: Record) -> None:
        """Raises ApiError 400 if the key is strict and something in its request was dropped or changed in meaning."""
        if record.key is None or not self._keys.is_strict(record.key):
            return
        for param, how in record.adjusted:
            if how == "dropped":
                raise errors.unsupported(
                    param,
                    f"{quoted(param)} is not supported, and the key {quoted(record.key)} is strict. Remove it, or use "
                    "a key that is not strict (codexd then drops it and reports that in x-codexd-adjusted).",
                )
            if how in _CHANGED or param in EFFORT_FIELDS:
                raise errors.unsupported(
                    param,
                    f"{quoted(param)} cannot be sent as it is ({how}), and the key {quoted(record.key)} is strict. "
                    "Correct it, or use a key that is not strict (codexd then changes it and reports that in "
                    "x-codexd-adjusted).",
                )

    # --- the answer

    async def answer(self, record: Record, context: Context, prepare: Callable[[Context], Prepared]) -> Reply:
        """Returns the stream, or the complete document if the client did not ask for one. Raises ApiError."""
        body = await self.open_model_answer(record, context, prepare)
        if record.streamed:
            return body if isinstance(body, FallbackAnswer) else body.body
        return await body.document()

    async def open_model_answer(
        self, record: Record, context: Context, prepare: Callable[[Context], Prepared]
    ) -> Opened | FallbackAnswer:
        """Opens the answer of the model, or of one of ``models.fallback`` where that is at its limit.

        ``prepare`` is called for each model. Raises ApiError 400.
        """

        async def open_for(context: Context) -> Opened:
            prepared = await workers.run(record.weight, partial(prepare, context))
            body = self.open_answer(record, prepared)
            joined = prepared.joined
            return Opened(context.resolved.model.slug, body, _only if joined is None else joined.documents)

        async def another(resolved: Resolved) -> Opened:
            self.admit_model(record, resolved.model.slug)
            # An effort in the name of the first model is the client's wish.
            effort = resolved.effort or context.resolved.effort
            own = self.context(record, msgspec.structs.replace(resolved, effort=effort))
            opened = await open_for(own._replace(id=context.id, created=context.created))
            record.model = opened.model
            return opened

        opened = await open_for(context)
        names = self.config.models.fallback
        if not names or (record.key is not None and self._keys.is_strict(record.key)):
            return opened
        others: dict[str, Resolved] = {}
        for name in names:
            try:
                resolved = self.catalog.resolve(name)
            except ApiError as error:
                log.debug("a model in models.fallback is unknown", reason=error.error.message)
            else:
                others.setdefault(resolved.model.slug, resolved)
        others.pop(opened.model, None)
        return FallbackAnswer(record, opened, [partial(another, each) for each in others.values()])

    def open_answer(self, record: Record, prepared: Prepared) -> Relay | Fanout:
        """Returns the relay, or the fanout of several, that streams or collects the answer.

        Raises ApiError 400, and 503 if several are more than may be made at once.
        """
        for converted, _ in prepared.parts:
            record.adjust(*converted.adjusted)
        self.refuse_drops(record)
        if (others := len(prepared.parts) - 1) > record.others:
            self.capacity.more(others - record.others)
            record.others = others
        relays = [
            self._relay(record, converted, conversion, lossless=prepared.lossless)
            for converted, conversion in prepared.parts
        ]
        record.usage = lambda: total_usage(relay.usage for relay in relays)
        if (joined := prepared.joined) is None:
            return relays[0]
        return Fanout(relays, lambda: joined.usage([relay.usage for relay in relays if relay.usage is not None]))

    def _relay(
        self, record: Record, converted: Converted, conversion: Callable[[], Conversion], *, lossless: bool
    ) -> Relay:
        up = converted.request
        call = Call(
            up,
            up.prompt_cache_key,
            lite=converted.lite,
            caller=record.caller,
            lossless=lossless,
            timings=record.timings,
            weight=record.weight,
        )
        if self.config.logging.enable_request_logging:
            record.sent = call.body
            log.debug("request after conversion", body=call.body.decode())

        def reduced() -> Call | None:
            rest = without_reasoning(up)
            if rest is None:
                return None
            record.adjust(Adjustment("reasoning", "dropped"))
            return call.replaced(rest)

        attempts = Attempts(self._upstream, call, reduced)
        if converted.hosted is None:

            def forget() -> None:
                attempts.forget()
                record.begun += 1
                if record.streamed and record.begun > record.others and not self.config.models.fallback:
                    # A response keeps its conversation, to store it, until the end.
                    record.memory.release(2 * record.weight if lossless else 0)

            relay = Relay(attempts.open, conversion, self._limits, self.config.backend, forget, memory=record.memory)
        else:
            answers = HostedAnswers(self._upstream, self._account, attempts, converted.hosted)
            relay = Relay(answers.open, conversion, self._limits, self.config.backend, memory=record.memory)
        self._relays.add(relay)
        record.relays.append(relay)
        return relay

    def _limits(self, source: UpstreamSource) -> Sequence[Header]:
        return rate_limits.client_headers(source.headers, self.clock())
