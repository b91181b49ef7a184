"""The answers of the simulated model. Pure; the same request always gives the same answer.

It calls a tool that the user's words name, fills a requested schema, reports a tool's result, and otherwise repeats the
input. This produces every kind of answer.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

Json = dict[str, Any]

_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def events(body: Json, response_id: str, created_at: int, cached: int = 0) -> Iterator[Json]:
    """Returns the events of one answer, with the shapes and quirks of the real backend.

    The first ``cached`` items of the input count as cached.
    """
    counter = iter(range(1_000_000))
    response = _response(body, response_id, created_at)

    def event(kind: str, **fields: Any) -> Json:
        return {"type": kind, **fields, "sequence_number": next(counter)}

    yield event("response.created", response=response)
    yield event("response.in_progress", response=response)
    # Informational: it has no sequence number and does not end a stream.
    yield {"type": "codex.rate_limits", "plan_type": "plus", "rate_limits": rate_limits(created_at)}
    words = 0
    for index, item in enumerate(_items(body, response_id)):
        for kind, fields in _item_events(item):
            yield event(kind, output_index=index, **fields)
            words += 1
    yield event("response.completed", response=response | {"status": "completed", "usage": _usage(body, cached, words)})


def prewarm(body: Json, response_id: str, created_at: int) -> Iterator[Json]:
    """Returns the events of an answer that is not generated: the next request continues it."""
    response = _response(body, response_id, created_at)
    yield {"type": "response.created", "response": response}
    yield {"type": "response.completed", "response": response | {"status": "completed", "usage": _usage(body, 0, 0)}}


WINDOWS = {"primary": (12, 300), "secondary": (34, 10080)}
"""Percent used and minutes of each window."""


def rate_limits(now: int) -> Json:
    """Returns the limits of a ``codex.rate_limits`` event; a third of each window has passed."""
    windows = {
        name: {"used_percent": used, "window_minutes": minutes, "reset_at": now + minutes * 20}
        for name, (used, minutes) in WINDOWS.items()
    }
    return {"allowed": True, "limit_reached": False, **windows}


def _response(body: Json, response_id: str, created_at: int) -> Json:
    return {
        "id": response_id, "object": "response", "created_at": created_at, "status": "in_progress", "background": False,
        "error": None, "incomplete_details": None, "instructions": body.get("instructions"), "model": body["model"],
        "output": [], "parallel_tool_calls": body["parallel_tool_calls"], "previous_response_id": None,
        "reasoning": {"effort": body["reasoning"].get("effort"), "summary": body["reasoning"].get("summary")},
        "service_tier": "auto", "store": False, "temperature": 1.0, "text": body["text"],
        "tool_choice": body["tool_choice"], "tools": body.get("tools", []), "top_p": 1.0, "truncation": "disabled",
        "usage": None, "metadata": {}, "prompt_cache_key": body.get("prompt_cache_key"),
    }  # fmt: skip


def _usage(body: Json, cached: int, words: int) -> Json:
    tokens_in = len(msgspec.json.encode(body["input"])) // 4 + 1
    tokens_cached = len(msgspec.json.encode(body["input"][:cached])) // 4 if cached else 0
    return {
        "input_tokens": tokens_in,
        "input_tokens_details": {"cached_tokens": tokens_cached, "cache_write_tokens": 0},
        "output_tokens": words,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": tokens_in + words,
    }


def _items(body: Json, seed: str) -> Iterator[Json]:
    if body["input"][-1].get("type") == "compaction_trigger":
        yield {"id": f"cmp_{seed}", "type": "compaction", "encrypted_content": "gAAAAA-simulated-compaction"}
        return
    reasoning = body["reasoning"]
    if reasoning.get("effort") not in (None, "none"):
        summary = [{"type": "summary_text", "text": "**Reading** the request."}] if reasoning.get("summary") else []
        yield {"id": f"rs_{seed}", "type": "reasoning", "summary": summary, "encrypted_content": "gAAAAA-simulated"}
    yield from (drawn := list(_hosted(body, seed)))
    calls = [] if drawn and drawn[-1]["type"] == "image_generation_call" else list(_calls(body))
    for number, (namespace, tool) in enumerate(calls):
        call = {
            "id": f"fc_{seed}{number}", "type": "function_call", "call_id": f"call_{seed[-12:]}{number}",
            "name": tool["name"], "status": "completed",
        }  # fmt: skip
        if tool["type"] == "custom":
            call |= {"id": f"ctc_{seed}{number}", "type": "custom_tool_call", "input": _user_text(body)}
        else:
            call["arguments"] = _json(sample(tool.get("parameters") or {}, _topic(body), _number(body)))
        yield call if namespace is None else call | {"namespace": namespace}
    if not calls:
        text = {"type": "output_text", "text": _text(body), "annotations": [], "logprobs": []}
        if drawn:
            text |= _cited(drawn[-1])
        yield {
            "id": f"msg_{seed}", "type": "message", "role": "assistant", "phase": "final_answer", "status": "completed",
            "content": [text],
        }  # fmt: skip


PAGES = (("https://example.com/weather", "Weather today"), ("https://example.org/news", "News of the day"))
"""What every simulated search finds."""

_STEPS = {
    "web_search_call": ("in_progress", "searching", "completed"),
    "image_generation_call": ("in_progress", "generating", "completed"),
}

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
"""A PNG of one pixel, in base64."""


def found(body: Json) -> Json:
    """Returns the answer of a search, which is a text."""
    asked = body["commands"]["search_query"][0]["q"]
    lines = [f"[{title}]({url})\nA page about {asked}." for url, title in PAGES]
    return {"output": "\n\n".join(lines), "encrypted_output": "gAAAAA-simulated-search"}


def drawn(body: Json, created: int) -> Json:
    """Returns the answer of an endpoint for images."""
    facts = {key: body[key] for key in ("background", "quality")} | {"size": "1024x1024", "output_format": "png"}
    usage = {"input_tokens": len(body["prompt"]) // 4 + 1, "output_tokens": 100, "total_tokens": 100}
    return {"created": created, "data": [{"b64_json": PIXEL}], **facts, "usage": usage}


def _hosted(body: Json, seed: str) -> Iterator[Json]:
    """Returns the call of a hosted tool, if the request has the tool and the user's words ask for it."""
    offered = {tool["type"] for tool in body.get("tools", [])}
    said = set(re.findall(r"[a-z]{3,}", _user_text(body).lower()))
    choice = body["tool_choice"]
    forced = choice.get("type") if isinstance(choice, dict) else None
    if "web_search" in offered and (forced == "web_search" or said & {"search", "web"}):
        action = {"type": "search", "query": _topic(body), "queries": [_topic(body)]}
        yield {"id": f"ws_{seed}", "type": "web_search_call", "status": "completed", "action": action}
    if "image_generation" in offered and (forced == "image_generation" or said & {"image", "draw", "picture"}):
        facts = {"background": "opaque", "output_format": "png", "quality": "low", "size": "1024x1024"}
        image = {"result": PIXEL, "revised_prompt": _user_text(body), **facts}
        yield {"id": f"ig_{seed}", "type": "image_generation_call", "status": "completed", **image}


