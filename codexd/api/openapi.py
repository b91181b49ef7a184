"""The OpenAPI document of what is served, made from the wire structs that decode it and the table of its parameters."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from codexd.exchange import Route
from codexd.protocol import chat, completions
from codexd.protocol.anthropic import MessagesRequest
from codexd.protocol.parameters import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Rule
from codexd.protocol.responses import ResponsesRequest

_REF = "#/components/schemas/{name}"
_OBJECT = {"type": "object"}
_JSON, _EVENTS = "application/json", "text/event-stream"


class _Body(NamedTuple):
    """What an endpoint is asked with, its parameters, and what it answers where that is a struct."""

    asked: type
    rules: dict[str, Rule]
    answer: type | None = None
    streams: bool = True


_BODIES = {
    "/chat/completions": _Body(chat.ChatRequest, CHAT, chat.Completion),
    "/completions": _Body(completions.CompletionRequest, COMPLETIONS, completions.TextCompletion),
    "/responses": _Body(ResponsesRequest, RESPONSES),
    "/responses/input_tokens": _Body(ResponsesRequest, RESPONSES, streams=False),
    "/responses/compact": _Body(ResponsesRequest, RESPONSES, streams=False),
    "/messages": _Body(MessagesRequest, MESSAGES),
    "/messages/count_tokens": _Body(MessagesRequest, MESSAGES, streams=False),
}


_TEXTS = {"/": "text/html", "/metrics": "text/plain"}


class Path(NamedTuple):
    """One operation on one path. ``path`` has its names in braces."""

    method: str
    path: str
    summary: str


def document(routes: Iterable[Route], others: Iterable[Path], version: str) -> bytes:
    """OpenAPI 3.1 in JSON."""
    types = {each for body in _BODIES.values() for each in (body.asked, body.answer) if each is not None}
    ordered = sorted(types, key=lambda each: each.__name__)
    found, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    refs = dict(zip(ordered, found, strict=True))
    for known in _BODIES.values():
        name = refs[known.asked]["$ref"].rpartition("/")[2]
        schemas[name] = _described(schemas[name], known.rules)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        body, path = _BODIES.get(route.path), f"{'/v1' if route.api else ''}{route.path}"
        operation = _operation(Path(route.method, path, _summary(route.handler)))
        if route.path in _TEXTS:
            operation["responses"]["200"]["content"] = {_TEXTS[route.path]: {"schema": {"type": "string"}}}
        if body is not None:
            operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": refs[body.asked]}}}
            content = operation["responses"]["200"]["content"]
            content[_JSON] = {"schema": _OBJECT if body.answer is None else refs[body.answer]}
            if body.streams:
                content[_EVENTS] = {}  # events of many kinds, which OpenAPI 3.1 has no words for
        paths.setdefault(path, {})[route.method.lower()] = operation
    for other in others:
        operation = _operation(other)
        names = [part[1:-1] for part in other.path.split("/") if part.startswith("{")]
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
        paths.setdefault(other.path, {})[other.method.lower()] = operation
    schemas["Error"] = {"type": "object", "required": ["error"], "properties": {"error": _OBJECT}}
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "codexd",
                "version": version,
                "description": "An OpenAI-compatible API for your own tools, over your own ChatGPT account.",
            },
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"key": []}, {}],
        }
    )


def _operation(of: Path) -> dict[str, Any]:
    error = {
        "description": "A failure, with its reason.",
        "content": {_JSON: {"schema": {"$ref": _REF.format(name="Error")}}},
    }
    return {
        "operationId": f"{of.method} {of.path}",
        "summary": of.summary,
        "responses": {"200": {"description": "The answer.", "content": {_JSON: {"schema": _OBJECT}}}, "default": error},
    }


def _summary(handler: Any) -> str:
    return (handler.__doc__ or "").partition("\n")[0]


def _described(schema: dict[str, Any], rules: dict[str, Rule]) -> dict[str, Any]:
    """With what becomes of each parameter, those that are taken and come to nothing included."""
    properties = dict(schema["properties"])
    for name, rule in rules.items():
        text = f"{rule.treatment}: {rule.note}" if rule.note else rule.treatment
        properties[name] = {**properties.get(name, {}), "description": text}
    return {**schema, "properties": properties}
