"""The endpoints of Ollama's API, for tools that speak no other; without ``/v1``, as they ask for them."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec

from codexd.api.exchange import Document, Exchange, Reply, decode, json
from codexd.api.pipeline import Context, Dialect, Pipeline, Prepared
from codexd.api.routing import Route
from codexd.api.service_endpoints import CREATED
from codexd.errors import ApiError
from codexd.protocol import decoding, parameters
from codexd.protocol.chat.convert import from_chat as to_backend
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.codex.models import Model
from codexd.protocol.conversion import Conversion
from codexd.protocol.ollama import convert, wire
from codexd.protocol.ollama.convert import AsChat
from codexd.protocol.ollama.stream import OllamaConverter, failure_document
from codexd.protocol.stops import Cutoff, StopLimits, limits_of
from codexd.protocol.tokens import counted

VERSION = "0.12.6"
"""The version of Ollama whose API this is; clients compare it with the one that they need."""

NDJSON = "application/x-ndjson"

_DATE = f"{datetime.fromtimestamp(CREATED, UTC):%Y-%m-%dT%H:%M:%SZ}"


def prepare_chat(asked: wire.OllamaChat, context: Context) -> Prepared:
    """Returns the backend request and its conversion. Raises ApiError 400."""
    return _prepare(convert.from_chat(asked), context, generate=False)


def prepare_generate(asked: wire.OllamaPrompt, context: Context) -> Prepared:
    """Returns the backend request and its conversion. Raises ApiError 400."""
    return _prepare(convert.from_generate(asked), context, generate=True)


def _prepare(found: AsChat, context: Context, *, generate: bool) -> Prepared:
    asked = found.request
    converted = to_backend(asked, context.resolved, context.settings, context.recall, thinking=found.thinking)
    converted = msgspec.structs.replace(converted, adjusted=(*found.adjusted, *converted.adjusted))
    limits = limits_of(asked.stop, ("options.num_predict", asked.max_tokens), stop_name="options.stop", max_stops=64)
    model, limited = context.resolved.model.slug, limits != StopLimits()
    tokens = counted(converted.request, now=context.large) if limited else int

    def conversion() -> Conversion:
        stream = ChatStream(
            id="",
            model=model,
            created=context.created,
            include_usage=False,
            names=converted.names,
            cut=Cutoff(limits) if limited else None,
            prompt_tokens=tokens,
            reasoning="reasoning_content" if found.thinks else "none",
            images="markdown",
            streamed=context.streamed,
        )
        dialect = OllamaConverter(
            stream,
            model=asked.model,
            created=context.created,
            generate=generate,
            streamed=context.streamed,
            elapsed=lambda: int(context.elapsed() * 1e9),
            turn=context.turn(),
        )
        return Conversion(dialect, b"")

    return Prepared([(converted, conversion)])


CHAT = Dialect(
    "ollama chat", wire.CHAT, parameters.OLLAMA, wire.OllamaAnswer, failure_document, prepare_chat, stream_type=NDJSON
)
GENERATE = Dialect(
    "ollama generate",
    wire.GENERATE,
    parameters.OLLAMA_GENERATE,
    wire.OllamaAnswer,
    failure_document,
    prepare_generate,
    stream_type=NDJSON,
)


class _Named(msgspec.Struct):
    """A request about one model; ``name`` is the older member."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = True


_NAMED = decoding.Decoder(_Named)


