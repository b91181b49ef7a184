"""Chat requests that are written in another API's words. Pure functions.

It is called for requests that the schema refuses, so it does not need to be fast. Clients send the Responses API's
parts or its whole body (``input``), Anthropic's blocks, and objects where a text belongs. What means one thing only is
put into Chat Completions' words; the rest stays, and is refused with its place.
"""

from typing import Any

import msgspec

from codexd.protocol import decoding
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.raw import RawObject, encoded

Json = dict[str, Any]

_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")


def repaired(members: RawObject) -> tuple[RawObject, Adjustments]:
    """Returns the members in Chat Completions' words, and what was changed."""
    messages: Any = decoding.decode(members.get("messages", b"null"))
    adjusted = NONE
    if not messages and "input" in members:
        members, messages = _from_responses(members)
        adjusted = (Adjustment("input", "messages"),)
    if not isinstance(messages, list):
        return members, NONE
    made = [each for message in messages for each in _messages(message)]
    if made != messages:
        adjusted += (Adjustment("messages", "repaired"),)
    return {**members, "messages": encoded(made)}, adjusted


def _text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# --- a body of the Responses API


def _from_responses(members: RawObject) -> tuple[RawObject, list[Any]]:
    given = decoding.decode(members["input"])
    items = given if isinstance(given, list) else [{"role": "user", "content": given}]
    messages: list[Any] = []
    rest = {key: value for key, value in members.items() if key not in ("input", "messages")}
    if "instructions" in rest:
        messages.append({"role": "system", "content": decoding.decode(rest.pop("instructions"))})
    for item in items:
        messages += _from_item(item) if isinstance(item, dict) else [item]
    reasoning, text = (decoding.decode(rest.pop(key, b"null")) for key in ("reasoning", "text"))
    moved: Json = {}
    if isinstance(reasoning, dict):
        moved["reasoning_effort"] = reasoning.get("effort")
    if isinstance(text, dict):
        moved["verbosity"] = text.get("verbosity")
        form = text.get("format")
        schema = isinstance(form, dict) and form.get("type") == "json_schema"
        moved["response_format"] = {"type": "json_schema", "json_schema": form} if schema else form
    for key, value in moved.items():
        if value is not None:
            rest.setdefault(key, encoded(value))
    if "max_output_tokens" in rest:
        rest.setdefault("max_completion_tokens", rest.pop("max_output_tokens"))
    return rest, messages


def _from_item(item: Json) -> list[Json]:
    match item.get("type", "message"):
        case "message":
            return [{key: value for key, value in item.items() if key in ("role", "content", "name", "tool_calls")}]
        case "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments", "")}
            return [{"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "function": function}]}]
        case "custom_tool_call":
            custom = {"name": item.get("name"), "input": item.get("input", "")}
            return [{"role": "assistant", "tool_calls": [{"id": item.get("call_id"), "custom": custom}]}]
        case "function_call_output" | "custom_tool_call_output":
            return [{"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}]
        case "reasoning":
            return []
        case _:
            return [item]


# --- messages


def _messages(message: Any) -> list[Any]:
    """Returns the messages that a message means; the results among Anthropic's blocks become messages of their own."""
    if not isinstance(message, dict):
        return [message]
    made = dict(message)
    if isinstance(message.get("tool_call_id"), int):
        made["tool_call_id"] = str(message["tool_call_id"])
    if isinstance(function := message.get("function_call"), dict):
        made["function_call"] = _with_arguments(function)
    if isinstance(calls := message.get("tool_calls"), list):
        made["tool_calls"] = [_call(call) for call in calls]
    if message.get("role") == "tool":
        made["content"] = _result(message.get("content"))
        return [made]
    content = message.get("content")
    if isinstance(content, dict):
        content = [content]
    return _blocks(made, content) if isinstance(content, list) else [made]


def _blocks(made: Json, content: list[Any]) -> list[Json]:
    parts, calls, results = list[Any](), list[Any](), list[Json]()
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "tool_use" and made.get("role") == "assistant":
            calls.append(_called(part))
        elif kind == "tool_result" and made.get("role") == "user":
            output = _result(part.get("content"))
            if part.get("is_error") is True:
                output = f"The tool failed. {output if isinstance(output, str) else _text(output)}"
            results.append({"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": output})
        elif kind not in _THOUGHTS:
            parts.append(_part(part))
    if calls:
        before = made.get("tool_calls")
        made["tool_calls"] = [*(before if isinstance(before, list) else ()), *calls]
    made["content"] = parts
    return [*results, made] if parts or not results else results


def _call(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    made = dict(call)
    if isinstance(call.get("id"), int):
        made["id"] = str(call["id"])
    if isinstance(function := call.get("function"), dict):
        made["function"] = _with_arguments(function)
    return made


def _with_arguments(function: Json) -> Json:
    arguments = function.get("arguments")
    return (
        function
        if isinstance(arguments, str)
        else function | {"arguments": "" if arguments is None else _text(arguments)}
    )


def _called(block: Json) -> Json:
    function = {"name": block.get("name"), "arguments": _text(block.get("input") or {})}
    return {"id": block.get("id"), "type": "function", "function": function}


def _result(content: Any) -> Any:
    """Returns a tool's result: a text, or parts if it is a list of them; any other data as JSON."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [_part(part) for part in content]
        if all(map(_is_part, content)) and all(part.get("type") in ("text", "image_url", "file") for part in parts):
            return parts
    return _text(content)


def _is_part(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("type"), str))


def _part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    match part.get("type"):
        case None | "text" | "input_text" | "output_text" | "summary_text" if "text" in part:
            text = part["text"]
            return {"type": "text", "text": "" if text is None else _text(text)}
        case "input_image" if "file_id" not in part:
            return _image(part.get("image_url"), part.get("detail"))
        case "input_file":
            return {
                "type": "file",
                "file": {key: part[key] for key in ("filename", "file_data", "file_id") if key in part},
            }
        case "input_image":
            return {"type": "file", "file": {"file_id": part["file_id"]}}
        case "image" if isinstance(source := part.get("source"), dict):
            return _image(_url(source), None)
        case "document" if isinstance(source := part.get("source"), dict):
            if source.get("type") == "text":
                return {"type": "text", "text": source.get("data")}
            return {
                "type": "file",
                "file": {"filename": part.get("title") or "document.pdf", "file_data": _url(source)},
            }
        case _:
            return part


def _image(url: Any, detail: Any) -> Json:
    image = dict(url) if isinstance(url, dict) else {"url": url}
    if detail is not None:
        image.setdefault("detail", detail)
    return {"type": "image_url", "image_url": image}


def _url(source: Json) -> Any:
    if source.get("type") == "base64":
        return f"data:{source.get('media_type')};base64,{source.get('data')}"
    return source.get("url")
