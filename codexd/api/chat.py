"""The endpoints of Chat Completions and of the legacy Completions."""

from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from codexd import errors
from codexd.api.exchange import Exchange, Reply
from codexd.api.pipeline import Context, Dialect, Joined, Pipeline, Prepared
from codexd.api.record import Record
from codexd.api.routing import Route
from codexd.errors import ApiError
from codexd.protocol import parameters
from codexd.protocol.chat import completions
from codexd.protocol.chat import wire as chat
from codexd.protocol.chat.completions import CompletionsConverter
from codexd.protocol.chat.convert import from_chat
from codexd.protocol.chat.converter import ChatConverter
from codexd.protocol.chat.fold import join, total
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.chat.usage import chat_usage
from codexd.protocol.codex.events import Usage
from codexd.protocol.codex.models import Resolved
from codexd.protocol.conversion import DONE, Conversion
from codexd.protocol.convert import Converted, Settings
from codexd.protocol.stops import Cutoff, StopLimits, limits_of
from codexd.protocol.tokens import counted
from codexd.telemetry.trace import Lane, Timings

MAX_N = 8


def prepare_chat(asked: chat.ChatRequest, context: Context) -> Prepared:
    """Returns one backend request for each of the ``n`` choices. Raises ApiError 400."""
    converted = from_chat(asked, context.resolved, context.settings, context.recall)
    tokens = ("max_completion_tokens", asked.max_completion_tokens), ("max_tokens", asked.max_tokens)
    wanted = _Wanted(context, f"chatcmpl-{context.id[:28]}", limits_of(asked.stop, *tokens), asked.stream_options)
    number = _number(asked.n)
    counter = wanted.tokens(converted)
    makers = [partial(wanted.chat_conversion, converted, counter, index, number) for index in range(number)]
    parts = [(converted, maker) for maker in makers]
    return Prepared(parts, None if number == 1 else wanted.joined(number, _usage_chunk))


def prepare_completions(asked: completions.CompletionRequest, context: Context) -> Prepared:
    """Returns ``n`` backend requests for each prompt, which becomes a chat of one message. Raises ApiError 400."""
    limits, texts, per_prompt = limits_of(asked.stop, ("max_tokens", asked.max_tokens)), completions.prompts(asked), 0
    per_prompt = _number(asked.n)
    number = per_prompt * len(texts)
    if number > MAX_N:
        raise errors.bad_request(f"n times the number of prompts must be at most {MAX_N}.", param="n")
    wanted = _Wanted(context, f"cmpl-{context.id[:28]}", limits, asked.stream_options)
    parts: list[tuple[Converted, Callable[[], Conversion]]] = []
    for text in texts:
        converted = from_chat(completions.as_chat(asked, text), context.resolved, context.settings)
        tokens, echo = wanted.tokens(converted), text if asked.echo else ""
        for _ in range(per_prompt):
            maker = partial(wanted.completion_conversion, converted, tokens, len(parts), number, echo)
            parts.append((converted, maker))
    return Prepared(parts, None if number == 1 else wanted.joined(per_prompt, _text_usage_chunk))


CHAT = Dialect("chat", chat.REQUEST, parameters.CHAT, chat.Completion, ApiError.body, prepare_chat)
COMPLETIONS = Dialect(
    "completions",
    completions.REQUEST,
    parameters.COMPLETIONS,
    completions.TextCompletion,
    ApiError.body,
    prepare_completions,
)


class ChatEndpoints:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/chat/completions", self.chat_completions, CHAT, streams=True),
            Route("POST", "/completions", self.completions, COMPLETIONS, streams=True),
        ]

    async def chat_completions(self, exchange: Exchange) -> Reply:
        """Creates a chat completion."""
        return await self._answer(exchange, CHAT)

    async def completions(self, exchange: Exchange) -> Reply:
        """Creates a legacy completion: each prompt becomes a chat of one message."""
        return await self._answer(exchange, COMPLETIONS)

    async def _answer(self, exchange: Exchange, dialect: Dialect) -> Reply:
        asked, context = await self._pipeline.read(exchange, dialect)
        return await self._pipeline.answer(exchange.record, context, partial(dialect.prepare, asked))


