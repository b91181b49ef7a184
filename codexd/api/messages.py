"""The endpoints of the Anthropic Messages API."""

import secrets
from functools import partial

import msgspec

from codexd import errors
from codexd.api.answers import Answers
from codexd.errors import ApiError
from codexd.exchange import Exchange, Record, Reply, Route, decode, json
from codexd.protocol import anthropic, blocks, cut, parameters
from codexd.protocol import request as convert
from codexd.protocol.anthropic import MessagesRequest
from codexd.protocol.blocks import MessagesDialect
from codexd.protocol.conversion import Conversion
from codexd.protocol.estimate import prompt_tokens
from codexd.protocol.memory import Items
from codexd.protocol.models import Resolved
from codexd.protocol.stream import ChatStream


class _InputTokens(msgspec.Struct):
    input_tokens: int


class MessagesEndpoints:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/messages", self.messages, failure=anthropic.failure),
            Route("POST", "/messages/count_tokens", self.count_tokens, failure=anthropic.failure),
        ]

    async def messages(self, exchange: Exchange) -> Reply:
        """A message, as Anthropic's Messages API has it."""
        body = await exchange.body()
        asked = decode(anthropic.REQUEST, body)
        if asked.max_tokens is None:
            raise errors.bad_request("max_tokens is required.", param="max_tokens")
        record = exchange.record
        resolved, converted = self._convert(record, asked, body)
        limits = cut.limits(
            asked.stop_sequences,
            ("max_tokens", asked.max_tokens),
            stop_name="stop_sequences",
            max_stops=anthropic.MAX_STOPS,
        )
        name = f"msg_{secrets.token_hex(14)}"

        def conversion() -> Conversion:
            thinking = anthropic.wants_thinking(asked)
            counted = partial(prompt_tokens, converted.request)
            ends = cut.Cut(limits)
            stream = ChatStream(
                id=name,
                model=resolved.model.slug,
                created=0,
                include_usage=False,
                names=converted.names,
                cut=ends,
                prompt_tokens=counted,
                reasoning="reasoning_content" if thinking else "none",
            )
            return blocks.conversion(
                MessagesDialect(
                    stream,
                    id=name,
                    model=resolved.model.slug,
                    streamed=record.streamed,
                    thinking=thinking,
                    cut=ends,
                    prompt_tokens=counted,
                    turn=self._answers.turn(resolved.model.slug),
                )
            )

        return await self._answers.respond(record, self._answers.single(record, converted, conversion))

    async def count_tokens(self, exchange: Exchange) -> Reply:
        """An estimate: the backend has no such endpoint for this sign-in."""
        body = await exchange.body()
        _, converted = self._convert(exchange.record, decode(anthropic.REQUEST, body), body)
        return json(_InputTokens(prompt_tokens(converted.request)))

    def _convert(self, record: Record, asked: MessagesRequest, body: bytes) -> tuple[Resolved, convert.Converted]:
        resolved = self._answers.understand(record, asked, body, parameters.MESSAGES)
        found = anthropic.as_chat(asked)
        record.adjusted += dict.fromkeys(found.adjusted)

        remembered = False

        def recall(key: str) -> Items:
            # What the client carried itself comes first; what was kept here is for those that throw it away.
            nonlocal remembered
            if own := found.recall(key):
                return own
            kept = self._answers.recall(resolved.model.slug, key)
            remembered |= bool(kept)
            return kept

        settings = self._answers.settings(resolved)
        try:
            converted = convert.from_chat(found.request, resolved, settings, recall, found.places)
        except ApiError as error:
            if error.error.param == "reasoning_effort":
                error.error = msgspec.structs.replace(error.error, param="output_config.effort")
            raise
        if not remembered and "reasoning=recalled" in converted.adjusted:
            converted.adjusted.remove("reasoning=recalled")
        return resolved, converted
