"""Input items and tools of Responses requests that are written in another API's words. Pure functions.

Clients send Chat Completions' parts, messages and nested tools to this API, leave out arguments, or put an object where
a text belongs. What means one thing only is put into this API's words; for the rest ApiError 400 names the place. An
item that is right stays the identical object.
"""

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd import errors
from codexd.protocol import decoding
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.client_tools import WORDS, NamedChoice, choose, from_chat
from codexd.protocol.codex.request import Tool
from codexd.protocol.codex.tools import Choice, kind_of, name_of
from codexd.protocol.raw import RawObject, encoded, given, is_text, plain, type_of, unchanged

REPAIRED: Adjustments = (Adjustment("input", "repaired"),)

_CHATS_KEYS = frozenset(
    {"tool_calls", "refusal", "function_call", "reasoning_content", "reasoning", "reasoning_details", "audio", "name",
     "annotations", "images", "tool_call_id"}
)  # fmt: skip
"""Members of Chat Completions' messages that a message of this API has not."""

_OBJECT = decoding.Decoder(RawObject)
_LIST = decoding.Decoder(list[Raw])
_EMPTY = Raw(b'""')


# --- items


def items_of(item: RawObject, kind: str | None, where: str) -> tuple[list[RawObject], Adjustments]:
    """Returns the items that an item of this type means: several for a chat message with calls, maybe none.

    Raises ApiError 400.
    """
    match kind:
        case None if given(item.get("type", UNSET)):
            raise errors.bad_request(f"{where}.type must be a string.", param=f"{where}.type")
        case None | "message":
            return _message(item, where)
        case "function_call" | "custom_tool_call":
            return _one(item, _call(item, kind, where))
        case "function_call_output" | "custom_tool_call_output":
            return _one(item, _output(item, kind, where))
        case "reasoning":
            return [item if given(item.get("summary", UNSET)) else {**item, "summary": Raw(b"[]")}], NONE
        case "text" | "input_text" | "output_text" | "input_image" | "image_url" | "input_file" | "file":
            message = {"type": Raw(b'"message"'), "role": Raw(b'"user"'), "content": encoded([item])}
            return _message(message, where)[0], REPAIRED
        case _:
            return [item], NONE


def _one(before: RawObject, after: RawObject) -> tuple[list[RawObject], Adjustments]:
    return [after], NONE if after is before else REPAIRED


def _message(item: RawObject, where: str) -> tuple[list[RawObject], Adjustments]:
    role = plain(item.get("role"))
    if role in ("tool", "function"):
        name = item.get("tool_call_id", item.get("call_id", UNSET))
        if not given(name):
            raise errors.bad_request(f"{where} is a tool's result without tool_call_id.", param=f"{where}.tool_call_id")
        output = {"type": Raw(b'"function_call_output"'), "call_id": name, "output": item.get("content", _EMPTY)}
        return [_output(output, "function_call_output", where)], REPAIRED
    if role not in ("user", "assistant", "system", "developer"):
        raise errors.bad_request(f"{where}.role must be user, assistant, system or developer.", param=f"{where}.role")
    refusal = item.get("refusal", UNSET)
    if foreign := item.keys() & _CHATS_KEYS:
        own = {key: value for key, value in item.items() if key not in foreign or key == "tool_calls"}
        if given(refusal) and not given(item.get("content", UNSET)):
            own["content"] = encoded([{"type": "refusal", "refusal": refusal}])
        item = own
    content = item.get("content", UNSET)
    calls = _chat_calls(item, where) if role == "assistant" and given(item.get("tool_calls", UNSET)) else []
    if not given(content):
        return calls, REPAIRED
    fitted = _content(content, role, where)
    if fitted is content and "tool_calls" not in item:
        return [item], REPAIRED if foreign else NONE
    kept = {key: value for key, value in item.items() if key != "tool_calls"} | {"content": fitted}
    return [kept, *calls] if fitted not in (_EMPTY, Raw(b"[]")) else calls, REPAIRED


def _chat_calls(item: RawObject, where: str) -> list[RawObject]:
    found = []
    for index, call in enumerate(_list(item["tool_calls"], f"{where}.tool_calls")):
        here = f"{where}.tool_calls[{index}]"
        raw = _object(call, here)
        custom = given(raw.get("custom", UNSET))
        own = _object(raw.get("custom" if custom else "function", Raw(b"{}")), here)
        kind = "custom_tool_call" if custom else "function_call"
        found.append(_call({"type": encoded(kind), "call_id": raw.get("id", Raw(b"null")), **own}, kind, here))
    return found


def _call(item: RawObject, kind: str, where: str) -> RawObject:
    changes = _call_id(item, "id", where)
    if plain(item.get("name")) is None:
        raise errors.bad_request(f"{where} is a call without name.", param=f"{where}.name")
    key, empty = ("arguments", Raw(b'"{}"')) if kind == "function_call" else ("input", _EMPTY)
    own = item.get(key, UNSET)
    if not given(own) or (key == "arguments" and own == _EMPTY):
        changes[key] = empty
    elif not is_text(own):
        changes[key] = encoded(_compact(own))
    return {**item, **changes} if changes else item