async def probe(pipeline: Pipeline, lane: Lane | None = None) -> tuple[str, Timings]:
    """Sends a tiny real request by that lane, or the usual one; returns the model and the times. Raises ApiError."""
    model = pipeline.catalog.models.own[0]
    record = Record("doctor")
    record.timings.only = lane
    context = pipeline.context(record, Resolved(model, model.efforts[0] if model.efforts else None))
    context = context._replace(settings=Settings())
    message = chat.UserMessage(content="Answer with the word ok.")
    asked = chat.ChatRequest(model=model.slug, messages=[message])
    await pipeline.answer(record, context, partial(prepare_chat, asked))
    return model.slug, record.timings


def _number(n: int | None) -> int:
    """Returns the number of choices. Raises ApiError 400."""
    number = 1 if n is None else n
    if not 1 <= number <= MAX_N:
        raise errors.bad_request(f"n must be between 1 and {MAX_N}.", param="n")
    return number


class _Wanted:
    """The options of one chat request, from which the conversions of its answers are made."""

    def __init__(self, context: Context, id: str, limits: StopLimits, options: chat.StreamOptions | None) -> None:  # noqa: A002
        self._context = context
        self._id = id
        self._limits = limits
        self._include_usage = not context.streamed or bool(options and options.include_usage)

    def tokens(self, converted: Converted) -> Callable[[], int]:
        """Returns what counts the tokens of the request, for limits; a stand-in where there are none."""
        return int if self._limits == StopLimits() else counted(converted.request, now=self._context.large)

    def chat_conversion(self, converted: Converted, tokens: Callable[[], int], index: int, number: int) -> Conversion:
        stream = self._stream(converted, tokens, index, number)
        dialect = ChatConverter(stream, streamed=self._context.streamed, turn=self._context.turn())
        return Conversion(dialect, DONE if number == 1 else b"")

    def completion_conversion(
        self, converted: Converted, tokens: Callable[[], int], index: int, number: int, echo: str
    ) -> Conversion:
        stream = self._stream(converted, tokens, index, number)
        dialect = CompletionsConverter(stream, streamed=self._context.streamed, echo=echo, index=index)
        return Conversion(dialect, DONE if number == 1 else b"")

    def _stream(self, converted: Converted, tokens: Callable[[], int], index: int, number: int) -> ChatStream:
        limited = self._limits != StopLimits()
        return ChatStream(
            id=self._id,
            model=self._context.resolved.model.slug,
            created=self._context.created,
            include_usage=self._include_usage,
            names=converted.names,
            legacy=converted.legacy,
            cut=Cutoff(self._limits) if limited else None,
            prompt_tokens=tokens,
            index=index,
            usage_chunk=number == 1 or not self._context.streamed,
            reasoning=self._context.reasoning_format,
            images=self._context.image_format,
            streamed=self._context.streamed,
        )

    def joined(self, per_prompt: int, chunk: Callable[[str, int, str, chat.CompletionUsage], bytes]) -> Joined:
        def usage(found: Sequence[Usage]) -> bytes:
            whole = total(list(map(chat_usage, found)), per_prompt)
            if whole is None or not self._include_usage:
                return b""
            return chunk(self._id, self._context.created, self._context.resolved.model.slug, whole)

        return Joined(usage, lambda documents: join(documents, per_prompt))


def _usage_chunk(id: str, created: int, model: str, usage: chat.CompletionUsage) -> bytes:  # noqa: A002
    return b"data: %b\n\n" % msgspec.json.encode(chat.Chunk(id, "chat.completion.chunk", created, model, [], usage))


def _text_usage_chunk(id: str, created: int, model: str, usage: chat.CompletionUsage) -> bytes:  # noqa: A002
    return completions.frame(completions.TextCompletion(id, "text_completion", created, model, [], usage))
