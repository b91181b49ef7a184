"""Speech to text, over the endpoint of ChatGPT's own apps; only with ``models.experimental``.

The endpoint and its form are as third parties report them (section K of the protocol notes).
"""

import re
import secrets
import sys
from functools import partial
from typing import Literal

import msgspec
import trio
from msgspec import Struct

from codexd import errors
from codexd.api import forms
from codexd.api.exchange import Document, Exchange, Reply
from codexd.api.pipeline import Kind, Pipeline
from codexd.api.routing import Route
from codexd.errors import ApiError
from codexd.lowlevel import workers
from codexd.protocol import decoding, parameters, sse
from codexd.protocol.members import RequestDecoder
from codexd.protocol.raw import encoded
from codexd.relay.relay import Client, Header, write
from codexd.upstream.account_tools import AccountTools

MAX_FILE = 25 * 1024 * 1024
"""Bytes of a recording, as reported."""

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})?")
_FILE_NAME = re.compile(r"[^\w.-]")


class TranscriptionRequest(Struct, frozen=True, kw_only=True):
    """The fields of the form, without the file."""

    model: str | None = None
    language: str | None = None
    response_format: Literal["json", "text"] | None = None
    stream: bool | None = None


class Transcription(Struct, frozen=True, kw_only=True):
    text: str


REQUEST = RequestDecoder(TranscriptionRequest)

TRANSCRIPTIONS = Kind("transcriptions", REQUEST, parameters.TRANSCRIPTIONS, Transcription, ApiError.body, form="only")

_REFUSED = (
    "{said} Some ChatGPT servers accept transcriptions only from browsers; codexd cannot change that. "
    "Use another provider for transcription."
)


class TranscriptionEndpoints:
    def __init__(self, pipeline: Pipeline, account: AccountTools) -> None:
        self._pipeline = pipeline
        self._account = account

    def routes(self) -> list[Route]:
        return [Route("POST", "/audio/transcriptions", self.transcriptions, TRANSCRIPTIONS, streams=True)]

    async def transcriptions(self, exchange: Exchange) -> Reply:
        """Transcribes speech (experimental)."""
        record = exchange.record
        body = await exchange.body(form=True)  # nothing else is read here
        if not self._pipeline.config.models.experimental:
            raise ApiError(
                404,
                "Transcription is experimental and off. Set models.experimental = true to try it, or set another "
                "provider for it in your client.",
                code="not_supported",
            )
        content_type = exchange.headers.get("content-type", "")
        if not forms.is_form(content_type):
            raise errors.bad_request("Send multipart/form-data with the recording in the field file.", param="file")
        form = await workers.run(sys.maxsize, partial(forms.decode, content_type, body))
        fields = {name: encoded(_value(name, value)) for name, value in form.fields}
        record.adjust(*parameters.apply_rules(fields, parameters.TRANSCRIPTIONS))
        asked: TranscriptionRequest = REQUEST.decode(fields)
        self._pipeline.refuse_drops(record)
        record.model = "transcribe"
        self._pipeline.admit_model(record, record.model)
        name, data = next(((filename, data) for field, filename, data in form.files if field == "file"), ("", b""))
        if not data:
            raise errors.bad_request("The field file is missing or empty. Send the recording in it.", param="file")
        if len(data) > MAX_FILE:
            raise errors.bad_request(
                f"The file is larger than {MAX_FILE} bytes. Send a shorter recording.", param="file"
            )
        if asked.language and not _LANGUAGE.fullmatch(asked.language):
            raise errors.bad_request("language must be a code such as en or de-CH.", param="language")
        record.timings.asked, record.timings.tries = trio.current_time(), 1
        text, headers = await self._transcribe(name, data, asked.language)
        record.timings.status = 200
        record.streamed = bool(asked.stream)
        if asked.stream:
            return _Stream(text, headers)
        if asked.response_format == "text":
            return Document(f"{text}\n".encode(), headers, content_type="text/plain; charset=utf-8")
        return Document(msgspec.json.encode(Transcription(text=text)), headers)

    async def _transcribe(self, name: str, data: bytes, language: str | None) -> tuple[str, list[Header]]:
        boundary = f"codexd-{secrets.token_hex(16)}"
        try:
            form = await workers.run(len(data), partial(_form, boundary, name, data, language))
            found = await self._account.transcribe(form, f"multipart/form-data; boundary={boundary}")
        except ApiError as error:
            if error.status == 403:
                said = _REFUSED.format(said=error.error.message)
                raise ApiError(403, said, code=error.error.code, headers=error.headers) from error
            raise
        try:
            return decoding.decode(found.body, type=Transcription).text, found.headers
        except msgspec.DecodeError as error:
            raise errors.upstream_unreadable("its transcript cannot be read") from error


def _value(name: str, value: str) -> object:
    return value.lower() in ("true", "1") if name == "stream" else value


def _form(boundary: str, name: str, data: bytes, language: str | None) -> bytes:
    """Returns the backend's form. The boundary is random, so no recording contains it."""
    name = _FILE_NAME.sub("_", name)[:100] or "audio"
    parts = (
        [f'--{boundary}\r\ncontent-disposition: form-data; name="language"\r\n\r\n{language}\r\n'] if language else []
    )
    head = f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
    kind = "content-type: application/octet-stream\r\n\r\n"
    return "".join([*parts, head, kind]).encode() + data + f"\r\n--{boundary}--\r\n".encode()


class _Stream:
    """A transcript as one event."""

    error: ApiError | None = None
    done = False

    def __init__(self, text: str, headers: list[Header]) -> None:
        self._text = text
        self._headers = headers

    async def stream(self, client: Client) -> None:
        await client.start(self._headers)
        for kind, key in (("transcript.text.delta", "delta"), ("transcript.text.done", "text")):
            await write(client, sse.encode(kind.encode(), msgspec.json.encode({"type": kind, key: self._text})))
        await client.end()
        self.done = True
