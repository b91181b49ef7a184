"""Conversion of a Responses request to the backend's request. Pure functions.

Both use the same protocol, but the backend stores nothing.
"""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw, Struct

from codexd import errors
from codexd.protocol import decoding, tool_pairs
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.codex.models import Resolved
from codexd.protocol.codex.request import (
    INCLUDE,
    InputItem,
    InputText,
    Message,
    OutputText,
    Reasoning,
    Text,
    UpstreamRequest,
)
from codexd.protocol.convert import (
    NEUTRAL,
    Converted,
    Settings,
    Thinking,
    effort_for,
    prompt_key,
    service_tier,
    shaped,
)
from codexd.protocol.raw import RawObject, given, is_text, plain, role_of, type_of
from codexd.protocol.responses import repair
from codexd.protocol.responses.wire import ResponsesRequest
from codexd.protocol.tool_pairs import Placed

_EMPTY, _MESSAGE = Raw(b'""'), Raw(b'"message"')


def from_responses(asked: ResponsesRequest, resolved: Resolved, settings: Settings, *, earlier: int = 0) -> Converted:
    """Converts a request. Its first ``earlier`` items come from ``previous_response_id``, not from the client.

    Raises ApiError 400 naming the part that cannot be converted.
    """
    items, adjusted = _input(asked.input, earlier, settings)
    if not items:
        raise errors.bad_request("input must contain at least one item that can be sent.", param="input")
    if set(asked.include or ()) - set(INCLUDE):
        adjusted += (Adjustment("include", INCLUDE[0]),)
    instructions = "\n\n".join(filter(None, (settings.prompt, asked.instructions)))
    if not instructions:
        instructions, items = _leading_texts(items)
    found, tooled = repair.tools_of(asked.tools or [])
    choice, found, chosen = repair.choice_of(asked.tool_choice, found)
    reasoning, text, model = asked.reasoning, asked.text, resolved.model
    summary = (reasoning and (reasoning.summary or reasoning.generate_summary)) or "auto"
    tier, tiered = service_tier(asked.service_tier)
    effort, named = effort_for(
        Thinking(reasoning.effort if reasoning else None, "reasoning.effort"), resolved, settings
    )
    key, keyed = prompt_key(asked.prompt_cache_key, instructions, items)
    request = UpstreamRequest(
        model=model.slug,
        instructions=instructions,
        service_tier=tier,
        input=items,
        tools=found or UNSET,
        tool_choice=choice,
        parallel_tool_calls=asked.parallel_tool_calls is not False,
        reasoning=Reasoning(effort=effort, summary=UNSET if summary == "none" else summary),
        prompt_cache_key=key,
        text=Text(
            verbosity=(text and text.verbosity) or settings.verbosity or model.verbosity,
            format=text.format if text is not None and given(text.format) else UNSET,
        ),
        client_metadata=asked.client_metadata if given(asked.client_metadata) else UNSET,
    )
    adjusted += (*tiered, *named, *keyed, *tooled, *chosen)
    return shaped(
        request,
        instructions,
        model.lite,
        adjusted,
        forced=asked.parallel_tool_calls,
        settings=settings,
        max_calls=asked.max_tool_calls,
    )


def _input(own: str | list[RawObject], earlier: int, settings: Settings) -> tuple[list[InputItem], Adjustments]:
    if isinstance(own, str):
        return [Message(role="user", content=[InputText(text=own)])], NONE
    placed: list[Placed] = []
    found: dict[Adjustment, None] = {}
    for index, item in enumerate(own, -earlier):
        where = f"input[{index}]" if index >= 0 else "previous_response_id"
        kind = type_of(item)
        meant, repaired = repair.items_of(item, kind, where)
        if repaired:
            found |= dict.fromkeys(repaired)
        for each in meant:
            fit, adjusted = _fit_item(each, kind if each is item else type_of(each))
            if adjusted:
                found |= dict.fromkeys(adjusted)
            if fit is not None:
                placed.append(Placed(fit, where))
    items, paired = tool_pairs.pair(placed, repair=settings.repair_history)
    return items, (*found, *paired)


def _fit_item(item: RawObject, kind: str | None) -> tuple[InputItem | None, Adjustments]:
    """Returns an input item of this type without its id; None if nothing else is in it."""
    if kind == "reasoning" and (not is_text(own := item.get("encrypted_content")) or own == _EMPTY):
        # An id alone is useless to a backend that stores nothing: "Item with id 'rs_...' not found".
        return None, (Adjustment("reasoning", "dropped"),)
    if "id" in item:
        item = {key: value for key, value in item.items() if key != "id"}
    if kind == "web_search_call":
        # codexd's own have more members, such as the pages.
        return {key: value for key, value in item.items() if key in ("type", "status", "action")}, NONE
    if kind not in (None, "message"):
        return item, NONE
    role, adjusted = role_of(item), NONE
    if kind is None or next(iter(item)) != "type":
        item = {"type": _MESSAGE} | {key: value for key, value in item.items() if key != "type"}
    if role == "system":
        adjusted = (Adjustment("system", "developer"),)
        item = item | {"role": Raw(b'"developer"')}
    if is_text(content := item.get("content")):
        text = plain(content) or ""
        part = OutputText(text=text) if role == "assistant" else InputText(text=text)
        item = item | {"content": Raw(msgspec.json.encode([part]))}
    return item, adjusted


def _leading_texts(items: list[InputItem]) -> tuple[str, list[InputItem]]:
    """Returns the leading developer texts as instructions, and the other items."""
    texts: list[str] = []
    for item in items:
        if not isinstance(item, dict) or role_of(item) != "developer":
            break
        try:
            parts = decoding.decode(item.get("content", b"[]"), type=list[_TextPart])
        except msgspec.ValidationError:
            break
        texts.append("\n".join(part.text for part in parts))
    rest: Sequence[InputItem] = items[len(texts) :]
    text = "\n\n".join(filter(None, texts))
    return (text, list(rest)) if text and rest else (NEUTRAL, items)


class _TextPart(Struct):
    text: str
