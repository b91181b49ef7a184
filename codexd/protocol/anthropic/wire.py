"""Wire records of the Anthropic Messages API: requests."""

from typing import Literal

import msgspec
from msgspec import Raw, Struct, UnsetType

from codexd.protocol.adjustments import NONE, Adjustments
from codexd.protocol.anthropic.repair import repaired
from codexd.protocol.members import RequestDecoder

MAX_STOPS = 64


class Source(Struct, frozen=True, kw_only=True):
    """The source of an image or a document. ``type``: ``base64``, ``url``, ``text``, ``content`` or ``file``."""

    type: str
    media_type: str = ""
    data: str = ""
    url: str = ""
    content: "str | list[TextBlock | ImageBlock] | None" = None


class TextBlock(Struct, frozen=True, kw_only=True, tag="text"):
    text: str


class ImageBlock(Struct, frozen=True, kw_only=True, tag="image"):
    source: Source


class DocumentBlock(Struct, frozen=True, kw_only=True, tag="document"):
    source: Source
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Struct, frozen=True, kw_only=True, tag="search_result"):
    source: str
    title: str
    content: list[TextBlock]


class ToolUseBlock(Struct, frozen=True, kw_only=True, tag="tool_use"):
    id: str
    name: str
    input: Raw = msgspec.field(default_factory=lambda: Raw(b"{}"))


class ToolResultBlock(Struct, frozen=True, kw_only=True, tag="tool_result"):
    tool_use_id: str
    content: "str | list[Shown] | None" = None
    is_error: bool | None = None


class ThinkingBlock(Struct, frozen=True, kw_only=True, tag="thinking"):
    """A thinking block. ``signature`` is the encrypted reasoning, ``thinking`` its summary."""

    thinking: str = ""
    signature: str | None = None


class RedactedThinkingBlock(Struct, frozen=True, kw_only=True, tag="redacted_thinking"):
    data: str


class ServerToolUse(Struct, frozen=True, tag="server_tool_use"):
    name: str = ""


class WebSearchResult(Struct, frozen=True, tag="web_search_tool_result"):
    pass


class WebFetchResult(Struct, frozen=True, tag="web_fetch_tool_result"):
    pass


class CodeResult(Struct, frozen=True, tag="code_execution_tool_result"):
    pass


class ToolSearchResult(Struct, frozen=True, tag="tool_search_tool_result"):
    pass


class ToolReference(Struct, frozen=True, kw_only=True, tag="tool_reference"):
    """A tool that a tool search found."""

    tool_name: str


Shown = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReference

Foreign = ServerToolUse | WebSearchResult | WebFetchResult | CodeResult | ToolSearchResult

Block = Shown | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock | Foreign


class Message(Struct, frozen=True, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Struct, frozen=True, kw_only=True):
    """A tool that the client runs. Other types are tools that Anthropic runs or defines."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: Raw | UnsetType = msgspec.UNSET
    strict: bool | None = None
    max_uses: int | None = None
    allowed_domains: list[str] | None = None
    blocked_domains: list[str] | None = None
    user_location: Raw | UnsetType = msgspec.UNSET

    @property
    def searches(self) -> bool:
        """Whether it is Anthropic's web search, of any version."""
        return self.type is not None and self.type.startswith("web_search_2")


class ToolChoice(Struct, frozen=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, frozen=True, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None


class Format(Struct, frozen=True, kw_only=True):
    type: Literal["json_schema"]
    schema: Raw


class OutputConfig(Struct, frozen=True, kw_only=True):
    effort: str | None = None
    format: Format | None = None


class MessagesRequest(Struct, frozen=True, kw_only=True):
    model: str
    messages: list[Message]
    max_tokens: int | None = None
    system: str | list[TextBlock] | None = None
    stream: bool | None = False
    stop_sequences: list[str] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None
    speed: Literal["standard", "fast"] | None = None
    adjusted: Adjustments = NONE


REQUEST = RequestDecoder(MessagesRequest, repaired)
