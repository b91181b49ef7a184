"""Blocks that nobody knows are left out and said; a known one in the wrong place is refused with its place."""

from typing import Any

import msgspec
import pytest

from codexd.api.anthropic import MESSAGES
from codexd.errors import ApiError
from codexd.protocol import members, parameters
from codexd.protocol.anthropic.convert import as_chat
from codexd.protocol.anthropic.failures import failure_document
from codexd.protocol.anthropic.wire import REQUEST
from codexd.protocol.chat import wire as chat

UNKNOWN = ["tool_addition", "bash_code_execution_tool_result", "mcp_tool_use", "compaction", "container_upload", "x"]
TEXT = {"type": "text", "text": "hi"}


def asked(*messages: Any, **fields: Any) -> Any:
    body = {"model": "m", "max_tokens": 9, "messages": list(messages), **fields}
    return REQUEST.decode(members.split(msgspec.json.encode(body)))


@pytest.mark.parametrize("kind", UNKNOWN)
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_an_unknown_block_is_left_out(kind: str, role: str) -> None:
    odd = {"type": kind, "id": "i", "content": [{"type": "y"}], "text": 7}
    found = as_chat(
        asked({"role": role, "content": [odd, TEXT, odd]}, {"role": "user", "content": "next"}, system=[odd])
    )
    assert [each.param for each in found.adjusted] == ["content_blocks"]
    first = found.request.messages[0]
    assert first.content == "hi" or first.content == [chat.TextPart(text="hi")]
    assert len(found.request.messages) == 2


def test_also_inside_a_result() -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "x"}, TEXT]}
    found = as_chat(asked({"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}))
    last = found.request.messages[-1]
    assert isinstance(last, chat.ToolMessage)
    assert last.content == "hi"


def test_content_in_odd_shapes() -> None:
    found = as_chat(asked({"role": "user", "content": ["a", {"type": "x"}]}, {"role": "assistant", "content": TEXT}))
    assert [message.content for message in found.request.messages] == [[chat.TextPart(text="a")], "hi"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "user", "content": [{"type": "x"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [TEXT, {"type": "tool_result"}, {"type": "x"}]}], "messages[0].content[1]"),
        ([{"role": "user", "content": [TEXT, 7]}], "messages[0].content[1]"),
        ([7], "messages[0]"),
        (7, "messages"),
    ],
)
def test_what_is_known_stays_and_is_refused(messages: Any, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        REQUEST.decode(members.split(msgspec.json.encode({"model": "m", "messages": messages})))
    assert (caught.value.error.param or "").startswith(words)


@pytest.mark.parametrize(
    ("thread", "status", "code"),
    [
        ({"type": "create"}, 400, "thread_unsupported_request"),
        ({"type": "continue", "previous_message_id": "msg_1"}, 404, "thread_not_found"),
    ],
)
def test_a_thread_is_refused_as_the_sdk_expects(thread: Any, status: int, code: str) -> None:
    found = members.split(msgspec.json.encode({"thread": thread}))
    with pytest.raises(ApiError) as caught:
        parameters.apply_rules(found, MESSAGES.rules)
    assert caught.value.status == status
    error = msgspec.json.decode(failure_document(caught.value))["error"]
    assert error["details"] == {"error_code": code}
    assert "details" not in msgspec.json.decode(failure_document(ApiError(400, "x")))["error"]


def test_a_type_that_is_no_text_is_an_unknown_one() -> None:
    found = as_chat(asked({"role": "user", "content": [{"type": ["text"]}, TEXT]}))
    assert found.request.messages[0].content == [chat.TextPart(text="hi")]
