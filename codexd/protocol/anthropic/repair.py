"""Messages requests with blocks that codexd does not know. Pure functions.

It is called for requests that the schema refuses. Conversations hold blocks of Anthropic's own tools and of versions to
come, and a client sends them for ever. An unknown block is left out, wherever content may stand; a known one in a wrong
shape or place stays, and is refused with its place.
"""

from typing import Any

import msgspec
from msgspec import Raw

from codexd.protocol import decoding
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.raw import RawObject

KNOWN = frozenset(
    {"text", "image", "document", "search_result", "tool_use", "tool_result", "thinking", "redacted_thinking",
     "server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result",
     "tool_search_tool_result", "tool_reference"}
)  # fmt: skip


def repaired(members: RawObject) -> tuple[RawObject, Adjustments]:
    """Returns the members without unknown blocks, and what was changed."""
    changes: RawObject = {}
    dropped = False
    for key in ("system", "messages"):
        before: Any = decoding.decode(members.get(key, b"null"))
        after = _content(before) if key == "system" else _messages(before)
        if after != before:
            dropped |= msgspec.json.encode(after) != msgspec.json.encode(before)
            changes[key] = Raw(msgspec.json.encode(after))
        if key == "messages" and _is_empty(after):
            return members, NONE  # nothing is left to answer
    return ({**members, **changes}, (Adjustment("content_blocks", "dropped"),)) if dropped else (members, NONE)


def _is_empty(messages: Any) -> bool:
    return isinstance(messages, list) and not any(
        message.get("content") if isinstance(message, dict) else message for message in messages
    )


def _messages(messages: Any) -> Any:
    if not isinstance(messages, list):
        return messages
    return [
        {**message, "content": _content(message["content"])}
        if isinstance(message, dict) and "content" in message
        else message
        for message in messages
    ]


def _content(content: Any) -> Any:
    """Returns content without unknown blocks, also inside a tool's result; a single block or a null as a list."""
    if content is None:
        return []
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return content
    return [_block(block) for block in content if not isinstance(block, dict) or _is_known(block)]


def _is_known(block: dict[str, Any]) -> bool:
    return isinstance(kind := block.get("type"), str) and kind in KNOWN


def _block(block: Any) -> Any:
    if not isinstance(block, dict):
        return {"type": "text", "text": block} if isinstance(block, str) else block
    if block["type"] == "tool_result" and isinstance(block.get("content"), list | dict):
        return {**block, "content": _content(block["content"])}
    return block
