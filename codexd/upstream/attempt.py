"""One request to the backend, and what is different about its second try."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from codexd.errors import ApiError
from codexd.upstream.client import Call, EventStream, Upstream

log = structlog.get_logger()


class Attempts:
    """``without_reasoning`` makes the same call without encrypted reasoning; None when there is none in it.

    Such reasoning belongs to an account and a model, and the backend refuses all when it cannot decrypt one of them:
    then it is left out and the request tried once more.
    """

    def __init__(self, upstream: Upstream, call: Call, without_reasoning: Callable[[], Call | None]) -> None:
        self._upstream = upstream
        self._call: Call | None = call
        self._without_reasoning = without_reasoning

    def forget(self) -> None:
        """There will be no other try."""
        self._call, self._without_reasoning = None, _nothing

    @asynccontextmanager
    async def open(self) -> AsyncIterator[EventStream]:
        """As ``Upstream.open``. Raises ValueError when the request was forgotten."""
        if self._call is None:
            raise ValueError("the request was forgotten")
        try:
            async with self._upstream.open(self._call) as source:
                yield source
        except ApiError as error:
            if error.error.code == "invalid_encrypted_content" and (call := self._without_reasoning()) is not None:
                log.info("the backend cannot decrypt the reasoning that was sent back; trying without it")
                self._call, self._without_reasoning = call, _nothing
                error.retryable = True
            raise


def _nothing() -> None:
    return None
