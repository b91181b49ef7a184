"""Refusals of the simulated backend: the real one's allow-list and the coupled conditions of responses-lite.

Status and body of each refusal were observed from the real backend, or are as its users report them.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from codexd.demo.script import Json, tools_of
from codexd.protocol.codex.models import RESERVE, Model

ACCEPTED = frozenset(
    {
        "model", "instructions", "stream", "service_tier", "input", "tools", "tool_choice", "parallel_tool_calls",
        "reasoning", "store", "include", "prompt_cache_key", "text", "client_metadata",
    }
)  # fmt: skip

MAX_ID = 64
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

LITE_HEADER = "x-openai-internal-codex-responses-lite"

Refusal = tuple[int, Json]


def _detail(text: str, status: int = 400) -> Refusal:
    return status, {"detail": text}


def _error(message: str, param: str, code: str | None = "unsupported_value", status: int = 400) -> Refusal:
    return status, {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


NOT_UNDERSTOOD = _error("Invalid value in 'input' or 'tools'.", "input", "invalid_value")


def refuse(body: Any, headers: Mapping[str, str], models: Mapping[str, Model]) -> Refusal | None:
    """Returns why this request is refused; None when it is accepted."""
    if not isinstance(body, dict):
        return _detail("Request body must be an object")
    for key in body:
        if key not in ACCEPTED:
            return _detail(f"Unsupported parameter: {key}")
    if body.get("store") is not False:
        return _detail("Store must be set to false")
    if body.get("stream") is not True:
        return _detail("Stream must be set to true")
    model = models.get(body.get("model", ""))
    if model is None:
        return _detail(f"The '{body.get('model')}' model is not supported when using Codex with a ChatGPT account.")
    if model.slug == RESERVE and headers.get("x-openai-codex-luna-reserve") != "1":
        return _error(f"Model not found {model.slug}", "model", "model_not_found", 404)
    if body.get("service_tier", "priority") != "priority":
        return _detail(f"Unsupported service_tier: {body['service_tier']}")
    lite = headers.get(LITE_HEADER) == "true"
    return (
        _refuse_shape(body, model, lite)
        or _refuse_effort(body, model)
        or _refuse_key(body)
        or _refuse_tools(body)
        or _refuse_input(body["input"], lite)
    )


def _refuse_shape(body: Json, model: Model, lite: bool) -> Refusal | None:
    if lite and not model.lite:
        return _error(f"The model {model.slug} cannot be used with responses-lite", "model")
    if model.lite and not lite:
        return _error(f"The model {model.slug} needs responses-lite", "model")
    if not isinstance(body.get("input"), list):
        return _detail("Input must be a list")
    if lite:
        if body.get("parallel_tool_calls") is not False:
            return _error("parallel_tool_calls must be false", "parallel_tool_calls")
        if body.get("reasoning", {}).get("context") != "all_turns":
            return _error("reasoning.context must be all_turns", "reasoning.context")
        if body.get("tool_choice") != "auto":
            return _error(f"Tool choice {body.get('tool_choice')} not found in 'tools' parameter", "tool_choice", None)
        if "tools" in body or "instructions" in body:
            return _error("tools and instructions travel in the input", "tools")
        if any(namespace is None for namespace, _ in tools_of(body)):
            return _error("function tools must be grouped in a namespace", "input")
    elif not body.get("instructions"):
        return _detail("Instructions are required")
    return None


def _refuse_effort(body: Json, model: Model) -> Refusal | None:
    effort = body.get("reasoning", {}).get("effort")
    if effort is not None and (effort == "ultra" or effort not in model.efforts):
        return _error(f"Unsupported value: '{effort}' is not supported with this model", "reasoning.effort")
    return None


def _refuse_key(body: Json) -> Refusal | None:
    key = body.get("prompt_cache_key")
    if key is not None and (not isinstance(key, str) or len(key) > MAX_ID):
        return _error(f"Invalid 'prompt_cache_key': string too long, at most {MAX_ID}.", "prompt_cache_key")
    if key is not None and not _UUID.fullmatch(key):
        return _error("Model not found", "model", "model_not_found", 404)  # observed for a key that is not a UUID
    return None


def _refuse_tools(body: Json) -> Refusal | None:
    for tool in body.get("tools", []):
        if tool["type"].startswith("web_search_preview"):
            return _error(f"Unsupported tool type: {tool['type']}", "tools")
    for item in body["input"]:
        # The real one ignores them in silence; here nothing that is inert may come.
        if item.get("type") == "additional_tools" and (hosted := [t for t in item["tools"] if t["type"] in HOSTED]):
            return _error(f"Responses Lite does not execute hosted tools: {hosted[0]['type']}", "tools")
    for _, tool in tools_of(body):
        name = tool.get("name")
        if name is not None and not _NAME.fullmatch(name):
            return _error(f"Invalid 'tools[0].name': {name!r} does not match '^[a-zA-Z0-9_-]+$'.", "tools")
        if tool.get("type") == "function" and (fault := _fault(tool.get("parameters"), (), root=True)):
            return _error(f"Invalid schema for function '{name}': {fault}", "tools", "invalid_function_parameters")
        if tool.get("strict") is True and (fault := _strict_fault(tool["parameters"], ())):
            return _error(f"Invalid schema for function '{name}': {fault}", "tools", "invalid_function_parameters")
    form = body.get("text", {}).get("format") or {}
    if form.get("type") == "json_schema":
        if not _NAME.fullmatch(form["name"]):
            return _error("Invalid 'text.format.name'", "text.format.name")
        if form.get("strict") is True and (fault := _strict_fault(form["schema"], ())):
            return _error(f"Invalid schema for response_format '{form['name']}': {fault}", "text.format.schema")
    return None


HOSTED = frozenset(
    {"web_search", "image_generation", "mcp", "code_interpreter", "file_search", "computer_use_preview", "local_shell"}
)
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})


def _fault(schema: Any, where: tuple[str, ...], *, root: bool = False) -> str | None:
    """Returns what OpenAI's validator has against a tool's schema, in its words; None if nothing."""
    if not isinstance(schema, dict):
        return None if isinstance(schema, bool) and not root else f"In context={where}, {schema!r} is not a schema."
    if root and schema.get("type") != "object":
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{schema.get('type')}\"'."
    if root and not schema.keys().isdisjoint({"oneOf", "anyOf", "allOf", "enum", "const", "not"}):
        return "schema must have type 'object' and not have 'oneOf'/'anyOf'/'allOf'/'enum'/'not' at the top level."
    if root and not isinstance(schema.get("properties"), dict):
        return "In context=(), object schema missing properties."
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not all(isinstance(kind, str) and kind in _TYPES for kind in kinds):
        return f"In context={where}, {kinds!r} is not valid under any of the given schemas."
    if "array" in kinds and not isinstance(schema.get("items"), dict | bool):
        return f"In context={where}, array schema missing items."
    return next((fault for name, each in _below(schema) if (fault := _fault(each, (*where, name)))), None)


def _below(schema: Json) -> Iterator[tuple[str, Any]]:
    for key in ("properties", "$defs", "definitions"):
        yield from schema.get(key, {}).items()
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        yield from ((key, each) for each in schema.get(key, []))
    yield from ((key, schema[key]) for key in ("items", "additionalProperties", "not") if key in schema)


def _strict_fault(schema: Any, where: tuple[str, ...]) -> str | None:
    """Returns what the rules of ``strict`` have against a schema."""
    if not isinstance(schema, dict):
        return None
    if "properties" in schema or schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            return f"In context={where}, 'additionalProperties' is required to be supplied and to be false."
        if set(schema.get("required", [])) != set(schema.get("properties", {})):
            return f"In context={where}, 'required' is required to be an array including every key in properties."
    return next((fault for name, each in _below(schema) if (fault := _strict_fault(each, (*where, name)))), None)


_PARTS = {"assistant": frozenset({"output_text", "refusal"})}
_INPUT_PARTS = frozenset({"input_text", "input_image", "input_file"})


def _refuse_item(item: Json, number: int) -> Refusal | None:
    """Refuses call ids, arguments, results and parts that the backend does not take."""
    where, kind = f"input[{number}]", item.get("type", "message")
    if "call_id" in item and not 0 < len(item["call_id"]) <= MAX_ID:
        return _error(f"Invalid '{where}.call_id': string too long, at most {MAX_ID}.", f"{where}.call_id")
    if kind == "function_call" and not isinstance(item.get("arguments"), str):
        return _error(f"Missing required parameter: '{where}.arguments'.", f"{where}.arguments", "missing_required")
    if kind.endswith("_call_output") and not isinstance(item.get("output"), str | list):
        return _error(f"Invalid type for '{where}.output'.", f"{where}.output", "invalid_type")
    if kind == "message":
        if not isinstance(item.get("content"), list):
            return _error(f"Invalid type for '{where}.content'.", f"{where}.content", "invalid_type")
        allowed = _PARTS.get(item["role"], _INPUT_PARTS)
        for part in item["content"]:
            if part["type"] not in allowed:
                return _error(f"Invalid value: '{part['type']}'.", f"{where}.content", "invalid_value")
            if "file_id" in part or not isinstance(part.get("image_url", ""), str):
                return _error(f"Invalid type for '{where}.content'.", f"{where}.content", "invalid_type")
    return None


def refuse_search(body: Any, models: Mapping[str, Model]) -> Refusal | None:
    """Returns why a body of ``/codex/alpha/search`` is refused."""
    if not isinstance(body, dict) or not {"id", "model", "commands", "settings"} <= body.keys() <= _SEARCH_KEYS:
        return _detail("Invalid search request")
    queries = body["commands"].get("search_query")
    if (
        not isinstance(queries, list)
        or not queries
        or not all(set(each) <= _QUERY_KEYS and each["q"] for each in queries)
    ):
        return _error("Invalid 'commands.search_query'", "commands.search_query")
    if body["model"] not in models or body["settings"].get("allowed_callers") != ["direct"]:
        return _error("Invalid 'settings' or 'model'", "settings")
    return None


_SEARCH_KEYS = frozenset({"id", "model", "input", "commands", "settings", "max_output_tokens"})
_QUERY_KEYS = frozenset({"q", "recency", "domains"})


def refuse_image(body: Any, *, edits: bool) -> Refusal | None:
    """Returns why a body of ``/codex/images/generations`` or ``/edits`` is refused."""
    wanted = _IMAGE_KEYS | {"images"} if edits else _IMAGE_KEYS
    if not isinstance(body, dict) or body.keys() != wanted:
        return _detail(f"Unsupported parameters: {sorted(set(body) ^ wanted) if isinstance(body, dict) else body}")
    if not isinstance(body["prompt"], str) or not body["prompt"] or body["model"] != "gpt-image-2":
        return _error("Invalid 'prompt' or 'model'", "prompt")
    images = body.get("images", [])
    if edits and not all(set(each) == {"image_url"} and each["image_url"].startswith("data:") for each in images):
        return _error("Invalid 'images'", "images")
    return _error("Missing 'images'", "images") if edits and not images else None


_IMAGE_KEYS = frozenset({"prompt", "background", "model", "quality", "size"})


def _refuse_input(items: list[Json], lite: bool) -> Refusal | None:
    calls: set[str] = set()
    for number, item in enumerate(items):
        kind = item.get("type", "message")
        if item.get("role") == "system":
            return _detail("System messages are not allowed")
        if (refusal := _refuse_item(item, number)) is not None:
            return refusal
        if kind == "item_reference" or (kind == "reasoning" and not item.get("encrypted_content")):
            text = f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is set to false."
            return _error(text, "input", None, 404)
        if kind == "function_call":
            if item["call_id"] in calls:
                return _error(f"Duplicate call_id {item['call_id']}.", "input", None)
            calls.add(item["call_id"])
        if kind == "function_call_output" and item["call_id"] not in calls:
            return _error(f"No tool call found for function call output with call_id {item['call_id']}.", "input", None)
        content = item.get("content")
        if lite and isinstance(content, list) and any("detail" in part for part in content):
            return _error("image detail is not supported", "input")
    return None