def _call_id(item: RawObject, other: str, where: str) -> RawObject:
    """Returns the change of a ``call_id`` that is under the other name, or is a number. Raises ApiError 400."""
    if is_text(item.get("call_id")):
        return {}
    name = next((item[key] for key in ("call_id", other) if given(item.get(key, UNSET))), None)
    if name is None:
        what = "result" if other == "tool_call_id" else "call"
        raise errors.bad_request(f"{where} is a {what} without call_id.", param=f"{where}.call_id")
    return {"call_id": name if is_text(name) else encoded(_compact(name))}


def _compact(value: Raw) -> str:
    return msgspec.json.format(bytes(value), indent=-1).decode()


def _output(item: RawObject, kind: str, where: str) -> RawObject:
    changes = _call_id(item, "tool_call_id", where)
    own = item.get("output", UNSET)
    if not given(own):
        changes["output"] = _EMPTY
    elif not is_text(own):
        fitted = _content(own, "user", where, key="output") if _has_parts(own) else encoded(_compact(own))
        if fitted is not own:
            changes["output"] = fitted
    return {**item, **changes} if changes else item


_PARTS = frozenset(
    {"text", "input_text", "output_text", "refusal", "image_url", "input_image", "image", "file", "input_file",
     "input_audio", "encrypted_content"}
)  # fmt: skip


def _has_parts(value: Raw) -> bool:
    """Returns whether a value is a list of content parts, and not data of the tool's own."""
    try:
        parts = decoding.decode(value, type=list[RawObject])
    except msgspec.ValidationError:
        return False
    return all(type_of(part) in _PARTS for part in parts)


# --- content


class _Text(Struct):
    type: Literal["input_text"]
    text: Raw


class _Said(Struct, tag="output_text"):
    text: Raw


class _Refused(Struct, tag="refusal"):
    text: Raw = msgspec.field(name="refusal")


_USUAL = decoding.Decoder(list[_Text])
_USUAL_ANSWER = decoding.Decoder(list[_Said | _Refused])


def _is_usual(content: Raw, role: str) -> bool:
    """Returns whether a content is one of nearly all messages, which needs no further look. No text is decoded."""
    try:
        parts = (_USUAL_ANSWER if role == "assistant" else _USUAL).decode(content)
    except msgspec.ValidationError:
        return False
    return all(is_text(part.text) for part in parts)


def _content(content: Raw, role: str, where: str, *, key: str = "content") -> Raw:
    """Returns a message's content in this API's words; the identical value if it is. Raises ApiError 400."""
    if is_text(content) or _is_usual(content, role):
        return content
    data = bytes(content)
    if data[:1] == b"{":
        parts = [content]
    elif data[:1] == b"[":
        parts = _LIST.decode(content)
    else:
        raise errors.bad_request(f"{where}.{key} must be text or a list of parts.", param=f"{where}.{key}")
    kind = "output_text" if role == "assistant" else "input_text"
    fitted = [_part(part, kind, f"{where}.{key}[{index}]") for index, part in enumerate(parts)]
    if data[:1] == b"[" and unchanged(fitted, parts):
        return content
    return encoded([part for part in fitted if part is not None])


def _part(part: Raw, kind: str, where: str) -> Raw | None:
    """Returns a part in this API's words, the identical one if it is; None for a null."""
    if not given(part):
        return None
    if (text := plain(part)) is not None:
        return encoded({"type": kind, "text": text})
    own = _object(part, where)
    match type_of(own):
        case "text" | "input_text" | "output_text" | None if (text := plain(own.get("text"))) is not None:
            return part if type_of(own) == kind else encoded({"type": kind, "text": text})
        case "refusal" if kind == "input_text" and (text := plain(own.get("refusal"))) is not None:
            return encoded({"type": kind, "text": text})
        case "image_url" | "input_image":
            return _image(part, own, where)
        case "image":
            source = _object(own.get("source", Raw(b"{}")), f"{where}.source")
            return encoded({"type": "input_image", "image_url": _source_url(source, where)})
        case "file" | "input_file":
            return _file(part, own, where)
        case "tool_use" | "tool_result" | "thinking":
            raise errors.bad_request(
                f"{where} is a block of Anthropic's API. Send it to /v1/messages, or convert it to an item.",
                param=where,
            )
        case "input_audio":
            raise errors.unsupported(where, "Audio input is not supported: the backend takes text, images and files.")
        case "text" | "input_text" | "output_text" | None:
            raise errors.bad_request(f"{where} is a part without text.", param=where)
        case _:
            return part


def _image(part: Raw, own: RawObject, where: str) -> Raw:
    if given(own.get("file_id", UNSET)):
        raise _no_files(where, "images", "image_url")
    url = own.get("image_url", UNSET)
    if given(url) and bytes(url)[:1] == b"{":
        nested = _object(url, f"{where}.image_url")
        own = {
            "detail": nested.get("detail", own.get("detail", Raw(b"null"))),
            **own,
            "image_url": nested.get("url", url),
        }
    elif type_of(own) == "input_image" and plain(own.get("image_url")) is not None:
        return part
    if plain(own.get("image_url")) is None:
        raise errors.bad_request(f"{where} is an image without image_url.", param=f"{where}.image_url")
    made: RawObject = {"type": Raw(b'"input_image"'), "image_url": own["image_url"]}
    if given(detail := own.get("detail", UNSET)):
        made["detail"] = detail
    return encoded(made)


