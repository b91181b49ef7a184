"""Wire records of the Responses API: requests to ``/v1/responses``."""

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd.protocol.members import RequestDecoder
from codexd.protocol.raw import RawObject


class ReasoningOptions(Struct, frozen=True):
    effort: str | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class TextOptions(Struct, frozen=True):
    format: Raw | UnsetType = UNSET
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(Struct, frozen=True, kw_only=True):
    model: str
    input: str | list[RawObject] = msgspec.field(default_factory=list)
    instructions: str | None = None
    stream: bool | None = False
    tools: list[RawObject] | None = None
    tool_choice: Raw | UnsetType = UNSET
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    client_metadata: Raw | UnsetType = UNSET
    include: list[str] | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    previous_response_id: str | None = None
    store: bool | None = None


REQUEST = RequestDecoder(ResponsesRequest)
