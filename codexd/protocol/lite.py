"""Conversion of classic requests to the shape of responses-lite models. Pure functions."""

from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw

from codexd.protocol import decoding
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.codex import tools
from codexd.protocol.codex.request import (
    AdditionalTools,
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputItem,
    InputPart,
    InputText,
    Message,
    Namespace,
    Tool,
    UpstreamRequest,
)
from codexd.protocol.raw import RawObject, encoded, plain, type_of

NAMESPACE = "functions"
"""The namespace around a client's flat tools for responses-lite models; removed again from the answer."""

_NAMESPACE = encoded(NAMESPACE)
_CALLS = frozenset({"function_call", "custom_tool_call"})
_HOSTED = frozenset({"web_search_call", "image_generation_call"})


def to_lite(request: UpstreamRequest, instructions: str) -> tuple[UpstreamRequest, Adjustments]:
    """Returns a classic request in the shape of responses-lite models.

    The backend answers 400 if one of four conditions is missing: the marker header (``codexd.upstream.client``),
    the tools in an ``additional_tools`` item, ``parallel_tool_calls: false``, and ``reasoning.context: all_turns``.
    """
    own, said, adjusted = _chosen(request)
    items, found = _items(request.input)
    adjusted += found
    head: list[InputItem] = []
    if items and type_of(items[0]) == "additional_tools":
        # The client is the official one: its own tools item must stay first.
        head.append(items.pop(0))
    if own:
        head.append(_wrapped(own))
    head.append(Message(role="developer", content=[InputText(text=instructions)]))
    lite = msgspec.structs.replace(
        request,
        instructions=UNSET,
        input=[*head, *items, *said],
        tools=UNSET,
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning=msgspec.structs.replace(request.reasoning, context="all_turns"),
    )
    return lite, adjusted


def _chosen(request: UpstreamRequest) -> tuple[list[Tool], list[InputItem], Adjustments]:
    """Returns the tools, and a forced choice as an instruction: these models accept only ``auto``."""
    choice = request.tool_choice
    own = [] if request.tools is UNSET else list(request.tools)
    if choice == "none" or choice == Raw(b'"none"'):
        # Without tools the model cannot call one.
        return [], [], (Adjustment("tools", "dropped"),)
    if choice in ("auto", Raw(b'"auto"')):
        return own, [], NONE
    words = tools.instruction(choice)
    if words is None:
        return own, [], (Adjustment("tool_choice", "auto"),)
    # At the end, so that the prefix that the backend has cached does not change.
    said = Message(role="developer", content=[InputText(text=words)])
    return own, [said], (Adjustment("tool_choice", "instruction"),)


def _wrapped(found: Sequence[Tool]) -> AdditionalTools:
    own = [tool for tool in found if type_of(tool) in ("function", "custom")]
    rest = [tool for tool in found if isinstance(tool, dict) and type_of(tool) not in ("function", "custom")]
    wrapped: list[Namespace | RawObject] = [Namespace(name=NAMESPACE, tools=own)] if own else []
    return AdditionalTools(tools=[*wrapped, *rest])


def _items(own: Sequence[InputItem]) -> tuple[list[InputItem], Adjustments]:
    items: list[InputItem] = []
    detailed = hosted = False
    for item in own:
        kind = type_of(item)
        if kind in _CALLS:
            items.append(_in_namespace(item))
        elif kind in _HOSTED and isinstance(item, dict):
            hosted = True
            if (known := _known(item, kind)) is not None:
                items.append(known)
        else:
            fit = _without_detail(item)
            detailed = detailed or fit is not item
            items.append(fit)
    adjusted = (Adjustment("image_detail", "dropped"),) if detailed else NONE
    return items, (*adjusted, Adjustment("hosted_calls", "converted")) if hosted else adjusted


def _in_namespace(item: InputItem) -> InputItem:
    if isinstance(item, dict):
        return item if "namespace" in item else {**item, "namespace": _NAMESPACE}
    return msgspec.structs.replace(item, namespace=NAMESPACE) if isinstance(item, FunctionCall) else item


def _known(item: RawObject, kind: str) -> InputItem | None:
    """Returns an image of an earlier answer as one that the user sent; None for a search, whose answer tells of it.

    These models do not have the hosted tools whose calls such items are.
    """
    if kind == "web_search_call" or (image := plain(item.get("result"))) is None:
        return None
    url = f"data:image/{plain(item.get('output_format')) or 'png'};base64,{image}"
    return Message(role="user", content=[InputText(text="The image that you made:"), InputImage(image_url=url)])


# --- image detail, which these models refuse


def _without_detail(item: InputItem) -> InputItem:
    """Returns the item without image details; the identical object when it has none."""
    match item:
        case Message(content=parts) if any(map(_has_detail, parts)):
            return msgspec.structs.replace(item, content=list(map(_plain_part, parts)))
        case FunctionCallOutput(output=list() as parts) if any(map(_has_detail, parts)):
            return msgspec.structs.replace(item, output=list(map(_plain_part, parts)))
        case dict():
            for key in ("content", "output"):
                if key in item and (fit := _raw_without_detail(item[key])) is not item[key]:
                    item = {**item, key: fit}
            return item
        case _:
            return item


def _has_detail(part: InputPart) -> bool:
    return isinstance(part, InputImage) and part.detail is not UNSET


def _plain_part(part: InputPart) -> InputPart:
    return msgspec.structs.replace(part, detail=UNSET) if isinstance(part, InputImage) else part


def _raw_without_detail(content: Raw) -> Raw:
    """Returns the content without image details; the identical value when it has none."""
    data = bytes(content)
    if b'"input_image"' not in data or b'"detail"' not in data:
        return content
    try:
        parts = decoding.decode(content, type=list[RawObject])
    except msgspec.ValidationError:
        return content
    kept = [
        {key: value for key, value in part.items() if key != "detail" or type_of(part) != "input_image"}
        for part in parts
    ]
    return content if kept == parts else encoded(kept)
