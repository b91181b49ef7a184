"""An HTTP request into protocol values and back: the endpoints."""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit
from weakref import WeakSet

import msgspec
import structlog
import trio
from msgspec import Raw
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from codexd import __version__, errors, prompts
from codexd.auth.login import Attempt, Logins
from codexd.auth.session import Session
from codexd.catalog import Catalog
from codexd.choices import MAX_N, Choices
from codexd.config import Config, is_loopback
from codexd.errors import DEVICE_CODES_OFF_HINT, ApiError
from codexd.exchange import ApiRequest, HttpConnection, Record, Streamed, error_response
from codexd.keys import Keys
from codexd.protocol import chat, completions, cut, limits, parameters, responses, state
from codexd.protocol import conversion as conversions
from codexd.protocol import request as convert
from codexd.protocol.conversion import DONE, Conversion
from codexd.protocol.cut import limits as limits_of
from codexd.protocol.ending import chat_usage
from codexd.protocol.estimate import prompt_tokens
from codexd.protocol.fold import join, total
from codexd.protocol.memory import Items, Memory, Turn
from codexd.protocol.models import Resolved
from codexd.protocol.passthrough import ECHOED, ResponsesStream
from codexd.protocol.responses import RawObject, ResponsesRequest
from codexd.protocol.stream import ChatStream
from codexd.protocol.truncation import Truncation
from codexd.relay import Client, Header, Relay, Source
from codexd.sending import Sending
from codexd.store import ResponseStore, Stored
from codexd.upstream import Call, Upstream

BODY_TIMEOUT = 300.0
"""Seconds for a request body to arrive: big images over a slow line."""

PULSES = 4
PULSE_INTERVAL = 0.25
"""Seconds. Together they tell a proxy that buffers from one that does not."""

log = structlog.get_logger()

_T = TypeVar("_T")


class _ModelObject(msgspec.Struct):
    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "openai"


class _ModelList(msgspec.Struct):
    data: list[_ModelObject]
    object: str = "list"


class _Identified(msgspec.Struct):
    id: str


class _Deleted(msgspec.Struct):
    id: str
    object: str = "response"
    deleted: bool = True


class _InputTokens(msgspec.Struct):
    input_tokens: int
    object: str = "response.input_tokens"


class _Health(msgspec.Struct):
    status: str
    version: str
    signed_in: bool
    uptime_seconds: int


class _LoginRequest(msgspec.Struct):
    method: Literal["device", "browser"] = "device"


class _LoginState(msgspec.Struct, omit_defaults=True):
    """``state``: ``none``, ``pending``, ``succeeded`` or ``failed``. ``expires_at`` is in Unix seconds."""

    state: str
    signed_in: bool
    method: str | None = None
    authorization_url: str | None = None
    verification_url: str | None = None
    user_code: str | None = None
    expires_at: int | None = None
    email: str | None = None
    message: str | None = None
    instructions: str | None = None


class _Wanted(NamedTuple):
    """How a chat client wants its answer, and the answer's own id and creation time."""

    id: str
    created: int
    limits: cut.Limits
    streamed: bool
    include_usage: bool
    number: int


_PROBE = b'{"model": "-", "messages": [{"role": "user", "content": "Answer with the word ok."}]}'
_LOGIN = msgspec.json.Decoder(_LoginRequest)


class _Pulse:
    """A short stream for whoever wants to know whether something on the way holds events back."""

    error: ApiError | None = None
    done = False

    async def stream(self, client: Client) -> None:
        await client.start([])
        for number in range(PULSES):
            await client.write(b"data: %d\n\n" % number)
            await trio.sleep(PULSE_INTERVAL)
        await client.end()