class OllamaEndpoints:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def routes(self) -> list[Route]:
        route = partial(Route, api=False, shape=failure_document)
        return [
            route("POST", "/api/chat", self.chat, CHAT, streams=True),
            route("POST", "/api/generate", self.generate, GENERATE, streams=True),
            route("GET", "/api/tags", self.tags),
            route("POST", "/api/show", self.show),
            route("GET", "/api/ps", self.running),
            route("GET", "/api/version", self.version),
            route("POST", "/api/pull", self.pull),
        ]

    async def chat(self, exchange: Exchange) -> Reply:
        """Answers a chat (Ollama's API)."""
        asked, context = await self._pipeline.read(exchange, CHAT)
        if not asked.messages:
            return self._loaded(asked.model, {"message": {"role": "assistant", "content": ""}})
        return await self._pipeline.answer(exchange.record, context, partial(prepare_chat, asked))

    async def generate(self, exchange: Exchange) -> Reply:
        """Continues a prompt (Ollama's API)."""
        asked, context = await self._pipeline.read(exchange, GENERATE)
        if not asked.prompt and not asked.images:
            return self._loaded(asked.model, {"response": ""})
        return await self._pipeline.answer(exchange.record, context, partial(prepare_generate, asked))

    def _loaded(self, model: str, said: dict[str, object]) -> Document:
        """Returns what Ollama says after it has loaded a model, which a request without a prompt asks for."""
        return json({"model": model, "created_at": _now(self._pipeline), **said, "done": True, "done_reason": "load"})

    async def tags(self, exchange: Exchange) -> Reply:
        """Lists the models (Ollama's API)."""
        return json({"models": [_entry(model) for model in self._listed()]})

    async def running(self, exchange: Exchange) -> Reply:
        """Lists the models as loaded (Ollama's API)."""
        until = {"expires_at": "2100-01-01T00:00:00Z", "size_vram": 0}
        return json({"models": [_entry(model) | until for model in self._listed()]})

    async def version(self, exchange: Exchange) -> Reply:
        """Returns the version of Ollama's API that codexd speaks."""
        return json({"version": VERSION})

    async def show(self, exchange: Exchange) -> Reply:
        """Describes a model (Ollama's API)."""
        model = self._resolve(decode(_NAMED, await exchange.body()))
        family = _family(model)
        info: dict[str, object] = {
            "general.architecture": family,
            "general.basename": model.slug,
            f"{family}.context_length": model.context_window or 0,
            f"{family}.embedding_length": 0,
        }
        capabilities = ["completion", "tools", "thinking", *(["vision"] if "image" in model.modalities else [])]
        shown = dict.fromkeys(("license", "modelfile", "parameters", "template"), "")
        facts = {"details": _details(model), "model_info": info, "capabilities": capabilities, "modified_at": _DATE}
        return json(shown | facts)

    async def pull(self, exchange: Exchange) -> Reply:
        """Reports whether a model exists (Ollama's API)."""
        asked = decode(_NAMED, await exchange.body())
        self._resolve(asked)
        body = b'{"status":"success"}\n'
        return Document(body, content_type="application/json" if asked.stream is False else NDJSON)

    def _listed(self) -> Sequence[Model]:
        models = self._pipeline.catalog.models
        return [models.resolve(name).model for name in models.listed]

    def _resolve(self, asked: _Named) -> Model:
        return self._pipeline.catalog.resolve(asked.model or asked.name or "").model


def _now(pipeline: Pipeline) -> str:
    return f"{datetime.fromtimestamp(pipeline.clock(), UTC):%Y-%m-%dT%H:%M:%SZ}"


def _entry(model: Model) -> dict[str, object]:
    name = f"{model.slug}:latest"
    digest = hashlib.sha256(model.slug.encode()).hexdigest()
    return {
        "name": name, "model": name, "modified_at": _DATE, "size": 0, "digest": digest, "details": _details(model),
    }  # fmt: skip


def _details(model: Model) -> dict[str, object]:
    family = _family(model)
    sizes = {"parameter_size": "unknown", "quantization_level": "none"}
    return {"parent_model": "", "format": "remote", "family": family, "families": [family], **sizes}


def _family(model: Model) -> str:
    return model.slug.partition("-")[0]


def refused(path: str) -> ApiError | None:
    """Returns the refusal of a known endpoint of Ollama's that codexd does not have; None for an unknown one."""
    what = {"embed": "embeddings", "embeddings": "embeddings"}.get(path.removeprefix("/api/"))
    if what is not None:
        message = f"The ChatGPT backend does not offer {what}. Set another provider for it in your client."
    elif path in ("/api/create", "/api/copy", "/api/delete", "/api/push"):
        message = "The models belong to ChatGPT: they cannot be created, copied, deleted or pushed."
    else:
        return None
    return ApiError(404, message, code="not_supported")