def _cited(call: Json) -> Json:
    """Returns the text after a hosted call, and its citations."""
    if call["type"] == "image_generation_call":
        return {"text": "Here is the image."}
    url, title = PAGES[0]
    link = f"[{title}]({url})"
    text = f"It is sunny, says {link}."
    at = text.index(link)
    mark = {"type": "url_citation", "url": url, "title": title, "start_index": at, "end_index": at + len(link)}
    return {"text": text, "annotations": [mark]}


def _item_events(item: Json) -> Iterator[tuple[str, Json]]:
    """Returns (type, fields) of the events of one item."""
    started: dict[str, Json] = {
        "message": {"content": []},
        "function_call": {"arguments": ""},
        "custom_tool_call": {"input": ""},
        "reasoning": {"summary": []},
        "image_generation_call": {"result": None},
    }
    status = {} if item["type"] in ("reasoning", "compaction") else {"status": "in_progress"}
    yield "response.output_item.added", {"item": item | started.get(item["type"], {}) | status}
    here = {"item_id": item["id"]}
    match item["type"]:
        case "message":
            part = item["content"][0]
            here |= {"content_index": 0}
            yield "response.content_part.added", {**here, "part": part | {"text": ""}}
            for piece in pieces(part["text"]):
                yield "response.output_text.delta", {**here, "delta": piece, "logprobs": [], "obfuscation": "x"}
            yield "response.output_text.done", {**here, "text": part["text"], "logprobs": []}
            yield "response.content_part.done", {**here, "part": part}
        case "function_call":
            for piece in pieces(item["arguments"]):
                yield "response.function_call_arguments.delta", {**here, "delta": piece}
            yield (
                "response.function_call_arguments.done",
                {**here, "arguments": item["arguments"], "name": item["name"]},
            )
        case "custom_tool_call":
            for piece in pieces(item["input"]):
                yield "response.custom_tool_call_input.delta", {**here, "delta": piece}
            yield "response.custom_tool_call_input.done", {**here, "input": item["input"]}
        case "web_search_call" | "image_generation_call" | "compaction" as kind:
            for step in _STEPS.get(kind, ()):
                yield f"response.{kind}.{step}", here
        case _:
            for number, part in enumerate(item["summary"]):
                at = {**here, "summary_index": number}
                yield "response.reasoning_summary_part.added", {**at, "part": part | {"text": ""}}
                for piece in pieces(part["text"]):
                    yield "response.reasoning_summary_text.delta", {**at, "delta": piece}
                yield "response.reasoning_summary_text.done", {**at, "text": part["text"]}
                yield "response.reasoning_summary_part.done", {**at, "part": part}
    yield "response.output_item.done", {"item": item}


def pieces(text: str) -> list[str]:
    """Returns the words of a text, each with the white space before it, as tokens arrive."""
    return re.findall(r"\s*\S+|\s+$", text)


