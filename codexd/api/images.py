"""The endpoints of OpenAI's Images API, over the backend's own for images."""

import base64
import sys
from collections.abc import Sequence
from functools import partial

import msgspec
import trio
from msgspec import UNSET

from codexd import errors
from codexd.api import forms
from codexd.api.exchange import Document, Exchange, Reply
from codexd.api.pipeline import Kind, Pipeline
from codexd.api.record import Record
from codexd.api.routing import Route
from codexd.auth.session import Session
from codexd.errors import ApiError
from codexd.lowlevel import workers
from codexd.protocol import decoding, images, parameters, sse
from codexd.protocol.adjustments import Adjustment
from codexd.protocol.codex.events import Usage, total_usage
from codexd.protocol.hosted.tools import IMAGE_MODEL
from codexd.protocol.images import Image, ImagesRequest, ImagesResponse
from codexd.protocol.raw import RawObject
from codexd.relay.relay import Client, Header, write
from codexd.state.images import ImageStore
from codexd.upstream.account_tools import AccountTools, ImagesAnswer, images_answer

AT_ONCE = 4
"""Requests to the backend for one request with ``n``."""

KEEPALIVE = 15.0
"""Seconds between the comments that keep a stream open while images are made, which takes minutes."""

IMAGES = Kind("images", images.REQUEST, parameters.IMAGES, ImagesResponse, ApiError.body, form="too")

_KINDS = frozenset({"png", "jpeg", "webp", "gif"})
_REFUSING = frozenset({402, 403, 404})


class ImagesEndpoints:
    def __init__(self, pipeline: Pipeline, session: Session, account: AccountTools, store: ImageStore) -> None:
        self._pipeline = pipeline
        self._session = session
        self._account = account
        self._store = store
        self.clock = pipeline.clock

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/images/generations", self.generations, IMAGES, streams=True),
            Route("POST", "/images/edits", self.edits, IMAGES, streams=True),
            Route("GET", "/images/files/<id>", self.file, keyless=True),
        ]

    async def generations(self, exchange: Exchange) -> Reply:
        """Generates images (OpenAI's Images API)."""
        return await self._answer(exchange, edits=False)

    async def edits(self, exchange: Exchange) -> Reply:
        """Edits images; accepts JSON or a form."""
        return await self._answer(exchange, edits=True)

    async def file(self, exchange: Exchange) -> Reply:
        """Returns an image that was asked for as a URL."""
        found = self._store.get(exchange.names["id"])
        if found is None:
            raise ApiError(
                404,
                "The image has expired. Generate it again; storage.image_seconds sets how long images are kept.",
                code="image_not_found",
            )
        headers = [("cache-control", "private, max-age=3600, immutable"), ("x-content-type-options", "nosniff")]
        return Document(found.data, headers, content_type=f"image/{found.kind}")

    async def _answer(self, exchange: Exchange, *, edits: bool) -> Reply:
        record = exchange.record
        asked = await self._read(exchange)
        body, adjusted = await workers.run(record.weight, partial(images.to_backend, asked, edits=edits))
        record.adjust(*adjusted)
        self._pipeline.refuse_drops(record)
        work = _Work(self, exchange, asked, body, edits=edits)
        if record.streamed:
            return _Stream(work)
        answer, headers = await work.whole()
        return Document(await workers.run(sys.maxsize, partial(msgspec.json.encode, answer)), headers)

    async def _read(self, exchange: Exchange) -> ImagesRequest:
        content_type, record = exchange.headers.get("content-type", ""), exchange.record
        is_form = forms.is_form(content_type)
        body = await exchange.body(form=is_form)
        if is_form:
            found = await workers.run(sys.maxsize, partial(_members, content_type, body))
            asked: ImagesRequest = await workers.run(len(body), partial(images.REQUEST.decode, found))
        else:
            found, asked = await self._pipeline.decode(body, images.REQUEST)
        record.model = IMAGE_MODEL
        record.adjust(*parameters.apply_rules(found, parameters.IMAGES))
        self._pipeline.admit_model(record, IMAGE_MODEL)
        record.streamed = bool(asked.stream)
        return asked

    async def make(self, record: Record, body: bytes, *, edits: bool) -> tuple[ImagesAnswer, Sequence[Header]]:
        """Asks the backend for one image. Raises ApiError."""
        record.timings.asked = record.timings.asked or trio.current_time()
        record.timings.tries += 1
        try:
            found = await self._account.image(body, edits=edits)
        except ApiError as error:
            plan = self._session.describe().plan
            if error.status in _REFUSING and plan in ("free", "guest"):
                raise errors.no_images(plan, error.error.message) from error
            raise
        record.timings.status = 200
        return images_answer(found.body), found.headers

    def place(self, exchange: Exchange, image: str, kind: str) -> str | None:
        """Stores an image; returns its address, as the client reaches codexd. None if it has no place."""
        try:
            name = self._store.add(base64.b64decode(image), kind)
        except ValueError as error:
            raise errors.upstream_unreadable("its image cannot be read") from error
        host = exchange.headers.get("host", "")
        if name is None or not host:
            return None
        scheme = "https" if exchange.headers.get("x-forwarded-proto", "").lower() == "https" else "http"
        return f"{scheme}://{host}/v1/images/files/{name}"


