"""The endpoints of the Anthropic Messages API."""

from functools import partial

import msgspec

from codexd import errors
from codexd.api.exchange import Exchange, Reply, json
from codexd.api.pipeline import Context, Dialect, Pipeline, Prepared
from codexd.api.routing import Route
from codexd.lowlevel import workers
from codexd.protocol import parameters
from codexd.protocol.adjustments import Adjustments
from codexd.protocol.anthropic.convert import as_chat, searches, thinking_of, wants_thinking
from codexd.protocol.anthropic.failures import failure_document
from codexd.protocol.anthropic.stream import MessagesConverter
from codexd.protocol.anthropic.wire import MAX_STOPS, REQUEST, MessagesRequest
from codexd.protocol.chat.convert import from_chat
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.conversion import Conversion
from codexd.protocol.convert import Converted
from codexd.protocol.reasoning import Items
from codexd.protocol.stops import Cutoff, limits_of
from codexd.protocol.tokens import counted, prompt_tokens


class _InputTokens(msgspec.Struct):
    input_tokens: int


def prepare(asked: MessagesRequest, context: Context) -> Prepared:
    """Returns the backend request and its conversion. Raises ApiError 400."""
    if asked.max_tokens is None:
        raise errors.bad_request("max_tokens is required.", param="max_tokens")
    converted = convert(asked, context)
    limits = limits_of(
        asked.stop_sequences, ("max_tokens", asked.max_tokens), stop_name="stop_sequences", max_stops=MAX_STOPS
    )
    id, model, thinking = f"msg_{context.id[:28]}", context.resolved.model.slug, wants_thinking(asked)  # noqa: A001
    tokens = counted(converted.request, now=context.large)

    def conversion() -> Conversion:
        ends = Cutoff(limits)
        stream = ChatStream(
            id=id,
            model=model,
            created=0,
            include_usage=False,
            names=converted.names,
            cut=ends,
            prompt_tokens=tokens,
            reasoning="reasoning_content" if thinking else "none",
            streamed=context.streamed,
        )
        dialect = MessagesConverter(
            stream,
            id=id,
            model=model,
            streamed=context.streamed,
            thinking=thinking,
            cut=ends,
            prompt_tokens=tokens,
            turn=context.turn(),
            searches=searches(asked),
        )
        return Conversion(dialect, b"")

    return Prepared([(converted, conversion)])


def convert(asked: MessagesRequest, context: Context) -> Converted:
    """Returns the backend request. Raises ApiError 400."""
    found = as_chat(asked)

    def recall(key: str) -> Items:
        # Reasoning that the client sent comes first; the memory is for clients that discard it.
        return found.recall(key) or context.recall(key)

    converted = from_chat(found.request, context.resolved, context.settings, recall, found.places, thinking_of(asked))
    return msgspec.structs.replace(converted, adjusted=(*found.adjusted, *converted.adjusted))


MESSAGES = Dialect("messages", REQUEST, parameters.MESSAGES, None, failure_document, prepare)


class MessagesEndpoints:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/messages", self.messages, MESSAGES, streams=True),
            Route("POST", "/messages/count_tokens", self.count_tokens, MESSAGES),
        ]

    async def messages(self, exchange: Exchange) -> Reply:
        """Creates a message (Anthropic's Messages API)."""
        asked, context = await self._pipeline.read(exchange, MESSAGES)
        return await self._pipeline.answer(exchange.record, context, partial(prepare, asked))

    async def count_tokens(self, exchange: Exchange) -> Reply:
        """Estimates the number of input tokens. The backend has no such endpoint for ChatGPT accounts."""
        asked, context = await self._pipeline.read(exchange, MESSAGES)

        def count() -> tuple[Adjustments, int]:
            converted = convert(asked, context)
            return converted.adjusted, prompt_tokens(converted.request)

        adjusted, tokens = await workers.run(exchange.record.weight, count)
        exchange.record.adjust(*adjusted)
        return json(_InputTokens(tokens))
