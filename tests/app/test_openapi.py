"""The OpenAPI document: made from what is served, so it has to say what is served."""

from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from trio.testing import MockClock

from codexd.protocol import parameters
from support.asgi import client
from support.backend import Backend
from support.daemon import hello
from support.transcripts import FOLDER, FOREIGN, NAMES

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}


async def document(folder: Path) -> Any:
    async with client(folder, Backend()) as app:
        return (await app.request("GET", "/openapi.json")).json


def schema_of(whole: Any, path: str) -> Any:
    schema = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return {**schema, "components": whole["components"]}


async def test_requests_that_are_taken_fit_it(autojump_clock: MockClock, tmp_path: Path) -> None:
    whole = await document(tmp_path)
    for name in set(NAMES) - set(FOREIGN):
        body = msgspec.json.decode((FOLDER / name / "request.json").read_bytes())
        jsonschema.validate(body, schema_of(whole, PATHS[name.partition("-")[0]]))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": "gpt-5.5", "messages": "x"}, schema_of(whole, PATHS["chat"]))


async def test_answers_fit_it(autojump_clock: MockClock, tmp_path: Path) -> None:
    whole = await document(tmp_path)
    async with client(tmp_path, Backend()) as app:
        answer = await app.request("POST", PATHS["chat"], hello())
        refused = await app.request("POST", PATHS["chat"], b"{}")
    responses = whole["paths"][PATHS["chat"]]["post"]["responses"]
    for found, status in ((answer, "200"), (refused, "default")):
        schema = responses[status]["content"]["application/json"]["schema"]
        jsonschema.validate(found.json, {**schema, "components": whole["components"]})


async def test_it_names_all_that_is_served_and_what_becomes_of_each_parameter(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    whole = await document(tmp_path)
    async with client(tmp_path, Backend()) as app:
        nowhere = (await app.request("GET", "/nope")).json["error"]["message"]
        for path, operations in whole["paths"].items():
            for method, operation in operations.items():
                assert f"{method.upper()} {path}" in nowhere
                assert operation["summary"]
                assert (await app.request(method.upper(), path.replace("{id}", "x"))).status != 405
    assert nowhere.count("GET ") + nowhere.count("POST ") + nowhere.count("DELETE ") == 1 + sum(
        map(len, whole["paths"].values())
    )
    chat = whole["components"]["schemas"]["ChatRequest"]["properties"]
    assert set(parameters.CHAT) <= set(chat)
    assert chat["temperature"]["description"].startswith("dropped: ")
