"""The Quart application, for websockets only. All other requests go to the router without ASGI.

Quart is imported with the first websocket, in a thread: with Flask, Werkzeug and asyncio it takes half of the start and
a fifth of the memory at rest, and most codexds never serve one.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from quart import Response
    from quart_trio import QuartTrio


def check() -> None:
    """Raises ImportError if the installed Quart does not fit."""
    import quart_trio  # noqa: F401


class WebsocketApp:
    """An ASGI application that serves a websocket at these paths."""

    def __init__(self, paths: tuple[str, ...], serve: Callable[[], "Awaitable[Response | None]"]) -> None:
        self._paths = paths
        self._serve = serve
        self._app: QuartTrio | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            await trio.to_thread.run_sync(self.load)
        assert self._app is not None  # noqa: S101 - it is loaded now
        await self._app(scope, receive, send)

    def load(self) -> None:
        """Imports Quart and makes the application."""
        from quart_trio import QuartTrio

        app = QuartTrio("codexd", static_folder=None, template_folder=None)
        for path in self._paths:
            app.add_websocket(path, f"websocket {path}", self._serve)
        self._app = app
