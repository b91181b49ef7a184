"""Refusals of the simulated backend: the real one's allow-list and the coupled conditions of responses-lite.

Status and body of each refusal were observed from the real backend.
"""

from collections.abc import Mapping
from typing import Any

from codexd.demo.script import Json, tools_of
from codexd.protocol.codex.models import Model

ACCEPTED = frozenset(
    {
        "model", "instructions", "stream", "service_tier", "input", "tools", "tool_choice", "parallel_tool_calls",
        "reasoning", "store", "include", "prompt_cache_key", "text", "client_metadata",
    }
)  # fmt: skip

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
    if body.get("service_tier", "priority") != "priority":
        return _detail(f"Unsupported service_tier: {body['service_tier']}")
    lite = headers.get(LITE_HEADER) == "true"
    return _refuse_shape(body, model, lite) or _refuse_effort(body, model) or _refuse_input(body["input"], lite)


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


def _refuse_input(items: list[Json], lite: bool) -> Refusal | None:
    calls: set[str] = set()
    for item in items:
        kind = item.get("type", "message")
        if item.get("role") == "system":
            return _detail("System messages are not allowed")
        if kind == "item_reference" or (kind == "reasoning" and not item.get("encrypted_content")):
            text = f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is set to false."
            return _error(text, "input", None, 404)
        if kind == "function_call":
            calls.add(item["call_id"])
        if kind == "function_call_output" and item["call_id"] not in calls:
            return _error(f"No tool call found for function call output with call_id {item['call_id']}.", "input", None)
        content = item.get("content")
        if lite and isinstance(content, list) and any("detail" in part for part in content):
            return _error("image detail is not supported", "input")
    return None
