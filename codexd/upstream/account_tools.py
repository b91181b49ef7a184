"""What the account can do beside answers: search, images, transcription. One request and one document each.

Wire facts: section K of the protocol notes. The images endpoint was captured from the official client; search and
transcription are as third parties report them.
"""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import httpx
import msgspec
import structlog
import trio
from msgspec import Raw

from codexd import errors
from codexd.auth.session import Access, Session
from codexd.config.model import Backend
from codexd.protocol import decoding
from codexd.protocol.codex import failures, rate_limits
from codexd.upstream import identity
from codexd.upstream.client import HttpClient, foreign
from codexd.upstream.http_lane import BodyTooLarge, read, read_error

SEARCH_SECONDS = 60.0
IMAGE_SECONDS = 300.0
TRANSCRIPTION_SECONDS = 300.0

MAX_DOCUMENT = 64 * 1024 * 1024
"""Bytes of an answer; images come as base64."""

MAX_FOUND = 2 * 1024 * 1024
"""Bytes of a search's answer, of which 10 000 tokens are asked for."""

log = structlog.get_logger()


class Found(NamedTuple):
    """An answer with status 200: its body, and the account's limits as headers for the client."""

    body: bytes
    headers: list[tuple[str, str]]


class AccountTools:
    """The endpoints of the backend beside ``/codex/responses``. ``clock`` gives Unix seconds."""

    def __init__(self, client: HttpClient, session: Session, config: Backend, *, clock: Callable[[], float]) -> None:
        self._client = client
        self._session = session
        self._clock = clock
        self.configure(config)

    def configure(self, config: Backend) -> None:
        self._config, self._base = config, config.url.rstrip("/")

    async def search(self, body: bytes) -> Found:
        """Sends ``POST /codex/alpha/search``. Raises ApiError."""
        return await self._post("/codex/alpha/search", body, SEARCH_SECONDS, limit=MAX_FOUND)

    async def image(self, body: bytes, *, edits: bool) -> Found:
        """Sends ``POST /codex/images/generations`` or ``/edits``. Raises ApiError."""
        path = "/codex/images/edits" if edits else "/codex/images/generations"
        return await self._post(path, body, IMAGE_SECONDS, {"x-codex-image-turn-id": str(uuid.uuid4())})

    async def transcribe(self, body: bytes, content_type: str) -> Found:
        """Sends ``POST /transcribe``, a form with ``file`` and ``language``. Raises ApiError."""
        return await self._post("/transcribe", body, TRANSCRIPTION_SECONDS, {"content-type": content_type})

    async def _post(
        self,
        path: str,
        body: bytes,
        seconds: float,
        headers: Mapping[str, str] | None = None,
        limit: int = MAX_DOCUMENT,
    ) -> Found:
        own = headers or {}
        access = await self._session.token()
        try:
            with trio.fail_after(seconds):
                status, fields, document = await self._once(path, body, access, own, limit)
                if status == 401 and (again := await self._session.replace(access.token)) is not None:
                    status, fields, document = await self._once(path, body, again, own, limit)
        except trio.TooSlowError as error:
            raise errors.upstream_timeout("no answer", seconds) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise foreign(error) from error
        limits = rate_limits.client_headers(fields, self._clock())
        if status != 200:
            failed = failures.from_http(status, fields, document, self._clock())
            failed.headers += limits
            raise failed
        return Found(document, limits)

    async def _once(
        self, path: str, body: bytes, access: Access, headers: Mapping[str, str], limit: int
    ) -> tuple[int, httpx.Headers, bytes]:
        own = identity.base(self._config, access) | {
            "user-agent": identity.user_agent(self._config),
            "accept": "*/*",
            "content-type": "application/json",
            **headers,
        }
        async with self._client.stream("POST", f"{self._base}{path}", content=body, headers=own) as response:
            if response.status_code != 200:
                return response.status_code, response.headers, await read_error(response)
            try:
                return response.status_code, response.headers, await read(response, limit)
            except BodyTooLarge as error:
                raise errors.upstream_unreadable(f"its answer is larger than {limit} bytes") from error


class _SearchAnswer(msgspec.Struct):
    output: Any


def search_output(body: bytes) -> object:
    """Returns the output of a search's answer. Raises ApiError if it cannot be read."""
    try:
        return decoding.decode(body, type=_SearchAnswer).output
    except msgspec.DecodeError as error:
        raise errors.upstream_unreadable("its search answer cannot be read") from error


class _Image(msgspec.Struct):
    b64_json: str


class ImagesAnswer(msgspec.Struct, kw_only=True):
    """The backend's images, which are PNG unless ``output_format`` says something else."""

    data: list[_Image]
    created: int | None = None
    background: str | None = None
    output_format: str | None = None
    quality: str | None = None
    size: str | None = None
    usage: Raw = Raw(b"null")


def images_answer(body: bytes) -> ImagesAnswer:
    """Decodes an answer with images. Raises ApiError if it cannot be read or has none."""
    try:
        found = decoding.decode(body, type=ImagesAnswer)
    except msgspec.DecodeError as error:
        raise errors.upstream_unreadable("its answer with images cannot be read") from error
    if not found.data:
        raise errors.upstream_unreadable("its answer has no image")
    return found