class Api:
    """The endpoints. ``clock`` gives Unix seconds."""

    def __init__(
        self,
        config: Config,
        *,
        session: Session,
        logins: Logins,
        keys: Keys,
        catalog: Catalog,
        upstream: Upstream,
        store: ResponseStore,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._config = config
        self._app: QuartTrio | None = None
        self._session = session
        self._logins = logins
        self._keys = keys
        self._catalog = catalog
        self._upstream = upstream
        self._clock = clock
        self._started = trio.current_time()
        self._relays: WeakSet[Relay] = WeakSet()
        self._memory = Memory(config.codex.reasoning_memory_bytes, config.codex.reasoning_memory_seconds)

    @property
    def streams_open(self) -> int:
        """Answers that are on their way, streamed or being collected."""
        return sum(relay.running for relay in self._relays)

    def configure(self, config: Config) -> None:
        """Take over a changed configuration; answers that are on their way go on under the old one."""
        self._config = config
        self._memory.configure(config.codex.reasoning_memory_bytes, config.codex.reasoning_memory_seconds)
        if self._app is not None:
            self._app.config["MAX_CONTENT_LENGTH"] = config.server.max_body_bytes

    def app(self) -> QuartTrio:
        """The ASGI application."""
        self._app = app = QuartTrio("codexd", static_folder=None, template_folder=None)
        app.asgi_http_class = HttpConnection
        app.request_class = ApiRequest
        # Quart's own limits, set on purpose: its 60 s for a response would cut streams, 16 MiB is one photograph.
        app.config["RESPONSE_TIMEOUT"] = None
        app.config["BODY_TIMEOUT"] = BODY_TIMEOUT
        # A path with a slash too many is not there, in JSON; by default it is an HTML redirect.
        app.url_map.merge_slashes = False
        app.url_map.strict_slashes = False
        app.config["MAX_CONTENT_LENGTH"] = self._config.server.max_body_bytes
        plain = {"provide_automatic_options": False}
        for prefix in ("/v1", ""):
            app.add_url_rule(
                f"{prefix}/chat/completions", f"{prefix}chat", self.chat_completions, methods=["POST"], **plain
            )
            app.add_url_rule(
                f"{prefix}/completions", f"{prefix}completions", self.completions, methods=["POST"], **plain
            )
            app.add_url_rule(f"{prefix}/responses", f"{prefix}responses", self.responses, methods=["POST"], **plain)
            stored = f"{prefix}/responses/<id>"
            app.add_url_rule(
                f"{prefix}/responses/input_tokens",
                f"{prefix}input_tokens",
                self.input_tokens,
                methods=["POST"],
                **plain,
            )
            app.add_url_rule(f"{prefix}/responses/compact", f"{prefix}compact", self.compact, methods=["POST"], **plain)
            app.add_url_rule(stored, f"{prefix}response", self.response, methods=["GET", "DELETE"], **plain)
            app.add_url_rule(f"{stored}/input_items", f"{prefix}items", self.input_items, methods=["GET"], **plain)
            app.add_url_rule(f"{stored}/cancel", f"{prefix}cancel", self.cancel, methods=["POST"], **plain)
            app.add_url_rule(f"{prefix}/models", f"{prefix}models", self.models, methods=["GET"], **plain)
            app.add_url_rule(f"{prefix}/models/<path:name>", f"{prefix}model", self.model, methods=["GET"], **plain)
            app.add_url_rule(f"{prefix}/health", f"{prefix}health", self.health, methods=["GET"], **plain)
        app.add_url_rule("/auth/login", "login", self.login, methods=["POST"], **plain)
        app.add_url_rule("/auth/login", "login_state", self.login_state, methods=["GET"], **plain)
        app.before_request(self._authenticate)
        app.register_error_handler(ApiError, _handle_api_error)
        app.register_error_handler(HTTPException, self._handle_http_error)
        app.register_error_handler(Exception, _handle_bug)
        return app

    def close(self) -> None:
        """End all open answers, with a word to their clients: the drain is over."""
        for relay in self._relays:
            relay.abort(errors.shutting_down())

    # --- endpoints

    async def chat_completions(self) -> Response:
        body = await _body()
        asked = _decode(chat.REQUEST, body)
        record = _record()
        resolved = self._understand(record, asked.model, body, parameters.CHAT, streamed=bool(asked.stream))
        recall = partial(self._recall, resolved.model.slug)
        converted = convert.from_chat(asked, resolved, self._settings(resolved), recall)
        tokens = ("max_completion_tokens", asked.max_completion_tokens), ("max_tokens", asked.max_tokens)
        wanted = self._wanted("chatcmpl", limits_of(asked.stop, *tokens), asked.stream_options, record, asked.n)
        makers = [self._chat_conversion(resolved, converted, wanted, index) for index in range(wanted.number)]
        return await self._answers(record, [converted] * wanted.number, makers, wanted, per_prompt=wanted.number)

    async def completions(self) -> Response:
        """The legacy endpoint: each prompt a chat of one message."""
        body = await _body()
        asked = _decode(completions.REQUEST, body)
        record = _record()
        resolved = self._understand(record, asked.model, body, parameters.COMPLETIONS, streamed=bool(asked.stream))
        limits = limits_of(asked.stop, ("max_tokens", asked.max_tokens))
        texts, settings = completions.prompts(asked), self._settings(resolved)
        each = self._wanted("cmpl", limits, asked.stream_options, record, asked.n)
        wanted = each._replace(number=each.number * len(texts))
        if wanted.number > MAX_N:
            raise errors.bad_request(f"n times the number of prompts must be {MAX_N} at most.", param="n")
        converted: list[convert.Converted] = []
        makers: list[Callable[[], Conversion]] = []
        for text in texts:
            of_text = convert.from_chat(completions.as_chat(asked, text), resolved, settings)
            for _ in range(each.number):
                echo = text if asked.echo else ""
                makers.append(self._chat_conversion(resolved, of_text, wanted, len(converted), echo=echo))
                converted.append(of_text)
        return await self._answers(record, converted, makers, wanted, per_prompt=each.number)

    def _recall(self, model: str, key: str) -> Items:
        return self._memory.recall(model, key, trio.current_time())

    def _keep(self, model: str, key: str, items: Sequence[RawObject]) -> None:
        self._memory.keep(model, key, items, trio.current_time())

    def _wanted(
        self, prefix: str, limits: cut.Limits, options: chat.StreamOptions | None, record: Record, n: int | None
    ) -> _Wanted:
        number = 1 if n is None else n
        if not 1 <= number <= MAX_N:
            raise errors.bad_request(f"n must be between 1 and {MAX_N}.", param="n")
        include_usage = not record.streamed or bool(options and options.include_usage)
        id = f"{prefix}-{secrets.token_hex(14)}"  # noqa: A001 - the API's own word
        return _Wanted(id, int(self._clock()), limits, record.streamed, include_usage, number)

    async def _answers(
        self,
        record: Record,
        converted: Sequence[convert.Converted],
        makers: Sequence[Callable[[], Conversion]],
        wanted: _Wanted,
        *,
        per_prompt: int,
    ) -> Response:
        """One answer, or several as so many choices. Raises ApiError 400 for a strict key, when anything is dropped."""
        if wanted.number == 1:
            return await self._answer(record, converted[0], makers[0])
        record.adjusted += [entry for each in converted for entry in each.adjusted if entry not in record.adjusted]
        self._refuse_drops(record)
        relays = [self._relay(record, each, make) for each, make in zip(converted, makers, strict=True)]

        def usage() -> bytes:
            found = total([chat_usage(relay.usage) for relay in relays if relay.usage is not None], per_prompt)
            if found is None or not wanted.include_usage:
                return b""
            model = str(record.model)
            if wanted.id.startswith("cmpl"):
                chunk = completions.TextCompletion(wanted.id, "text_completion", wanted.created, model, [], found)
                return completions.frame(chunk)
            last = chat.Chunk(wanted.id, "chat.completion.chunk", wanted.created, model, [], found)
            return b"data: %b\n\n" % msgspec.json.encode(last)

        choices = Choices(relays, usage)
        record.usage = lambda: relays[0].usage
        if record.streamed:
            return Streamed(choices)
        documents, headers = await choices.collect()
        return _document(join(documents, per_prompt), headers)

    def _chat_conversion(
        self,
        resolved: Resolved,
        converted: convert.Converted,
        wanted: _Wanted,
        index: int = 0,
        *,
        echo: str | None = None,
    ) -> Callable[[], Conversion]:
        """``echo``: as a legacy completion, after this text."""

        def conversion() -> Conversion:
            stream = ChatStream(
                id=wanted.id,
                model=resolved.model.slug,
                created=wanted.created,
                include_usage=wanted.include_usage,
                names=converted.names,
                legacy=converted.legacy,
                cut=cut.Cut(wanted.limits) if wanted.limits != cut.Limits() else None,
                prompt_tokens=partial(prompt_tokens, converted.request),
                index=index,
                usage_chunk=wanted.number == 1 or not wanted.streamed,
                reasoning=self._config.codex.reasoning_format,
            )
            last = DONE if wanted.number == 1 else b""
            if echo is not None:
                return completions.conversion(stream, streamed=wanted.streamed, echo=echo, index=index, last=last)
            turn = None
            if self._config.codex.reasoning_memory_bytes:
                turn = Turn(partial(self._keep, resolved.model.slug))
            return conversions.chat(stream, streamed=wanted.streamed, last=last, turn=turn)

        return conversion

    async def probe(self) -> str:
        """A tiny real request by the way that all requests take; the name of the model. Raises ApiError."""
        model = self._catalog.models.own[0]
        resolved = Resolved(model, model.efforts[0] if model.efforts else None)
        asked = chat.REQUEST.decode(_PROBE)
        converted = convert.from_chat(asked, resolved, convert.Settings(prompt=None, effort=None, verbosity=None))
        wanted = _Wanted("probe", 0, cut.Limits(), streamed=False, include_usage=True, number=1)
        conversion = self._chat_conversion(resolved, converted, wanted)
        await self._single(Record("doctor"), converted, conversion).collect()
        return model.slug

    async def responses(self) -> Response:
        body = await _body()
        asked = _decode(responses.REQUEST, body)
        record = _record()
        resolved = self._understand(record, asked.model, body, parameters.RESPONSES, streamed=bool(asked.stream))
        asked, whole, earlier = self._with_history(asked)
        converted = convert.from_responses(asked, resolved, self._settings(resolved), earlier=earlier)
        given = msgspec.json.decode(body, type=RawObject)
        echo = {key: given[key] for key in ECHOED if key in given and bytes(given[key]) != b"null"}
        stored = asked.store is not False
        echo["store"] = Raw(b"true" if stored else b"false")
        wanted = limits_of(None, ("max_output_tokens", asked.max_output_tokens))

        def keep(document: bytes) -> None:
            if stored:
                self._store.add(msgspec.json.decode(document, type=_Identified).id, whole, document)

        def conversion() -> Conversion:
            truncation = Truncation(cut.Cut(wanted)) if wanted.max_tokens is not None else None
            counted = partial(prompt_tokens, converted.request)
            return conversions.responses(ResponsesStream(echo, converted.names, truncation, counted, keep))

        return await self._answer(record, converted, conversion)

    def _with_history(self, asked: ResponsesRequest) -> tuple[ResponsesRequest, list[RawObject], int]:
        """The request with the turns before it, its whole input, and how many items of that are earlier ones.

        Raises ApiError 400 when these are not there.
        """
        own = state.as_items(asked.input)
        if asked.previous_response_id is None:
            return asked, own, 0
        before = self._store.get(asked.previous_response_id)
        if before is None:
            raise errors.no_such_response(asked.previous_response_id, "previous_response_id")
        whole = [*before.input, *before.output(), *own]
        return msgspec.structs.replace(asked, input=whole), whole, len(whole) - len(own)

    async def response(self, id: str) -> Response:  # noqa: A002 - the API's own word
        """``GET`` and ``DELETE`` of a stored response."""
        found = self._stored(id)
        if request.method == "GET":
            return Response(bytes(found.response), 200, content_type="application/json")
        self._store.delete(id)
        return _json(_Deleted(id))

    async def input_items(self, id: str) -> Response:  # noqa: A002 - the API's own word
        found, asked = self._stored(id), request.args
        limit = asked.get("limit", "20")
        if not limit.isdecimal():
            raise errors.bad_request("limit must be a number.", param="limit")
        page = state.input_items(
            found.input, limit=int(limit[:6]), order=asked.get("order", "desc"), after=asked.get("after")
        )
        return _json(page)

    async def cancel(self, id: str) -> Response:  # noqa: A002 - the API's own word
        """There is nothing to cancel: what is stored is complete, and what streams ends with its connection."""
        self._stored(id)
        raise errors.bad_request(
            "Only background responses can be cancelled, and codexd has none: to end a stream, close its connection.",
            code="not_cancellable",
        )

    async def input_tokens(self) -> Response:
        """An estimate: the backend has no such endpoint for this sign-in."""
        body = await _body()
        asked = _decode(responses.REQUEST, body)
        resolved = self._understand(_record(), asked.model, body, parameters.RESPONSES, streamed=False)
        asked, _, earlier = self._with_history(asked)
        converted = convert.from_responses(asked, resolved, self._settings(resolved), earlier=earlier)
        return _json(_InputTokens(prompt_tokens(converted.request)))

    async def compact(self) -> Response:
        """The conversation, made short by the model: input items to go on with."""
        body = await _body()
        asked = _decode(responses.REQUEST, body)
        record = _record()
        resolved = self._understand(record, asked.model, body, parameters.RESPONSES, streamed=False)
        asked, whole, earlier = self._with_history(asked)
        asked = msgspec.structs.replace(asked, input=[*whole, state.COMPACTION_TRIGGER])
        converted = convert.from_responses(asked, resolved, self._settings(resolved), earlier=earlier)
        relay = self._single(record, converted, lambda: conversions.responses(ResponsesStream({}, converted.names)))
        document, headers = await relay.collect()
        return _document(msgspec.json.encode(state.compacted(document, whole)), headers)

    def _stored(self, id: str) -> Stored:  # noqa: A002 - the API's own word
        found = self._store.get(id)
        if found is None:
            raise errors.no_such_response(id)
        return found

    async def models(self) -> Response:
        listed = [_ModelObject(slug) for slug in self._catalog.models.listed]
        return _json(_ModelList(listed))

    async def model(self, name: str) -> Response:
        self._catalog.resolve(name)
        return _json(_ModelObject(name))

    async def login(self) -> Response:
        """Start a sign-in, or join the one under way; the answer says what the person has to do."""
        _refuse_from_afar()
        body = await _body()
        asked = _decode(_LOGIN, body) if body else _LoginRequest()
        attempt, _ = await self._logins.start(asked.method)
        return _json(self._state_of(attempt))

    async def login_state(self) -> Response:
        _refuse_from_afar()
        attempt = self._logins.current
        if attempt is None:
            return _json(_LoginState("none", self._session.signed_in))
        return _json(self._state_of(attempt))

    def _state_of(self, attempt: Attempt) -> _LoginState:
        signed_in = self._session.signed_in
        if attempt.signed_in is not None:
            return _LoginState("succeeded", signed_in, attempt.method, email=attempt.signed_in.email)
        if attempt.error is not None:
            return _LoginState("failed", signed_in, attempt.method, message=attempt.error.error.message)
        state = _LoginState("pending", signed_in, attempt.method)
        if not attempt.ready.is_set():
            return state
        state.expires_at = int(attempt.expires_at)
        if attempt.user_code is None:
            state.authorization_url = attempt.url
            state.instructions = "Open the address in a browser on the machine where codexd runs, and sign in."
        else:
            state.verification_url, state.user_code = attempt.url, attempt.user_code
            state.instructions = f"Open the address, and enter the code. {DEVICE_CODES_OFF_HINT}"
        return state

    async def health(self) -> Response:
        if request.args.get("stream", "0") not in ("0", "false"):
            _record().streamed = True
            return Streamed(_Pulse())
        signed_in = self._session.signed_in
        ready = self._session.ready or request.args.get("ready", "0") in ("0", "false")
        uptime = int(trio.current_time() - self._started)
        response = _json(_Health("ok" if signed_in else "signed out", __version__, signed_in, uptime))
        response.status_code = 200 if ready else 503
        return response

    # --- the steps of a request

    async def _authenticate(self) -> None:
        """Raises ApiError 401 or 403."""
        if not self._keys.required and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # Any web page can post to loopback, and without a key the account would be its to spend.
            raise errors.cross_site()
        if not self._keys.required or request.path in ("/health", "/v1/health"):
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        name = self._keys.check(given)
        if name is None:
            raise errors.key_required(given=bool(given), any_known=self._keys.any, fault=self._keys.fault)
        _record().key = name

    def _understand(
        self, record: Record, model: str, body: bytes, rules: dict[str, parameters.Rule], *, streamed: bool
    ) -> Resolved:
        record.streamed = streamed
        if not model:
            raise errors.bad_request("model must not be empty; GET /v1/models lists the names.", param="model")
        record.adjusted += parameters.sort_out(body, rules)
        resolved = self._catalog.resolve(model)
        record.model = resolved.model.slug
        if self._config.logging.enable_request_logging:
            log.debug("request as it came", body=body.decode(errors="replace"))
        return resolved

    def _refuse_drops(self, record: Record) -> None:
        if record.key is None or not self._keys.is_strict(record.key):
            return
        dropped = next((entry for entry in record.adjusted if entry.endswith("=dropped")), "").removesuffix("=dropped")
        if dropped:
            raise errors.unsupported(
                dropped,
                f"{dropped!r} cannot be honoured, and the key {record.key!r} is strict: leave it out, or use a key "
                "that is not strict (then it is dropped, and x-codexd-adjusted says so).",
            )

    def _settings(self, resolved: Resolved) -> convert.Settings:
        codex = self._config.codex
        return convert.Settings(
            prompt=prompts.for_model(resolved.model.slug) if codex.mode else None,
            effort=codex.default_reasoning_effort,
            verbosity=codex.default_text_verbosity,
            repair_history=codex.repair_history,
        )

    async def _answer(
        self, record: Record, converted: convert.Converted, conversion: Callable[[], Conversion]
    ) -> Response:
        relay = self._single(record, converted, conversion)
        if record.streamed:
            return Streamed(relay)
        return _document(*await relay.collect())

    def _single(self, record: Record, converted: convert.Converted, conversion: Callable[[], Conversion]) -> Relay:
        """The one relay of a request. Raises ApiError 400 for a strict key, when anything is dropped."""
        record.adjusted += converted.adjusted
        self._refuse_drops(record)
        relay = self._relay(record, converted, conversion)
        record.usage = lambda: relay.usage
        return relay

    def _relay(self, record: Record, converted: convert.Converted, conversion: Callable[[], Conversion]) -> Relay:
        up = converted.request
        call = Call(msgspec.json.encode(up), _header_key(up.prompt_cache_key), converted.lite)
        if self._config.logging.enable_request_logging:
            log.debug("request as it goes up", body=call.body.decode())

        def without_reasoning() -> Call | None:
            rest = convert.without_reasoning(up)
            if rest is None:
                return None
            if "reasoning=dropped" not in record.adjusted:
                record.adjusted.append("reasoning=dropped")
            return call._replace(body=msgspec.json.encode(rest))

        sending = Sending(self._upstream, call, without_reasoning)
        relay = Relay(sending.open, conversion, self._limits, self._config.backend)
        self._relays.add(relay)
        return relay

    def _limits(self, source: Source) -> Sequence[Header]:
        return limits.client_headers(source.headers, self._clock())

    async def _handle_http_error(self, error: HTTPException) -> Response:
        """Quart's and Werkzeug's own refusals, in OpenAI's shape."""
        status = error.code or 500
        match status:
            case 404:
                known = (
                    "POST /v1/chat/completions, POST /v1/responses, GET and DELETE /v1/responses/{id}, "
                    "GET /v1/responses/{id}/input_items, POST /v1/responses/input_tokens, POST /v1/responses/compact, "
                    "POST /v1/completions, "
                    "GET /v1/models, GET /v1/models/{id}, GET /health, POST /auth/login, GET /auth/login"
                )
                message = f"There is no {request.method} {request.path} here. There is: {known}."
            case 405 if "x-upgrade" in request.headers:
                status = 426
                message = f"There is no websocket at {request.path}: send a POST."
            case 405:
                allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
                message = f"{request.path} does not take {request.method}, but {allowed}."
            case 413:
                limit = self._config.server.max_body_bytes
                message = f"The request body is larger than {limit} bytes (server.max_body_bytes)."
            case 408:
                message = f"The request body did not arrive within {BODY_TIMEOUT:g} seconds."
            case _:
                message = error.description or error.name
        codes = {
            404: "unknown_url",
            405: "method_not_allowed",
            426: "upgrade_required",
            413: "request_too_large",
            408: "request_timeout",
        }
        failure = ApiError(status, message, code=codes.get(status))
        failure.headers += [(name, value) for name, value in error.get_headers() if name.lower() == "allow"]
        if isinstance(error, RequestEntityTooLarge):
            # The rest of the body is still on its way, and nobody will read it.
            failure.headers.append(("connection", "close"))
        return error_response(failure, _record())


async def _handle_api_error(error: ApiError) -> Response:
    return error_response(error, _record())


async def _handle_bug(error: Exception) -> Response:
    log.error("a request met a fault of codexd itself", exc_info=error)
    return error_response(errors.internal(_record().id), _record())


def _record() -> Record:
    return cast("ApiRequest", request).record


async def _body() -> bytes:
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in ("", "identity"):
        raise ApiError(
            415,
            f"Request bodies in {encoding!r} encoding are not understood; send the JSON as it is.",
            code="unsupported_encoding",
        )
    return cast("bytes", await request.get_data(cache=False))


def _decode(decoder: msgspec.json.Decoder[_T], body: bytes) -> _T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        said, _, place = str(error).partition(" - at `$")
        param = place.rstrip("`").removeprefix(".") or None
        if param is None and "`" in said and said.startswith("Object missing required field"):
            param = said.split("`")[1]
        raise errors.bad_request(f"{said}{f' at {param}' if place else ''}.", param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise errors.bad_request(f"The request body is not JSON that can be read: {error}") from error


def _document(document: bytes, headers: Sequence[Header]) -> Response:
    response = Response(document, 200, content_type="application/json")
    for name, value in headers:
        response.headers[name] = value
    return response


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), 200, content_type="application/json")


def _refuse_from_afar() -> None:
    """Raises ApiError 403: who signs in decides whose account it is, and that is for this machine to do."""
    host = (request.scope.get("client") or ("127.0.0.1",))[0]
    # A name that is not this machine's own may have been pointed here by somebody else (DNS rebinding), and a page of
    # whatever origin has no business here.
    named = urlsplit(f"//{request.host}").hostname or ""
    foreign = [name for name in ("forwarded", "x-forwarded-for", "x-real-ip", "origin") if name in request.headers]
    site = request.headers.get("sec-fetch-site", "none")
    if foreign or site != "none" or not is_loopback(host) or not is_loopback(named):
        raise errors.not_local()


def _header_key(key: str) -> str:
    """A prompt cache key that can stand in a header: itself, or a hash of it when it cannot."""
    if key.isascii() and key.isprintable() and len(key) <= 256 and key == key.strip():
        return key
    return hashlib.sha256(key.encode()).hexdigest()
