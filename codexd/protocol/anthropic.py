"""The Anthropic Messages API: its requests, as Chat Completions requests. Pure functions.

What a client of that API sends is a chat in other words, so it takes the chat's way: ``as_chat`` turns it, and the
answer's chunks become content blocks again (codexd.protocol.blocks). What the chat has no words for travels beside it:
the thinking blocks that hold encrypted reasoning, and where in the client's request each message stood.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, assert_never

import msgspec
from msgspec import Raw, Struct, UnsetType

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol import chat
from codexd.protocol.memory import Items, of_call, of_text
from codexd.protocol.responses import given

MAX_STOPS = 64

# --- the request


class Source(Struct, frozen=True, kw_only=True):
    """Of an image or a document: ``base64``, ``url``, ``text``, ``content`` or ``file``."""

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
    """``signature`` is the encrypted reasoning that the text is the summary of."""

    thinking: str = ""
    signature: str | None = None


class RedactedThinkingBlock(Struct, frozen=True, kw_only=True, tag="redacted_thinking"):
    data: str


# What Anthropic's own tools left in earlier turns: the text beside it says what came of it, and it is left out.


class ServerToolUse(Struct, frozen=True, tag="server_tool_use"):
    pass


class WebSearchResult(Struct, frozen=True, tag="web_search_tool_result"):
    pass


class WebFetchResult(Struct, frozen=True, tag="web_fetch_tool_result"):
    pass


class CodeResult(Struct, frozen=True, tag="code_execution_tool_result"):
    pass


class ToolSearchResult(Struct, frozen=True, tag="tool_search_tool_result"):
    pass


class ToolReference(Struct, frozen=True, kw_only=True, tag="tool_reference"):
    """In the result of a search for tools: one that was found."""

    tool_name: str


Shown = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReference
Foreign = ServerToolUse | WebSearchResult | WebFetchResult | CodeResult | ToolSearchResult
Block = Shown | ToolUseBlock | ToolResultBlock | ThinkingBlock | RedactedThinkingBlock | Foreign


class Message(Struct, frozen=True, kw_only=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Struct, frozen=True, kw_only=True):
    """A tool of the client's own; other types are tools that Anthropic runs, or knows by heart."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: Raw | UnsetType = msgspec.UNSET
    strict: bool | None = None


class ToolChoice(Struct, frozen=True, kw_only=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct, frozen=True, kw_only=True):
    type: Literal["enabled", "disabled", "adaptive"]


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


REQUEST = msgspec.json.Decoder(MessagesRequest)


class AsChat(NamedTuple):
    """``places`` says where each message stood; ``reasoning`` is what led to a call or a text, by its key, in turn.

    ``adjusted`` is what the client is told of.
    """

    request: chat.ChatRequest
    places: list[str]
    reasoning: dict[str, list[Items]]
    adjusted: list[str]

    def recall(self, key: str) -> Items:
        """The reasoning of the next turn of that key, as the client carried it."""
        waiting = self.reasoning.get(key)
        return waiting.pop(0) if waiting else ()


def as_chat(asked: MessagesRequest) -> AsChat:
    """Raises ApiError 400 naming what the backend has nothing like."""
    found = AsChat(chat.ChatRequest(model=asked.model, messages=[]), [], {}, [])
    if asked.system:
        given_texts = [asked.system] if isinstance(asked.system, str) else [block.text for block in asked.system]
        # Claude Code begins with a line for Anthropic's billing that is another one each time: no cache would ever hit.
        system = "\n\n".join(text for text in given_texts if not text.startswith("x-anthropic-billing-header:"))
        _add(found, "system", chat.SystemMessage(content=system))
    for index, message in enumerate(asked.messages):
        where = f"messages[{index}]"
        own = message.content
        blocks: Sequence[Block] = [TextBlock(text=own)] if isinstance(own, str) else own
        if message.role == "assistant":
            _assistant(found, blocks, where)
        else:
            _user(found, message.role, blocks, where)
    if asked.messages and asked.messages[-1].role == "assistant":
        found.adjusted.append("prefill=ignored")
    config = asked.output_config or OutputConfig()
    form = config.format or asked.output_format
    choice = asked.tool_choice
    request = msgspec.structs.replace(
        found.request,
        stream=asked.stream,
        tools=[_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ())] or None,
        tool_choice=_choice(choice),
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        response_format=form
        and chat.FormatJsonSchema(json_schema=chat.JsonSchema(name="answer", schema=form.schema, strict=True)),
        reasoning_effort=config.effort,
        service_tier="fast" if asked.speed == "fast" else None,
    )
    return found._replace(request=request)


def wants_thinking(asked: MessagesRequest) -> bool:
    return asked.thinking is not None and asked.thinking.type != "disabled"


def _add(found: AsChat, where: str, message: chat.Message) -> None:
    found.request.messages.append(message)
    found.places.append(where)


def _user(found: AsChat, role: str, blocks: Sequence[Block], where: str) -> None:
    """Results are messages of their own there, and come first."""
    parts: list[chat.Part] = []
    for index, block in enumerate(blocks):
        here = f"{where}.content[{index}]"
        match block:
            case ToolResultBlock():
                _add(found, here, chat.ToolMessage(tool_call_id=block.tool_use_id, content=_result(block, here)))
            case TextBlock() | ImageBlock() | DocumentBlock() | SearchResultBlock() | ToolReference():
                parts += _shown(block, here)
            case _:
                raise errors.bad_request(f"{here} belongs into a message of the assistant.", param=here)
    if parts:
        kind = chat.UserMessage if role == "user" else chat.SystemMessage
        _add(found, where, kind(content=parts))


