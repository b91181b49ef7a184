"""The OpenAPI document, generated from the routes of the API and their dialects."""

from collections.abc import Sequence
from typing import Any

import msgspec

from codexd.api.routing import Route
from codexd.protocol.parameters import Rule

_REF = "#/components/schemas/{name}"
_OBJECT = {"type": "object"}
_JSON, _EVENTS = "application/json", "text/event-stream"
_FORM = "multipart/form-data"
_TEXTS = {"/": "text/html", "/metrics": "text/plain", "/images/files/<id>": "image/png"}


def document(routes: Sequence[Route], version: str) -> bytes:
    """Returns the OpenAPI 3.1 document as JSON."""
    dialects = {route.dialect.name: route.dialect for route in routes if route.dialect is not None}.values()
    types = {each for dialect in dialects for each in (dialect.request.struct, dialect.answer) if each is not None}
    ordered = sorted(types, key=lambda each: each.__name__)
    found, schemas = msgspec.json.schema_components(ordered, ref_template=_REF)
    refs = dict(zip(ordered, found, strict=True))
    for dialect in dialects:
        name = refs[dialect.request.struct]["$ref"].rpartition("/")[2]
        schemas[name] = _described(schemas[name], dialect.rules)
    schemas["Error"] = {"type": "object", "required": ["error"], "properties": {"error": _OBJECT}}
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.public_path, {})[route.method.lower()] = _operation(route, refs)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "codexd",
                "version": version,
                "description": "An OpenAI- and Anthropic-compatible API for your own tools, over your ChatGPT account.",
            },
            "paths": paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            },
            "security": [{"key": []}, {}],
        }
    )


def _operation(route: Route, refs: dict[Any, Any]) -> dict[str, Any]:
    error = {
        "description": "An error, with the reason.",
        "content": {_JSON: {"schema": {"$ref": _REF.format(name="Error")}}},
    }
    text = _TEXTS.get(route.path)
    content: dict[str, Any] = {_JSON: {"schema": _OBJECT}} if text is None else {text: {"schema": {"type": "string"}}}
    operation: dict[str, Any] = {
        "operationId": f"{route.method} {route.public_path}",
        "summary": route.summary,
        "responses": {"200": {"description": "The answer.", "content": content}, "default": error},
    }
    if (dialect := route.dialect) is not None:
        types = {"no": [_JSON], "too": [_JSON, _FORM], "only": [_FORM]}[dialect.form]
        bodies = {each: {"schema": refs[dialect.request.struct]} for each in types}
        operation["requestBody"] = {"required": True, "content": bodies}
        if dialect.answer is not None and route.streams:
            content[_JSON] = {"schema": refs[dialect.answer]}
        if route.streams:
            content[_EVENTS] = {}  # OpenAPI 3.1 cannot describe a stream of different events
    if names := [part[1:-1] for part in route.public_path.split("/") if part.startswith("{")]:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    return operation


def _described(schema: dict[str, Any], rules: dict[str, Rule]) -> dict[str, Any]:
    """Adds the treatment of each parameter as its description, also of those that have no effect."""
    properties = dict(schema["properties"])
    for name, rule in rules.items():
        text = f"{rule.treatment}: {rule.note}" if rule.note else rule.treatment
        properties[name] = {**properties.get(name, {}), "description": text}
    return {**schema, "properties": properties}
