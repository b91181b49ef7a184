"""The endpoints of Chat Completions, and of the legacy completions before it."""

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from codexd import errors
from codexd.api.answers import Answers
from codexd.exchange import Document, Exchange, Record, Reply, Route, Streamed, decode
from codexd.protocol import chat, completions, cut, parameters
from codexd.protocol import conversion as conversions
from codexd.protocol import request as convert
from codexd.protocol.conversion import DONE, Conversion
from codexd.protocol.cut import limits as limits_of
from codexd.protocol.ending import chat_usage
from codexd.protocol.estimate import prompt_tokens
from codexd.protocol.fold import join, total
from codexd.protocol.models import Resolved
from codexd.protocol.stream import ChatStream
from codexd.relay.fanout import MAX_N, Fanout


class _Wanted(NamedTuple):
    """How a chat client wants its answer, and the answer's own id and creation time."""

    id: str
    created: int
    limits: cut.Limits
    streamed: bool
    include_usage: bool
    number: int


_PROBE = b'{"model": "-", "messages": [{"role": "user", "content": "Answer with the word ok."}]}'


class ChatEndpoints:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/chat/completions", self.chat_completions),
            Route("POST", "/completions", self.completions),
        ]

    async def chat_completions(self, exchange: Exchange) -> Reply:
        """A chat completion, as OpenAI has it."""
        body = await exchange.body()
        asked = decode(chat.REQUEST, body)
        record = exchange.record
        resolved = self._answers.understand(record, asked, body, parameters.CHAT)
        del body  # images of megabytes: what goes up is encoded next
        recall = partial(self._answers.recall, resolved.model.slug)
        converted = convert.from_chat(asked, resolved, self._answers.settings(resolved), recall)
        tokens = ("max_completion_tokens", asked.max_completion_tokens), ("max_tokens", asked.max_tokens)
        wanted = self._wanted("chatcmpl", limits_of(asked.stop, *tokens), asked.stream_options, record, asked.n)
        makers = [self._chat_conversion(resolved, converted, wanted, index) for index in range(wanted.number)]
        return await self._respond(record, [converted] * wanted.number, makers, wanted, per_prompt=wanted.number)

    async def completions(self, exchange: Exchange) -> Reply:
        """The legacy endpoint: each prompt a chat of one message."""
        body = await exchange.body()
        asked = decode(completions.REQUEST, body)
        record = exchange.record
        resolved = self._answers.understand(record, asked, body, parameters.COMPLETIONS)
        limits = limits_of(asked.stop, ("max_tokens", asked.max_tokens))
        texts, settings = completions.prompts(asked), self._answers.settings(resolved)
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
        return await self._respond(record, converted, makers, wanted, per_prompt=each.number)

    def _wanted(
        self, prefix: str, limits: cut.Limits, options: chat.StreamOptions | None, record: Record, n: int | None
    ) -> _Wanted:
        number = 1 if n is None else n
        if not 1 <= number <= MAX_N:
            raise errors.bad_request(f"n must be between 1 and {MAX_N}.", param="n")
        include_usage = not record.streamed or bool(options and options.include_usage)
        id = f"{prefix}-{secrets.token_hex(14)}"  # noqa: A001 - the API's own word
        return _Wanted(id, int(self._answers.clock()), limits, record.streamed, include_usage, number)

    async def _respond(
        self,
        record: Record,
        converted: Sequence[convert.Converted],
        makers: Sequence[Callable[[], Conversion]],
        wanted: _Wanted,
        *,
        per_prompt: int,
    ) -> Reply:
        """One answer, or several as so many choices. Raises ApiError 400 for a strict key, when anything is dropped."""
        if wanted.number == 1:
            return await self._answers.respond(record, self._answers.single(record, converted[0], makers[0]))
        record.adjusted += [entry for each in converted for entry in each.adjusted if entry not in record.adjusted]
        self._answers.refuse_drops(record)
        relays = [self._answers.relay(record, each, make) for each, make in zip(converted, makers, strict=True)]

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

        fanout = Fanout(relays, usage)
        record.usage = lambda: relays[0].usage
        if record.streamed:
            return Streamed(fanout)
        documents, headers = await fanout.collect()
        return Document(join(documents, per_prompt), headers)

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

        limited = wanted.limits != cut.Limits()

        def conversion() -> Conversion:
            stream = ChatStream(
                id=wanted.id,
                model=resolved.model.slug,
                created=wanted.created,
                include_usage=wanted.include_usage,
                names=converted.names,
                legacy=converted.legacy,
                cut=cut.Cut(wanted.limits) if limited else None,
                # Only where it may be asked for: it keeps the request for as long as the answer takes.
                prompt_tokens=partial(prompt_tokens, converted.request) if limited else int,
                index=index,
                usage_chunk=wanted.number == 1 or not wanted.streamed,
                reasoning=self._answers.config.codex.reasoning_format,
            )
            last = DONE if wanted.number == 1 else b""
            if echo is not None:
                return completions.conversion(stream, streamed=wanted.streamed, echo=echo, index=index, last=last)
            turn = self._answers.turn(resolved.model.slug)
            return conversions.chat(stream, streamed=wanted.streamed, last=last, turn=turn)

        return conversion

    async def probe(self) -> str:
        """A tiny real request by the way that all requests take; the name of the model. Raises ApiError."""
        model = self._answers.catalog.models.own[0]
        resolved = Resolved(model, model.efforts[0] if model.efforts else None)
        asked = chat.REQUEST.decode(_PROBE)
        converted = convert.from_chat(asked, resolved, convert.Settings(prompt=None, effort=None, verbosity=None))
        wanted = _Wanted("probe", 0, cut.Limits(), streamed=False, include_usage=True, number=1)
        conversion = self._chat_conversion(resolved, converted, wanted)
        await self._answers.single(Record("doctor"), converted, conversion).collect()
        return model.slug
