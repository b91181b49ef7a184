"""Which hosted tools of a request codexd runs itself, and in what words the model is offered them. Pure functions.

Responses-lite models ignore hosted tools in their list of tools without an error, and refuse them elsewhere (reported
by several clients). They are offered functions in a namespace instead, whose calls never reach the client
(``codexd.protocol.hosted.rounds``). Other models get the hosted tools as the client sent them.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct

from codexd import errors
from codexd.protocol import decoding
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.codex.request import Tool, UpstreamRequest
from codexd.protocol.codex.tools import SEARCH, Choice, kind_of, name_of
from codexd.protocol.raw import RawObject, encoded, type_of, unchanged
from codexd.reasons import quoted

SearchMode = Literal["off", "on request", "always"]

IMAGES = "image_generation"
IMAGE_MODEL = "gpt-image-2"
"""The only model that the official client asks for images."""

MAX_ROUNDS = 8
"""Default of the number of hosted calls in one answer."""

_SPACE = "hosted"

_Options = TypeVar("_Options")

_ACCEPTED = frozenset({"function", "custom", "namespace", "tool_search"})
"""Types of tools that responses-lite models know."""

_SEARCH_FUNCTION = {
    "type": "function",
    "name": SEARCH,
    "description": (
        "Searches the web and returns what the pages say. Use it for anything recent, local or uncertain. "
        "In the answer, cite each page that you use as a Markdown link: [title](address)."
    ),
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to search for."},
            "recency": {"type": "integer", "description": "Only pages of this many last days."},
            "domains": {"type": "array", "items": {"type": "string"}, "description": "Only pages of these domains."},
        },
        "required": ["query"],
    },
}

_IMAGE_FUNCTION = {
    "type": "function",
    "name": IMAGES,
    "description": "Draws an image, or changes the last one of the conversation, and shows it to the user.",
    "strict": False,
    "parameters": {
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "description": "What the image shows, in full, or what to change."},
            "change_last_image": {"type": "boolean", "description": "Change the last image of the conversation."},
        },
        "required": ["prompt"],
    },
}


class Location(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """About where the user is, for a search."""

    country: str | None = None
    region: str | None = None
    city: str | None = None
    timezone: str | None = None


class _Filters(Struct, frozen=True, kw_only=True):
    allowed_domains: list[str] | None = None
    blocked_domains: list[str] | None = None


class SearchOptions(Struct, frozen=True, kw_only=True):
    """A ``web_search`` tool, as the client sent it."""

    filters: _Filters | None = None
    user_location: Location | None = None
    search_context_size: Literal["low", "medium", "high"] | None = None
    external_web_access: bool | None = None


class ImageOptions(Struct, frozen=True, kw_only=True):
    """An ``image_generation`` tool, as the client sent it."""

    size: str | None = None
    quality: str | None = None
    background: str | None = None


class Hosted(Struct, frozen=True, kw_only=True):
    """The hosted tools that codexd runs for a request. ``space`` is the namespace of their functions.

    ``rounds`` is the number of calls in one answer. ``key`` identifies the conversation; ``model`` asks.
    """

    space: str
    model: str
    key: str
    search: SearchOptions | None = None
    image: ImageOptions | None = None
    rounds: int = MAX_ROUNDS


class Plan(NamedTuple):
    """Tools and choice for the backend, and the tools that codexd runs."""

    tools: list[Tool]
    choice: Choice
    hosted: Hosted | None
    adjusted: Adjustments


def plan(request: UpstreamRequest, *, lite: bool, mode: SearchMode, rounds: int) -> Plan:
    """Returns who runs the request's tools. Raises ApiError 400 for a tool that nobody would run."""
    tools = [] if request.tools is UNSET else list(request.tools)
    choice = request.tool_choice
    if choice in ("none", Raw(b'"none"')):
        return Plan(tools, choice, None, NONE)
    if mode == "always" and SEARCH not in map(kind_of, tools) and not _brings_its_own(request):
        tools.append({"type": encoded(SEARCH)})
    dropped = {SEARCH} if mode == "off" else set[str]()
    if lite and rounds <= 0:
        dropped |= {SEARCH, IMAGES}
    found = [tool for tool in tools if kind_of(tool) not in dropped]
    adjusted = tuple(Adjustment(kind, "dropped") for kind in sorted(dropped) if kind in map(kind_of, tools))
    if adjusted and (not found or _kind_chosen(choice) in dropped):
        choice = "auto"
    if not lite:
        known = [_without_blocked(tool) for tool in found]
        if not unchanged(known, found):
            adjusted += (Adjustment("blocked_domains", "dropped"),)
        return Plan(known, choice, None, adjusted)
    own, search, image = _parted(found, request.model)
    if search is None and image is None:
        return Plan(own, choice, None, adjusted)
    space = _SPACE
    while space in map(name_of, own):
        space += "_"
    functions = [_SEARCH_FUNCTION] if search is not None else []
    functions += [_IMAGE_FUNCTION] if image is not None else []
    own.append(_namespace(space, functions))
    adjusted += tuple(Adjustment(str(each["name"]), "codexd") for each in functions)
    key = request.prompt_cache_key
    hosted = Hosted(space=space, model=request.model, key=key, search=search, image=image, rounds=rounds)
    return Plan(own, choice, hosted, adjusted)


