"""Checks of the API from the side of a client, for ``codexctl selftest``."""

import contextlib
import http.client
import secrets
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgspec

from codexd.protocol import decoding
from codexd.reasons import reason_of
from codexd.telemetry.trace import SELFTEST

ANSWER_SECONDS = 180.0
"""Seconds for a whole answer of a model."""

Json = dict[str, Any]

_TOOL = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


class Wrong(Exception):
    """An answer does not follow the API."""


def demand(condition: object, otherwise: str) -> None:
    """Raises Wrong unless the condition holds."""
    if not condition:
        raise Wrong(otherwise)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Listener:
    """A listener of codexd, with the client key and the model to use."""

    def __init__(self, address: str, key: str | None) -> None:
        self.address = address
        self.key = key
        self.model = ""

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, str], bytes]:
        """Returns the status, the headers by lower-case names, and the body. Raises Wrong if there is no answer."""
        headers = {"content-type": "application/json", "x-request-id": f"{SELFTEST}{secrets.token_hex(8)}"}
        if self.key:
            headers["authorization"] = f"Bearer {self.key}"
        connection = self._connection()
        try:
            data = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Wrong(f"{method} {path}: {reason_of(error)}") from error
        finally:
            connection.close()

    def document(self, method: str, path: str, body: object = None, *, status: int = 200) -> Json:
        """Returns the JSON object of an answer. Raises Wrong if it has another status."""
        found, headers, data = self.ask(method, path, body)
        demand(found == status, f"{method} {path} returned status {found}, not {status}: {_said(data)}")
        demand("x-request-id" in headers, f"{method} {path} has no x-request-id")
        try:
            document = decoding.decode(data)
        except ValueError as error:
            raise Wrong(f"{method} {path} is not JSON: {_beginning(data)}") from error
        demand(isinstance(document, dict), f"{method} {path} is not a JSON object")
        return dict(document)

    def events(self, path: str, body: Json) -> list[tuple[str, Any]]:
        """Returns the names and the data of a stream; the data of ``[DONE]`` is that text. Raises Wrong."""
        status, headers, data = self.ask("POST", path, body)
        demand(status == 200, f"POST {path} returned status {status}: {_said(data)}")
        demand(headers.get("content-type", "").startswith("text/event-stream"), f"{path} is not an event stream")
        found: list[tuple[str, Any]] = []
        for block in data.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
            if "data" in fields:
                shown = fields["data"]
                found.append((fields.get("event", ""), shown if shown == "[DONE]" else decoding.decode(shown)))
        return found

    def _connection(self) -> http.client.HTTPConnection:
        if self.address.startswith("unix:"):
            return _UnixConnection(self.address.removeprefix("unix:"), ANSWER_SECONDS)
        parts = urlsplit(self.address)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_SECONDS)


