"""``codexctl try``: a question over the control socket, answered by the pipeline of the API."""

from collections.abc import Sequence

import msgspec
import structlog
import trio

from codexd import errors
from codexd.api.chat import prepare_chat
from codexd.api.pipeline import Prepared
from codexd.api.record import Record, new_id
from codexd.control import wire
from codexd.control.server import Say
from codexd.errors import ApiError
from codexd.protocol.chat import wire as chat
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.codex.events import Usage, decode_event
from codexd.protocol.conversion import Conversion
from codexd.protocol.hosted.tools import IMAGE_MODEL, ImageOptions, image_body
from codexd.relay.relay import Header
from codexd.services import Services
from codexd.upstream.account_tools import images_answer

log = structlog.get_logger()


class _ControlConverter:
    """Converts backend events to lines of the control protocol."""

    def __init__(self, stream: ChatStream) -> None:
        self.state = stream
        self.finish_reason: str | None = None

    def push(self, data: bytes) -> bytes:
        lines: list[bytes] = []
        for chunk in self.state.push(decode_event(data)):
            for choice in chunk.choices:
                self.finish_reason = choice.finish_reason or self.finish_reason
                delta = choice.delta
                if delta.reasoning_content:
                    lines.append(wire.encode(wire.TryText(text=delta.reasoning_content, thinking=True)))
                if delta.content:
                    lines.append(wire.encode(wire.TryText(text=delta.content)))
        return b"".join(lines)

    def failure(self, error: ApiError) -> bytes:
        return b""  # ``ask`` raises it, and it becomes the last line

    def keepalive(self) -> bytes:
        return b""

    def document(self) -> bytes:
        raise ValueError("it is streamed")


class _ControlClient:
    """The client of a relay, over a control connection."""

    def __init__(self, say: Say) -> None:
        self._say = say

    async def start(self, headers: Sequence[Header]) -> None:
        pass

    def write_now(self, data: bytes) -> bytes:
        return data

    async def write_rest(self, rest: memoryview | bytes) -> None:
        await self._say(bytes(rest))

    async def end(self) -> None:
        pass


async def ask(services: Services, request: wire.Try, say: Say) -> None:
    """Runs a request that came over the control socket; it is already authorized. Raises ApiError."""
    place = ("/images/edits" if request.images else "/images/generations") if request.draw else "/chat/completions"
    record = Record(new_id(), "POST", f"/v1{place}", place)
    record.streamed = True
    with structlog.contextvars.bound_contextvars(request_id=record.id), services.journal.entry(record):
        try:
            await (_draw if request.draw else _ask)(services, request, record, say)
            record.status = 200
        except ApiError as error:
            record.status = error.status
            record.fail(error)
            raise
        except Exception as error:
            log.error("internal error while handling a request", exc_info=error)
            record.status = 500
            record.fail(failure := errors.internal(record.id))
            raise failure from error
        # If the client disconnects, this is cancelled and the record stays incomplete.
        finally:
            record.complete = record.status != 0


async def _draw(services: Services, request: wire.Try, record: Record, say: Say) -> None:
    record.streamed, record.model = False, IMAGE_MODEL
    record.timings.asked, record.timings.tries = trio.current_time(), 1
    body = msgspec.json.encode(image_body(ImageOptions(), request.question, request.images))
    answer = await services.account.image(body, edits=bool(request.images))
    record.timings.status = 200
    found = images_answer(answer.body)
    await say(wire.TryImage(data=found.data[0].b64_json, format=found.output_format or "png"))
    await say(wire.TryEnded(model=IMAGE_MODEL, finish_reason="stop"))


async def _ask(services: Services, request: wire.Try, record: Record, say: Say) -> None:
    content: list[chat.Part] = [chat.TextPart(text=request.question)]
    content += [chat.ImagePart(image_url=chat.ImageUrl(url=image)) for image in request.images]
    model = request.model or next(iter(services.catalog.models.listed), services.catalog.models.own[0].slug)
    resolved = services.catalog.resolve(model)
    record.model = resolved.model.slug
    message = chat.UserMessage(content=content if request.images else request.question)
    options = chat.WebSearchOptions() if request.search else None
    asked = chat.ChatRequest(
        model=model, messages=[message], reasoning_effort=request.effort, web_search_options=options
    )
    context = services.pipeline.context(record, resolved)
    dialects: list[_ControlConverter] = []

    def conversion() -> Conversion:
        stream = ChatStream(id="", model=record.model or "", created=0, include_usage=False)
        dialects.append(_ControlConverter(stream))
        return Conversion(dialects[-1], b"")

    ((converted, _),) = prepare_chat(asked, context).parts
    answer = services.pipeline.open_answer(record, Prepared([(converted, conversion)]))
    await answer.stream(_ControlClient(say))
    if answer.error is not None:
        raise answer.error
    usage = record.usage() or Usage()
    ended = wire.TryEnded(
        model=record.model,
        finish_reason=dialects[-1].finish_reason,
        tokens_in=usage.input_tokens,
        tokens_out=usage.output_tokens,
    )
    await say(ended)
