"""Steps that the request conversions of all dialects share. Pure functions.

Each dialect builds an ``UpstreamRequest`` in the classic shape. ``shaped`` renames tools whose names the backend
refuses, and converts the request for responses-lite models. Source of both shapes: captured requests of the official
client.
"""

import hashlib
import re
import uuid
from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType

from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.codex import tools
from codexd.protocol.codex.models import EFFORTS, Resolved, nearest
from codexd.protocol.codex.request import InputItem, UpstreamRequest
from codexd.protocol.hosted.tools import MAX_ROUNDS, Hosted, SearchMode, plan
from codexd.protocol.lite import to_lite
from codexd.protocol.raw import role_of, type_of, unchanged

_KEYS_FROM, _YEAR = 1_764_000_000_000, 365 * 86_400_000
"""Milliseconds: the times in derived keys are in the year from November 2025 on."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

NEUTRAL = "You are a helpful assistant."
"""Default instructions: the backend refuses a classic request without any."""


class Settings(Struct, frozen=True, kw_only=True):
    """Configured values for a request. ``prompt`` is None when ``codex.mode`` is off.

    ``think_tags``: chat clients get the reasoning between tags in the text, and send it back there.
    """

    prompt: str | None = None
    effort: str | None = None
    verbosity: str | None = None
    repair_history: bool = False
    think_tags: bool = False
    web_search: SearchMode = "on request"
    hosted_calls: int = MAX_ROUNDS


class Converted(Struct, frozen=True):
    """A request for the backend, and the facts that the conversion of its answer needs.

    ``names`` maps each renamed tool to the client's own name. ``legacy``: the client uses the old ``functions`` and is
    answered with ``function_call``. ``hosted``: the hosted tools that codexd runs.
    """

    request: UpstreamRequest
    lite: bool
    adjusted: Adjustments
    names: dict[str, str] = {}
    legacy: bool = False
    hosted: Hosted | None = None


def shaped(
    request: UpstreamRequest,
    instructions: str,
    lite: bool,
    adjusted: Adjustments,
    *,
    forced: bool | None,
    settings: Settings,
    legacy: bool = False,
    max_calls: int | None = None,
) -> Converted:
    """Fits tools and formats to the backend's rules, and applies the model's shape.

    ``forced`` is the client's ``parallel_tool_calls``, ``max_calls`` its limit of calls of hosted tools. Raises
    ApiError 400 for a schema that is too deep, and for a hosted tool that the model cannot have.
    """
    own_tools = [] if request.tools is UNSET else request.tools
    planned = plan(
        request,
        lite=lite,
        mode=settings.web_search,
        rounds=settings.hosted_calls if max_calls is None else min(settings.hosted_calls, max_calls),
    )
    fitted, fit = tools.fit(planned.tools)
    named = tools.name(fitted, request.input, planned.choice)
    form, formed = tools.fit_format(request.text.format)
    adjusted += (*planned.adjusted, *fit, *formed)
    if form is not request.text.format:
        request = msgspec.structs.replace(request, text=msgspec.structs.replace(request.text, format=form))
    if named.names or not unchanged(fitted, own_tools):
        adjusted += (Adjustment("tool_names", "shortened"),) if named.names else NONE
        request = msgspec.structs.replace(
            request, tools=named.tools or UNSET, input=named.items, tool_choice=named.choice
        )
    if lite:
        request, made_lite = to_lite(request, instructions)
        adjusted += (Adjustment("parallel_tool_calls", "false"), *made_lite) if forced else made_lite
    return Converted(request, lite, tuple(dict.fromkeys(adjusted)), named.names, legacy, planned.hosted)


def without_reasoning(request: UpstreamRequest) -> UpstreamRequest | None:
    """Returns the same request without encrypted reasoning, or None when it holds none."""
    items = [item for item in request.input if type_of(item) != "reasoning"]
    return None if len(items) == len(request.input) else msgspec.structs.replace(request, input=items)


class Thinking(NamedTuple):
    """How much to think: an effort, and whether at all (true: some in any case; false: as little as there is).

    ``field`` is the client's field that says so, for the report.
    """

    effort: str | None
    field: str
    thinks: bool | None = None


def effort_for(asked: Thinking, resolved: Resolved, settings: Settings) -> tuple[str | UnsetType, Adjustments]:
    """Returns the reasoning effort: the model name's, else the request's, else the configured one, else the default.

    One that the model lacks becomes the nearest that it has, and an unknown word the default.
    """
    model = resolved.model
    default = settings.effort if settings.effort in model.efforts else model.default_effort
    wanted = resolved.effort or asked.effort or ("none" if asked.thinks is False else None)
    effort = default
    if wanted is not None:
        known = wanted.strip().lower()
        effort = known if known in (model.efforts or EFFORTS) else nearest(model.efforts, known) or default
    if asked.thinks and effort in (None, "none"):
        effort = nearest([each for each in model.efforts if each != "none"], "medium") or "medium"
    said = {each for each in (wanted, asked.effort) if each is not None}
    adjusted = (Adjustment(asked.field, str(effort or "default")),) if said - {effort} else NONE
    # "ultra" is a mode of the official client; on the wire it is "max".
    return (UNSET if effort is None else "max" if effort == "ultra" else effort), adjusted


_BUDGETS = ((2048, "low"), (8192, "medium"), (24_576, "high"))
"""Tokens of thinking up to which an effort stands for them."""


EFFORT_FIELDS = frozenset(
    {"reasoning_effort", "reasoning.effort", "enable_thinking", "thinking", "output_config.effort", "think"}
)
"""The values of ``Thinking.field``, but for ``reasoning``, which also stands for encrypted reasoning."""


def effort_of_budget(tokens: int) -> str:
    """Returns the effort for a budget of thinking tokens, of which the backend has none."""
    return next((effort for limit, effort in _BUDGETS if tokens <= limit), "xhigh")


def service_tier(asked: str | None) -> tuple[Literal["priority"] | UnsetType, Adjustments]:
    if asked in ("fast", "priority"):
        return "priority", (Adjustment("service_tier", "priority"),) if asked == "fast" else NONE
    dropped = asked not in (None, "auto", "default")
    return UNSET, (Adjustment("service_tier", "dropped"),) if dropped else NONE


def prompt_key(asked: str | None, instructions: str, items: Sequence[InputItem]) -> tuple[str, Adjustments]:
    """Returns the ``prompt_cache_key``: the client's if it is a UUID, else one derived from it or the conversation.

    The backend refuses one of over 64 characters, and headers repeat it, so it must be ASCII.
    """
    if not asked:
        return cache_key(instructions, items), NONE
    if _UUID.fullmatch(asked):
        return asked, NONE
    return _derived(asked.encode(errors="surrogatepass")), (Adjustment("prompt_cache_key", "derived"),)


def cache_key(instructions: str, items: Sequence[InputItem]) -> str:
    """Returns a UUID that stays the same for all turns of a conversation, also after a restart.

    Tools do not count, because clients add some in the middle of a conversation.
    """
    first_turn = next((item for item in items if role_of(item) == "user"), None)
    return _derived(msgspec.json.encode((instructions, first_turn)))


def _derived(data: bytes) -> str:
    """Returns a digest in the form of the official client's ids, a UUIDv7; the time in it is derived too."""
    digest = hashlib.sha256(data).digest()
    milliseconds = _KEYS_FROM + int.from_bytes(digest[16:22]) % _YEAR
    bits = milliseconds << 80 | int.from_bytes(digest[:10])
    bits = bits & ~(0xF << 76) | 0x7 << 76  # version
    bits = bits & ~(0b11 << 62) | 0b10 << 62  # variant
    return str(uuid.UUID(int=bits))