def _parted(tools: Sequence[Tool], model: str) -> tuple[list[Tool], SearchOptions | None, ImageOptions | None]:
    """Returns the tools that a responses-lite model knows, and the hosted ones. Raises ApiError 400 for any other."""
    search: SearchOptions | None = None
    image: ImageOptions | None = None
    own: list[Tool] = []
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        match kind_of(tool):
            case "web_search":
                search = _options(tool, SearchOptions, where)
            case "image_generation":
                image = _options(tool, ImageOptions, where)
            case kind if kind not in _ACCEPTED:
                message = f"Tool type {quoted(kind)} is not supported for {model}. Remove it from tools."
                raise errors.unsupported(where, message)
            case _:
                own.append(tool)
    return own, search, image


def _kind_chosen(choice: Choice) -> str | None:
    """Returns the type of the hosted tool that a choice forces."""
    if not isinstance(choice, Raw) or not bytes(choice).startswith(b"{"):
        return None
    return kind_of(decoding.decode(choice, type=RawObject))


def _without_blocked(tool: Tool) -> Tool:
    """Returns a search without ``blocked_domains``, which only Anthropic's API has."""
    if (
        not isinstance(tool, dict)
        or kind_of(tool) != SEARCH
        or b"blocked_domains" not in bytes(tool.get("filters", b""))
    ):
        return tool
    try:
        filters = decoding.decode(tool["filters"], type=RawObject)
    except msgspec.ValidationError:
        return tool  # the backend refuses it
    return {**tool, "filters": encoded({key: value for key, value in filters.items() if key != "blocked_domains"})}


def _brings_its_own(request: UpstreamRequest) -> bool:
    """Returns whether the request is the official client's, which searches itself, or asks for no answer."""
    ends = type_of(request.input[0]), type_of(request.input[-1])
    return "additional_tools" in ends or "compaction_trigger" in ends


def _namespace(name: str, functions: Sequence[dict[str, Any]]) -> RawObject:
    described = {"type": "namespace", "name": name, "description": "Tools that need no permission.", "tools": functions}
    return {key: encoded(value) for key, value in described.items()}


def _options(tool: Tool, kind: type[_Options], where: str) -> _Options:
    try:
        return msgspec.convert(decoding.decode(msgspec.json.encode(tool)), kind)
    except msgspec.ValidationError as error:
        raise errors.wrong_shape(error, where) from error


def without(tools: Sequence[Any], space: str) -> list[Any]:
    """Returns the tools without those of codexd."""
    return [tool for tool in tools if name_of(tool) != space]


# --- the backend's endpoints


def search_body(hosted: Hosted, query: str, recency: int | None, domains: Sequence[str]) -> dict[str, Any]:
    """Returns the body of ``POST /codex/alpha/search``, as third parties report it."""
    options = hosted.search or SearchOptions()
    filters = options.filters or _Filters()
    query = " ".join([query, *(f"-site:{domain}" for domain in filters.blocked_domains or ())])
    wanted: dict[str, Any] = {"q": query}
    if recency is not None:
        wanted["recency"] = recency
    if domains:
        wanted["domains"] = list(domains)
    settings: dict[str, Any] = {
        "search_context_size": options.search_context_size or "medium",
        "allowed_callers": ["direct"],
        "external_web_access": options.external_web_access is not False,
    }
    if filters.allowed_domains:
        settings["filters"] = {"allowed_domains": filters.allowed_domains}
    if options.user_location is not None:
        settings["user_location"] = {"type": "approximate", **msgspec.to_builtins(options.user_location)}
    return {
        "id": hosted.key,
        "model": hosted.model,
        "commands": {"search_query": [wanted]},
        "settings": settings,
        "max_output_tokens": 10_000,
    }


def image_body(options: ImageOptions, prompt: str, images: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the body of ``POST /codex/images/generations``, as the official client sends it.

    With ``images``, which are data URLs, it is the body of ``/edits``.
    """
    edited = {"images": [{"image_url": url} for url in images]} if images else {}
    return {
        **edited,
        "prompt": prompt,
        "background": options.background or "opaque",
        "model": IMAGE_MODEL,
        "quality": options.quality or "auto",
        "size": options.size or "auto",
    }
