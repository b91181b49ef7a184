"""The Quart application, for websockets only. All other requests go to the router without ASGI."""

from collections.abc import Awaitable, Callable

from quart import Response
from quart_trio import QuartTrio


def make(paths: tuple[str, ...], serve: Callable[[], Awaitable[Response | None]]) -> QuartTrio:
    """Returns an application that serves a websocket at these paths."""
    app = QuartTrio("codexd", static_folder=None, template_folder=None)
    for path in paths:
        app.add_websocket(path, f"websocket {path}", serve)
    return app