def _assistant(found: AsChat, blocks: Sequence[Block], where: str) -> None:
    texts: list[str] = []
    calls: list[chat.ToolCall] = []
    thought: Items = ()
    before_text: Items = ()
    for index, block in enumerate(blocks):
        here = f"{where}.content[{index}]"
        match block:
            case TextBlock(text=text):
                if text:
                    texts.append(text)
                    before_text, thought = before_text + thought, ()
            case ToolUseBlock():
                # Without the blanks of some clients' encoders: the model wrote none, and its words are cached.
                arguments = msgspec.json.format(bytes(block.input), indent=-1).decode()
                calls.append(
                    chat.ToolCall(id=block.id, function=chat.FunctionOfCall(name=block.name, arguments=arguments))
                )
                found.reasoning.setdefault(of_call(block.id), []).append(thought)
                thought = ()
            case ThinkingBlock(signature=encrypted, thinking=summary):
                thought += _reasoning(encrypted, summary)
            case RedactedThinkingBlock(data=encrypted):
                thought += _reasoning(encrypted, "")
            case ServerToolUse() | WebSearchResult() | WebFetchResult() | CodeResult() | ToolSearchResult():
                found.adjusted.append("server_tools=dropped")
            case _:
                raise errors.bad_request(f"{here} belongs into a message of the user.", param=here)
    text = "".join(texts)
    if text:
        found.reasoning.setdefault(of_text(text), []).append(before_text)
    if text or calls:
        _add(found, where, chat.AssistantMessage(content=text or None, tool_calls=calls or None))


def _reasoning(encrypted: str | None, summary: str) -> Items:
    """The item that a thinking block was made of; none without its encrypted content."""
    if not encrypted:
        return ()
    parts = [{"type": "summary_text", "text": summary}] if summary else []
    item = {"type": "reasoning", "summary": parts, "encrypted_content": encrypted}
    return ({key: Raw(msgspec.json.encode(value)) for key, value in item.items()},)


def _result(block: ToolResultBlock, where: str) -> chat.Content:
    own = block.content
    blocks: Sequence[Shown] = [TextBlock(text=own)] if isinstance(own, str) else own or ()
    texts = [each.text for each in blocks if isinstance(each, TextBlock)]
    if len(texts) == len(blocks) <= 1:
        text = "".join(texts)
        return f"The tool failed. {text}".strip() if block.is_error else text
    head = [chat.TextPart(text="The tool failed.")] if block.is_error else []
    shown = [part for index, each in enumerate(blocks) for part in _shown(each, f"{where}.content[{index}]")]
    return [*head, *shown]


def _shown(block: Shown, where: str) -> list[chat.Part]:
    match block:
        case TextBlock(text=text):
            return [chat.TextPart(text=text)]
        case ImageBlock(source=source):
            return [chat.ImagePart(image_url=_url(source, where, "image"))]
        case SearchResultBlock():
            texts = "\n".join(each.text for each in block.content)
            return [chat.TextPart(text=f"{block.title} ({block.source})\n{texts}")]
        case ToolReference(tool_name=name):
            return [chat.TextPart(text=f"Found the tool {name}.")]
        case DocumentBlock():
            return _document(block, where)
        case _:  # pragma: no cover
            assert_never(block)


def _document(block: DocumentBlock, where: str) -> list[chat.Part]:
    head = [chat.TextPart(text=text) for text in (block.title, block.context) if text]
    source = block.source
    match source.type:
        case "text":
            return [*head, chat.TextPart(text=source.data)]
        case "content":
            inner = [TextBlock(text=source.content)] if isinstance(source.content, str) else source.content or ()
            return [*head, *(part for each in inner for part in _shown(each, where))]
        case "base64":
            file = chat.File(filename=block.title or "document.pdf", file_data=_url(source, where, "document"))
            context = [chat.TextPart(text=block.context)] if block.context else []
            return [*context, chat.FilePart(file=file)]
        case _:
            raise _unsupported_source(source, where, "document")


def _url(source: Source, where: str, what: str) -> str:
    if source.type == "base64":
        return f"data:{source.media_type};base64,{source.data}"
    if source.type == "url":
        return source.url
    raise _unsupported_source(source, where, what)


def _unsupported_source(source: Source, where: str, what: str) -> ApiError:
    return errors.unsupported(
        where, f"The source {source.type!r} is not supported: send the {what} with the request, as base64."
    )


def _tool(tool: Tool, where: str) -> Raw:
    if tool.type not in (None, "custom"):
        raise errors.unsupported(
            where,
            f"Tools of type {tool.type!r} are Anthropic's own; codexd has those with an input_schema alone.",
        )
    function: dict[str, object] = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    if given(tool.input_schema):
        function["parameters"] = tool.input_schema
    return Raw(msgspec.json.encode({"type": "function", "function": function}))


def _choice(choice: ToolChoice | None) -> str | chat.NamedChoice | None:
    if choice is None:
        return None
    match choice.type:
        case "any":
            return "required"
        case "tool":
            return chat.NamedChoice(name=choice.name)
        case kind:
            return kind


# --- failures

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class _Error(Struct):
    type: str
    message: str


class _Failure(Struct, kw_only=True):
    type: str = "error"
    error: _Error


def failure(error: ApiError) -> bytes:
    """The error document of that API, which is also the data of its error event.

    It has no key for the place of what is wrong, so the message begins with that.
    """
    message, param = error.error.message, error.error.param
    if error.error.code == "context_length_exceeded":
        message = f"prompt is too long: {message}"  # the words by which clients know that it is time to compact
    if param is not None and param not in message:
        message = f"{param}: {message}"
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return msgspec.json.encode(_Failure(error=_Error(kind, message)))