def tools_of(body: Json) -> list[tuple[str | None, Json]]:
    """Returns (namespace, tool) for each function or custom tool, in the classic shape or the lite one."""
    offered = list(body.get("tools", []))
    for item in body["input"]:
        if item.get("type") == "additional_tools":
            offered += item["tools"]
    flat: list[tuple[str | None, Json]] = []
    for tool in offered:
        inner = [(tool["name"], each) for each in tool["tools"]] if tool["type"] == "namespace" else [(None, tool)]
        flat += [(namespace, each) for namespace, each in inner if each["type"] in ("function", "custom")]
    return flat


def _told(last: Json) -> str | None:
    """Returns a final instruction to call a tool; this model follows it."""
    if last.get("role") != "developer":
        return None
    text = " ".join(part.get("text", "") for part in last.get("content", []))
    return text if text.startswith(("Call ", "Search ", "Draw ")) else None


def _calls(body: Json) -> Iterator[tuple[str | None, Json]]:
    choice, last = body["tool_choice"], body["input"][-1]
    tools = tools_of(body)
    if isinstance(choice, dict):
        yield from (each for each in tools if each[1]["name"] == choice.get("name"))
        return
    if choice == "none" or last.get("type") in _OUTPUTS:
        return
    if (told := _told(last)) is not None:
        words = told.lower().split()
        named = [each for each in tools if re.search(rf"\b{re.escape(each[1]['name'])}\b", told)]
        named = named or [each for each in tools if set(each[1]["name"].lower().split("_")) & set(words)]
        yield from named or tools[:1]
        return
    said = set(re.findall(r"[a-z]{3,}", _user_text(body).lower()))
    said |= {"image"} if said & {"draw", "picture"} else set()
    wanted = [each for each in tools if said & set(re.findall(r"[a-z]{3,}", each[1]["name"].lower()))]
    if choice == "required" and not wanted:
        wanted = tools
    yield from wanted if body["parallel_tool_calls"] else wanted[:1]


def _text(body: Json) -> str:
    last = body["input"][-1]
    wanted = body["text"].get("format") or {}
    if wanted.get("type") == "json_schema":
        return _json(sample(wanted["schema"], _topic(body), _number(body)))
    if wanted.get("type") == "json_object":
        return _json({key: _topic(body) for key in _quoted(body)} or {"answer": _user_text(body)})
    if last.get("type") in _OUTPUTS:
        output = last["output"]
        return f"The tool returned: {output if isinstance(output, str) else _json(output)}"
    images = sum(part.get("type") == "input_image" for part in _parts(body))
    seen = f" I also got {images} image{'s' if images > 1 else ''}." if images else ""
    return f"This is a simulated answer. You wrote: {_user_text(body)}{seen}"


def _parts(body: Json) -> list[Json]:
    for item in reversed(body["input"]):
        if item.get("role") == "user":
            content = item["content"]
            return [{"type": "input_text", "text": content}] if isinstance(content, str) else content
    return []


def _user_text(body: Json) -> str:
    text = " ".join(part["text"] for part in _parts(body) if "text" in part)
    # Claude Code puts notes of its own before what its user wrote.
    return re.sub(r"\s*<system-reminder>.*?</system-reminder>\s*", "", text, flags=re.DOTALL)


def _quoted(body: Json) -> list[str]:
    return re.findall(r"(?<!\w)['\"]([^'\"]+)['\"]", _user_text(body))


def _topic(body: Json) -> str:
    """Returns the user's quoted text, or the last word, as a value for any string in a schema."""
    words = _quoted(body) or re.findall(r"[\w-]+", _user_text(body))[-1:]
    return words[0] if words else "nothing"


def _number(body: Json) -> int | None:
    """Returns the first whole number in the user's text."""
    found = re.search(r"(?<![\w.])\d{1,9}(?![\w.])", _user_text(body))
    return None if found is None else int(found[0])


def sample(schema: Json, topic: str, number: int | None = None, root: Json | None = None) -> Any:
    """Returns a value that fits a JSON schema of the kinds that structured outputs allow.

    Of an object that requires members it has those alone.
    """
    root = schema if root is None else root
    if reference := schema.get("$ref"):
        target: Any = root
        for step in reference.removeprefix("#").strip("/").split("/"):
            target = target[step] if step else target
        return sample(target, topic, number, root)
    for key in ("enum", "anyOf", "oneOf"):
        if options := schema.get(key):
            return options[0] if key == "enum" else sample(options[0], topic, number, root)
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind if isinstance(kind, str) else kind[0]:
        case "object":
            found = schema.get("properties", {})
            wanted = schema.get("required") or found
            return {name: sample(each, topic, number, root) for name, each in found.items() if name in wanted}
        case "array":
            return [sample(schema.get("items", {}), topic, number, root)]
        case "integer":
            return number if number is not None else int(schema.get("minimum", 1))
        case "number":
            return float(schema.get("minimum", 1.5))
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return topic


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
