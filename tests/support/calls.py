"""Requests to the backend, and the answers that later ones continue."""

from typing import Any

import msgspec

from codexd.protocol.codex import continuation
from codexd.protocol.codex.request import (
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    InputText,
    Message,
    OutputText,
    Reasoning,
    Text,
    UpstreamRequest,
)  # fmt: skip
from codexd.protocol.raw import RawObject
from codexd.telemetry.trace import Timings
from codexd.upstream.call import Call
from codexd.upstream.conversations import Head


def user(text: str) -> InputItem:
    return Message(role="user", content=[InputText(text=text)])


def said(text: str) -> InputItem:
    return Message(role="assistant", content=[OutputText(text=text)])


def called(call_id: str = "c", arguments: str = "{}") -> InputItem:
    return FunctionCall(call_id=call_id, name="f", arguments=arguments)


def output(call_id: str = "c", text: str = "done") -> InputItem:
    return FunctionCallOutput(call_id=call_id, output=text)


def call(
    *items: InputItem, key: str = "k", caller: str = "me", lite: bool = False, lossless: bool = True, **fields: Any
) -> Call:
    given: dict[str, Any] = {"model": "m", "reasoning": Reasoning(), "text": Text(verbosity="low")}
    given |= {"prompt_cache_key": key} | fields
    request = UpstreamRequest(input=list(items), **given)
    return Call(request, key, lite=lite, caller=caller, lossless=lossless, timings=Timings())


def raw(item: InputItem | dict[str, Any]) -> RawObject:
    """The item as the backend sends it."""
    return msgspec.json.decode(msgspec.json.encode(item), type=RawObject)


def head(asked: Call, *answer: InputItem, name: str = "resp_1") -> Head:
    """What this answer to that request lets the next one continue."""
    found = continuation.answer_of([raw(item) for item in answer])
    return Head(asked.chain.digest, name, found, asked.request.prompt_cache_key)