def _said(data: bytes) -> str:
    """Returns the message of an error, or the beginning of what came instead."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(decoding.decode(data)["error"]["message"])
    return _beginning(data)


def _shown(value: object) -> str:
    """Returns a part of an answer as it came."""
    return _beginning(msgspec.json.encode(value))


def _beginning(data: bytes) -> str:
    return data[:200].decode(errors="replace")


# --- the checks


def models(at: Listener) -> str:
    document = at.document("GET", "/v1/models")
    names = [model["id"] for model in document["data"]]
    demand(names, "the list of models is empty")
    at.model = at.model or names[0]
    demand(at.model in names or at.document("GET", f"/v1/models/{at.model}"), f"the model {at.model} is unknown")
    return f"{len(names)} models; using {at.model}"


def _chat(at: Listener, **more: object) -> Json:
    question = [{"role": "user", "content": "Say hello, and nothing else."}]
    return {"model": at.model, "messages": question} | more


def chat_whole(at: Listener) -> str:
    document = at.document("POST", "/v1/chat/completions", _chat(at))
    demand(document["object"] == "chat.completion", f"object is {_shown(document['object'])}")
    (choice,) = document["choices"]
    demand(choice["message"]["content"], "the message is empty")
    demand(choice["finish_reason"] == "stop", f"finish_reason is {_shown(choice['finish_reason'])}")
    usage = document["usage"]
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    demand(usage["total_tokens"] == total, f"the usage does not add up: {_shown(usage)}")
    return f"{usage['completion_tokens']} tokens"


def chat_streamed(at: Listener) -> str:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    found = [data for _, data in at.events("/v1/chat/completions", _chat(at, **options))]
    demand(found and found[-1] == "[DONE]", "the stream does not end with [DONE]")
    chunks = found[:-1]
    demand(len({chunk["id"] for chunk in chunks}) == 1, "the chunks have different ids")
    first, *_, finish, usage = chunks
    demand(first["choices"][0]["delta"].get("role") == "assistant", "the first chunk has no role")
    demand(finish["choices"][0]["finish_reason"] == "stop", "the last choice has no finish_reason")
    demand(usage["choices"] == [] and usage["usage"]["total_tokens"], "the usage is not in a chunk of its own")
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    demand(text, "no text was sent")
    return f"{len(chunks)} chunks"


def tool_call(at: Listener) -> str:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": _TOOL}}
    asked = [{"role": "user", "content": "Use get_weather to find the weather in Paris."}]
    body = {"model": at.model, "messages": asked, "tools": [tool], "tool_choice": "required"}
    document = at.document("POST", "/v1/chat/completions", body)
    (choice,) = document["choices"]
    demand(choice["finish_reason"] == "tool_calls", f"finish_reason is {_shown(choice['finish_reason'])}")
    call = choice["message"]["tool_calls"][0]
    arguments = decoding.decode(call["function"]["arguments"])
    demand("city" in arguments, f"the arguments do not fit the schema: {_shown(arguments)}")
    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    turn = [*asked, {"role": "assistant", "tool_calls": choice["message"]["tool_calls"]}, result]
    after = at.document("POST", "/v1/chat/completions", body | {"messages": turn, "tool_choice": "auto"})
    demand(after["choices"][0]["message"]["content"], "the answer after the tool's result is empty")
    return f"{call['function']['name']}({call['function']['arguments']}), and its result was used"


def structured(at: Listener) -> str:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": _TOOL}}
    document = at.document("POST", "/v1/chat/completions", _chat(at, response_format=wanted))
    found = decoding.decode(document["choices"][0]["message"]["content"])
    demand(set(found) == {"city"}, f"the answer does not fit the schema: {_shown(found)}")
    return "the answer fits the schema"


def responses_whole(at: Listener) -> str:
    document = at.document("POST", "/v1/responses", {"model": at.model, "input": "Say hello."})
    demand(
        document["object"] == "response" and document["status"] == "completed",
        f"status is {_shown(document['status'])}",
    )
    demand(any(item["type"] == "message" for item in document["output"]), "the output has no message")
    body = {"model": at.model, "input": "And again.", "previous_response_id": document["id"]}
    again = at.document("POST", "/v1/responses", body)
    demand(again["previous_response_id"] == document["id"], "the conversation does not continue")
    read = at.document("GET", f"/v1/responses/{document['id']}")
    demand(read["id"] == document["id"], "the stored response cannot be read")
    at.document("DELETE", f"/v1/responses/{document['id']}")
    at.document("GET", f"/v1/responses/{document['id']}", status=404)
    return "answered, continued, read, deleted"


def responses_streamed(at: Listener) -> str:
    found = at.events("/v1/responses", {"model": at.model, "input": "Say hello.", "stream": True})
    events = [data for _, data in found if data != "[DONE]"]
    for name, data in found:
        demand(data == "[DONE]" or name == data["type"], f"the event {_shown(name)} has type {_shown(data)}")
    kinds = [event["type"] for event in events]
    demand(kinds[0] == "response.created", f"the stream starts with {kinds[0]}")
    demand(kinds[-1] == "response.completed", f"the stream ends with {kinds[-1]}")
    numbers = [event["sequence_number"] for event in events]
    demand(numbers == sorted(set(numbers)), "the sequence numbers do not increase")
    deltas = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    texts = [event["text"] for event in events if event["type"] == "response.output_text.done"]
    demand(deltas == "".join(texts), "the deltas do not add up to the text")
    return f"{len(events)} events"


def messages(at: Listener) -> str:
    body = {"model": at.model, "max_tokens": 1000, "messages": [{"role": "user", "content": "Say hello."}]}
    document = at.document("POST", "/v1/messages", body)
    demand(
        document["type"] == "message" and document["stop_reason"] == "end_turn",
        f"unexpected message: {_shown(document)}",
    )
    names = [name for name, _ in at.events("/v1/messages", body | {"stream": True})]
    demand(
        names[0] == "message_start" and names[-1] == "message_stop", f"the stream goes from {names[0]} to {names[-1]}"
    )
    return f"complete, and streamed in {len(names)} events"


def search(at: Listener) -> str:
    body = {"model": at.model, "input": "Search the web for 'weather'.", "tools": [{"type": "web_search"}]}
    document = at.document("POST", "/v1/responses", body)
    calls = [item for item in document["output"] if item["type"] == "web_search_call"]
    demand(calls, "the model did not search")
    demand(all(call["status"] == "completed" for call in calls), f"a search failed: {_shown(calls)}")
    parts = [part for item in document["output"] if item["type"] == "message" for part in item["content"]]
    found = f"{len(calls)} search{'es' if len(calls) > 1 else ''}"
    return f"{found}, {sum(len(part['annotations']) for part in parts)} citations"


def images(at: Listener) -> str:
    body = {"prompt": "a red dot", "response_format": "url"}
    url = at.document("POST", "/v1/images/generations", body)["data"][0]["url"]
    status, headers, data = at.ask("GET", urlsplit(url).path)
    demand(status == 200 and headers["content-type"].startswith("image/"), f"{url} is not an image: {status}")
    return f"{len(data)} bytes"


def ollama(at: Listener) -> str:
    names = [model["name"] for model in at.document("GET", "/api/tags")["models"]]
    demand(f"{at.model}:latest" in names, f"{at.model} is not among the models: {_shown(names)}")
    body = _chat(at) | {"stream": False}
    document = at.document("POST", "/api/chat", body)
    demand(document["done"] is True and document["message"]["content"], f"unexpected answer: {_shown(document)}")
    return f"{document['eval_count']} tokens"


def refusals(at: Listener) -> str:
    cases: list[tuple[str, str, object, int]] = [
        ("POST", "/v1/chat/completions", b"{", 400),
        ("POST", "/v1/chat/completions", {"model": at.model}, 400),
        ("POST", "/v1/chat/completions", _chat(at) | {"model": "no-such-model"}, 404),
        ("GET", "/v1/responses/resp_nobody", None, 404),
        ("GET", "/v1/nowhere", None, 404),
        ("PUT", "/v1/models", None, 405),
    ]
    for method, path, body, status in cases:
        error = at.document(method, path, body, status=status)["error"]
        demand(
            {"message", "type", "param", "code"} <= set(error),
            f"{method} {path}: the error object is incomplete: {_shown(error)}",
        )
    return f"{len(cases)} invalid requests, each refused with a status and a reason"


Checked = Callable[[Listener], str]
"""Returns what it found, in a few words. Raises Wrong, and KeyError and the like for an answer of another shape."""

CHECKS: dict[str, Checked] = {
    "models": models,
    "chat": chat_whole,
    "chat, streamed": chat_streamed,
    "tool call": tool_call,
    "structured output": structured,
    "responses": responses_whole,
    "responses, streamed": responses_streamed,
    "messages": messages,
    "web search": search,
    "images": images,
    "Ollama's API": ollama,
    "refusals": refusals,
}
REAL = ("models", "chat, streamed", "tool call", "responses, streamed", "web search", "refusals")
"""The checks for ``--real``, where each request counts as usage; these are cheap."""