def _members(content_type: str, body: bytes) -> RawObject:
    form = forms.decode(content_type, body)
    return images.members_of(form.fields, [(name, data) for name, _, data in form.files])


class _Work:
    """One request for images."""

    def __init__(
        self, endpoints: ImagesEndpoints, exchange: Exchange, asked: ImagesRequest, body: bytes, *, edits: bool
    ) -> None:
        self._endpoints = endpoints
        self._exchange = exchange
        self._asked = asked
        self._body = body
        self.edits = edits

    async def whole(self) -> tuple[ImagesResponse, Sequence[Header]]:
        """Makes all images; returns the answer and its headers. Raises ApiError if one of them fails."""
        number = self._asked.n or 1
        found: list[tuple[ImagesAnswer, Sequence[Header]] | None] = [None] * number
        failed: list[ApiError] = []
        limit = trio.CapacityLimiter(AT_ONCE)
        record = self._exchange.record
        async with trio.open_nursery() as nursery:

            async def make(index: int) -> None:
                async with limit:
                    try:
                        found[index] = await self._endpoints.make(record, self._body, edits=self.edits)
                    except ApiError as error:
                        failed.append(error)
                        nursery.cancel_scope.cancel()

            for index in range(number):
                nursery.start_soon(make, index)
        if failed:
            raise failed[0]
        answers = [each for each in found if each is not None]
        usage = total_usage([_usage(each) for each, _ in answers])
        record.usage = lambda: usage
        return self._joined([each for each, _ in answers]), answers[-1][1]

    def _joined(self, answers: Sequence[ImagesAnswer]) -> ImagesResponse:
        first = answers[0]
        kind = first.output_format if first.output_format in _KINDS else "png"
        data = [self._image(each.b64_json, kind) for answer in answers for each in answer.data]
        single = len(answers) == 1 and bytes(first.usage) != b"null"
        return ImagesResponse(
            created=first.created or int(self._endpoints.clock()),
            data=data,
            background=first.background or UNSET,
            output_format=kind,
            quality=first.quality or UNSET,
            size=first.size or UNSET,
            usage=first.usage if single else UNSET,
        )

    def _image(self, data: str, kind: str) -> Image:
        if images.wants_url(self._asked):
            if (url := self._endpoints.place(self._exchange, data, kind)) is not None:
                return Image(url=url)
            self._exchange.record.adjust(Adjustment("response_format", "b64_json"))
        return Image(b64_json=data)


def _usage(answer: ImagesAnswer) -> Usage | None:
    try:
        return decoding.decode(answer.usage, type=Usage | None)
    except msgspec.DecodeError:
        return None


class _Stream:
    """The images as events, when all are made; comments keep the connection open until then."""

    def __init__(self, work: _Work) -> None:
        self._work = work
        self.error: ApiError | None = None
        self.done = False

    async def stream(self, client: Client) -> None:
        """Streams the answer. Raises ApiError only before the first comment."""
        started, finished = False, trio.Event()
        found: list[tuple[ImagesResponse, Sequence[Header]]] = []

        async def make() -> None:
            try:
                found.append(await self._work.whole())
            except ApiError as error:
                self.error = error
            finished.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            while not finished.is_set():
                with trio.move_on_after(KEEPALIVE):
                    await finished.wait()
                    break
                if not started:
                    await client.start([])
                    started = True
                await write(client, b": keepalive\n\n")
        if self.error is not None and not started:
            raise self.error
        for answer, headers in found:
            if not started:
                await client.start(headers)
            for image in answer.data:
                await write(client, images.completed_event(image, answer, edits=self._work.edits))
        if self.error is not None:
            await write(client, sse.encode(b"error", self.error.body()))
        self.done = self.error is None
        await client.end()
