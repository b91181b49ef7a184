"""The table of all endpoints: fixed paths, and patterns with one name."""

import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import NamedTuple

from codexd.api.exchange import Exchange, Reply
from codexd.api.pipeline import Kind
from codexd.errors import ApiError
from codexd.server.request import Handler, ServerRequest

_NAME = re.compile(r"<(?:path:)?(\w+)>")

Serve = Callable[["Route", dict[str, str], ServerRequest], Awaitable[None]]


class Route(NamedTuple):
    """One endpoint. ``path`` may contain one name: ``<id>`` is a segment, ``<path:id>`` the rest of the path.

    ``api``: served both with and without the /v1 prefix, for clients whose base URL lacks it. ``dialect`` is that of
    the request's body, if any; ``streams``: the answer can be an event stream. ``keyless``: no client key is asked for.
    ``shape`` encodes an error if there is no dialect.
    """

    method: str
    path: str
    handler: Callable[[Exchange], Awaitable[Reply]]
    dialect: Kind | None = None
    api: bool = True
    streams: bool = False
    keyless: bool = False
    shape: Callable[[ApiError], bytes] = ApiError.body

    @property
    def failure(self) -> Callable[[ApiError], bytes]:
        """The function that encodes an error in the shape of the endpoint's API."""
        return self.shape if self.dialect is None else self.dialect.failure

    @property
    def spends(self) -> bool:
        """Whether a request uses the account's limits."""
        return self.streams or self.path in ("/responses/compact", "/alpha/search")

    @property
    def summary(self) -> str:
        return (self.handler.__doc__ or "").partition("\n")[0]

    @property
    def public_path(self) -> str:
        """The path as in the documentation, such as ``/v1/responses/{id}``."""
        return "".join(["/v1" if self.api else "", _NAME.sub(r"{\1}", self.path)])


class Router:
    """Finds the handler of a request. ``serve`` runs a route with the names in the path.

    ``refuse`` answers a request that no route matches; it gets the methods of the path. ``preflight`` answers OPTIONS
    for a path that has methods, while ``preflights()`` is true.
    """

    def __init__(
        self,
        routes: Iterable[Route],
        serve: Serve,
        *,
        refuse: Callable[[list[str], Exchange], Awaitable[Reply]],
        preflight: Callable[[list[str], Exchange], Awaitable[Reply]],
        preflights: Callable[[], bool],
    ) -> None:
        self.routes = list(routes)
        self._serve = serve
        self._refuse = refuse
        self._preflight = preflight
        self._preflights = preflights
        self._fixed: dict[str, dict[str, Handler]] = {}
        self._patterns: list[tuple[re.Pattern[str], Route]] = []
        for route in self.routes:
            if "<" in route.path:
                self._patterns.append((_pattern(route), route))
                continue
            for prefix in ("/v1", "") if route.api else ("",):
                methods = self._fixed.setdefault(f"{prefix}{route.path}", {})
                methods[route.method] = self._handler(route)
                if route.method == "GET":
                    methods["HEAD"] = methods["GET"]

    def find(self, method: str, path: str) -> Handler:
        """Returns the handler of the request; if no route matches, the handler of the refusal."""
        path = fold(path)
        methods = self._fixed.get(path, {})
        if (handler := methods.get(method)) is not None:
            return handler
        named = [(found, route) for pattern, route in self._patterns if (found := pattern.fullmatch(path))]
        for found, route in named:
            if method == route.method or (method == "HEAD" and route.method == "GET"):
                return self._handler(route, found.groupdict())
        allowed = [each for each in (*methods, *(route.method for _, route in named)) if each != "HEAD"]
        if method == "OPTIONS" and allowed and self._preflights():
            # The metrics count the pattern: preflights need no key and may contain any name.
            counted = path if methods else named[0][1].path
            answer = partial(self._preflight, allowed)
            return self._handler(Route(method, counted, answer))
        return self._handler(Route("", "", partial(self._refuse, allowed)))

    def _handler(self, route: Route, names: dict[str, str] | None = None) -> Handler:
        return partial(self._serve, route, names or {})


_PREFIX = re.compile(r"(?:/(?:anthropic|openai))?(?:/v1)*(?=/v1/|/v1$)|/(?:anthropic|openai)(?=/)")
"""What careless joining puts before a path: a base URL that ends in /v1, and the name of an API."""


def fold(path: str) -> str:
    """Returns the path without what careless joining of base URLs adds: slashes, a second /v1, an API's name."""
    if "//" in path:
        path = re.sub(r"/{2,}", "/", path)
    if path.startswith(("/v1/v1", "/anthropic/", "/openai/")) and (found := _PREFIX.match(path)):
        path = path[found.end() :]
    return path.rstrip("/") or "/" if path.endswith("/") else path


def _pattern(route: Route) -> re.Pattern[str]:
    before, name, after = _NAME.split(route.path)
    kind = ".+" if f"<path:{name}>" in route.path else "[^/]+"
    prefix = "(?:/v1)?" if route.api else ""
    return re.compile(f"{prefix}{re.escape(before)}(?P<{name}>{kind}){re.escape(after)}")