def _source_url(source: RawObject, where: str) -> str:
    match plain(source.get("type")):
        case "base64":
            return f"data:{plain(source.get('media_type')) or 'image/png'};base64,{plain(source.get('data')) or ''}"
        case "url":
            return plain(source.get("url")) or ""
        case _:
            raise _no_files(where, "images", "image_url")


def _file(part: Raw, own: RawObject, where: str) -> Raw:
    nested = _object(own["file"], f"{where}.file") if "file" in own else own
    if not given(nested.get("file_data", UNSET)) and given(nested.get("file_id", UNSET)):
        raise _no_files(where, "files", "file_data")
    if nested is own:
        return part
    kept = {key: value for key, value in nested.items() if key in ("filename", "file_data", "file_url")}
    return encoded({"type": "input_file"} | kept)


def _no_files(where: str, what: str, key: str) -> errors.ApiError:
    return errors.unsupported(where, f"Send {what} with the request, as {key} (a data URL): codexd has no files API.")


def _object(value: Raw, where: str) -> RawObject:
    try:
        return _OBJECT.decode(value)
    except msgspec.ValidationError as error:
        raise errors.bad_request(f"{where} must be an object.", param=where) from error


def _list(value: Raw, where: str) -> list[Raw]:
    try:
        return _LIST.decode(value)
    except msgspec.ValidationError as error:
        raise errors.bad_request(f"{where} must be a list.", param=where) from error


# --- tools and choice


def tools_of(found: list[RawObject]) -> tuple[list[Tool], Adjustments]:
    """Returns the tools in this API's words; Chat Completions nests them. Raises ApiError 400."""
    made = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(found)]
    return made, NONE if unchanged(made, found) else (Adjustment("tools", "repaired"),)


def _tool(tool: RawObject, where: str) -> Tool:
    kind = type_of(tool)
    nested = kind in ("function", "custom") and (given(tool.get(kind, UNSET)) or "input_schema" in tool)
    if kind is None or nested:
        return from_chat(encoded(tool), where)
    if kind == "function" and plain(tool.get("name")) is None:
        raise errors.bad_request(f"{where} is a function without a name.", param=f"{where}.name")
    return tool


class _Choice(NamedChoice, frozen=True, kw_only=True):
    """A choice in this API's words or, in ``NamedChoice``, in those of Chat Completions."""

    mode: str = "auto"
    tools: list[RawObject] = msgspec.field(default_factory=list)


_CHOICE = decoding.Decoder(_Choice)
_CHOSEN: Adjustments = (Adjustment("tool_choice", "repaired"),)


def choice_of(asked: Raw | UnsetType, found: list[Tool]) -> tuple[Choice, list[Tool], Adjustments]:
    """Returns the ``tool_choice`` and the tools that may be chosen. Raises ApiError 400.

    ``allowed_tools`` becomes a shorter list of tools, because models of the lite shape accept no choice.
    """
    if not given(asked):
        return "auto", found, NONE
    if (word := plain(asked)) is not None:
        choice, _ = choose(word, found, "tool_choice")
        return choice, found, NONE
    try:
        own = _CHOICE.decode(asked)
    except msgspec.ValidationError as error:
        message = "tool_choice must be none, auto, required or name a tool."
        raise errors.bad_request(message, param="tool_choice") from error
    if own.type in WORDS:
        choice, _ = choose(own.type, found, "tool_choice")
        return choice, found, _CHOSEN
    if own.type == "allowed_tools":
        mode, kept = _allowed(own, found)
        choice, _ = choose(mode, kept, "tool_choice.mode")
        return choice, kept, (Adjustment("allowed_tools", "tools"),)
    if own.named() is None:
        kind = kind_of({"type": encoded(own.type)})
        return (asked, found, NONE) if kind == own.type else (encoded({"type": kind}), found, _CHOSEN)
    if own.name is not None and own.type in ("function", "custom"):
        return asked, found, NONE
    kind = "custom" if own.custom is not None else "function"
    choice, _ = choose(msgspec.structs.replace(own, type=kind), found, "tool_choice")
    return choice, found, _CHOSEN


def _allowed(own: _Choice, found: list[Tool]) -> tuple[str, list[Tool]]:
    """Returns the mode, and those of the tools that the list names: by name, or hosted ones by type."""
    if (nested := own.allowed_tools) is not None:
        mode: str = nested.mode
        listed = [(each.named(), kind_of({"type": encoded(each.type)})) for each in nested.tools]
    else:
        mode, listed = own.mode, [(name_of(each), kind_of(each)) for each in own.tools]
    names = {name for name, _ in listed if name is not None}
    kinds = {kind for name, kind in listed if name is None}
    return mode, [tool for tool in found if (name_of(tool) in names if name_of(tool) else kind_of(tool) in kinds)]
