"""Conversion of a Messages request to a Chat Completions request. Pure functions.

``as_chat`` converts the request, and ``codexd.protocol.anthropic.stream`` converts the answer's chunks back to content
blocks. Facts that a chat request cannot hold are returned beside it: the thinking blocks with encrypted reasoning, and
the place of each message in the client's request.
"""

from collections.abc import Sequence
from typing import NamedTuple, assert_never

import msgspec
from msgspec import Raw

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol.adjustments import NONE, Adjustment, Adjustments
from codexd.protocol.anthropic.wire import (
    Block,
    CodeResult,
    DocumentBlock,
    Format,
    ImageBlock,
    MessagesRequest,
    OutputConfig,
    RedactedThinkingBlock,
    SearchResultBlock,
    ServerToolUse,
    Shown,
    Source,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolReference,
    ToolResultBlock,
    ToolSearchResult,
    ToolUseBlock,
    WebFetchResult,
    WebSearchResult,
)
from codexd.protocol.chat import wire as chat
from codexd.protocol.client_tools import NamedChoice
from codexd.protocol.codex.tools import SEARCH
from codexd.protocol.convert import Thinking, effort_of_budget
from codexd.protocol.raw import given
from codexd.protocol.reasoning import Items, of_call, of_text
from codexd.reasons import quoted


class AsChat(NamedTuple):
    """A converted request, with the facts that a chat request cannot hold.

    ``places`` names the place of each message in the client's request. ``reasoning`` maps the key of a call or a text
    to the items that led to it, with one entry for each time that the key occurs.
    """

    request: chat.ChatRequest
    places: list[str]
    reasoning: dict[str, list[Items]]
    adjusted: Adjustments

    def recall(self, key: str) -> Items:
        """Returns the reasoning of the key's next turn, as the client sent it."""
        waiting = self.reasoning.get(key)
        return waiting.pop(0) if waiting else ()


class _Turn(NamedTuple):
    """Conversion of one message: chat messages with their places, and the reasoning before its calls and text."""

    messages: list[tuple[str, chat.Message]]
    reasoning: Sequence[tuple[str, Items]] = ()
    adjusted: Adjustments = NONE


def as_chat(asked: MessagesRequest) -> AsChat:
    """Converts a request. Raises ApiError 400 naming a part that the backend does not support."""
    turns = [_system(asked.system)] if asked.system else []
    for index, message in enumerate(asked.messages):
        own, where = message.content, f"messages[{index}]"
        blocks: Sequence[Block] = [TextBlock(text=own)] if isinstance(own, str) else own
        turns.append(_assistant(blocks, where) if message.role == "assistant" else _user(message.role, blocks, where))
    adjusted = (*asked.adjusted, *(each for turn in turns for each in turn.adjusted))
    if asked.messages and asked.messages[-1].role == "assistant":
        adjusted += (Adjustment("prefill", "ignored"),)
    reasoning: dict[str, list[Items]] = {}
    for turn in turns:
        for key, items in turn.reasoning:
            reasoning.setdefault(key, []).append(items)
    placed = [each for turn in turns for each in turn.messages]
    request = _request(asked, [message for _, message in placed])
    return AsChat(request, [where for where, _ in placed], reasoning, tuple(dict.fromkeys(adjusted)))


def _request(asked: MessagesRequest, messages: list[chat.Message]) -> chat.ChatRequest:
    config, choice = asked.output_config or OutputConfig(), asked.tool_choice
    form = config.format or asked.output_format
    return chat.ChatRequest(
        model=asked.model,
        messages=messages,
        stream=asked.stream,
        tools=[_tool(tool, f"tools[{index}]") for index, tool in enumerate(asked.tools or ())] or None,
        tool_choice=_choice(choice, asked.tools or ()),
        max_tool_calls=min((tool.max_uses for tool in asked.tools or () if tool.max_uses is not None), default=None),
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        response_format=None if form is None else _format(form),
        service_tier="fast" if asked.speed == "fast" else None,
    )


def _format(form: Format) -> chat.FormatJsonSchema:
    return chat.FormatJsonSchema(json_schema=chat.JsonSchema(name="answer", schema=form.schema, strict=True))


def thinking_of(asked: MessagesRequest) -> Thinking:
    """Returns how much to think: ``output_config.effort``, else what ``thinking`` asks for."""
    thinking, thinks = asked.thinking, None if asked.thinking is None else wants_thinking(asked)
    if asked.output_config is not None and (effort := asked.output_config.effort) is not None:
        return Thinking(effort, "output_config.effort", thinks or None)
    if thinking is not None and thinking.budget_tokens is not None and thinks:
        return Thinking(effort_of_budget(thinking.budget_tokens), "thinking", thinks)
    return Thinking(None, "thinking", thinks)


def wants_thinking(asked: MessagesRequest) -> bool:
    return asked.thinking is not None and asked.thinking.type != "disabled"


def _system(system: str | list[TextBlock]) -> _Turn:
    texts = [system] if isinstance(system, str) else [block.text for block in system]
    # Claude Code starts with a billing line that changes with each request; it would defeat prompt caching.
    text = "\n\n".join(text for text in texts if not text.startswith("x-anthropic-billing-header:"))
    return _Turn([("system", chat.SystemMessage(content=text))])


def _user(role: str, blocks: Sequence[Block], where: str) -> _Turn:
    """Converts a user message. Tool results become separate chat messages, and come first."""
    results: list[tuple[str, chat.Message]] = []
    parts: list[chat.Part] = []
    for index, block in enumerate(blocks):
        here = f"{where}.content[{index}]"
        match block:
            case ToolResultBlock():
                results.append((here, chat.ToolMessage(tool_call_id=block.tool_use_id, content=_result(block, here))))
            case TextBlock() | ImageBlock() | DocumentBlock() | SearchResultBlock() | ToolReference():
                parts += _shown(block, here)
            case _:
                raise errors.bad_request(f"{here} is only allowed in an assistant message.", param=here)
    kind = chat.UserMessage if role == "user" else chat.SystemMessage
    return _Turn([*results, (where, kind(content=parts))] if parts else results)


def _assistant(blocks: Sequence[Block], where: str) -> _Turn:
    texts: list[str] = []
    calls: list[chat.ToolCall] = []
    reasoning: list[tuple[str, Items]] = []
    thought: Items = ()
    before_text: Items = ()
    adjusted = NONE
    for index, block in enumerate(blocks):
        here = f"{where}.content[{index}]"
        match block:
            case TextBlock(text=text):
                if text:
                    texts.append(text)
                    before_text, thought = before_text + thought, ()
            case ToolUseBlock():
                calls.append(_call(block))
                reasoning.append((of_call(block.id), thought))
                thought = ()
            case ThinkingBlock(signature=encrypted, thinking=summary):
                thought += _reasoning(encrypted, summary)
            case RedactedThinkingBlock(data=encrypted):
                thought += _reasoning(encrypted, "")
            case ServerToolUse(name="web_search") | WebSearchResult():
                # Of this answer or an earlier one; the text after it tells what was found.
                adjusted += (Adjustment("web_search", "left out"),)
            case ServerToolUse() | WebFetchResult() | CodeResult() | ToolSearchResult():
                adjusted += (Adjustment("server_tools", "dropped"),)
            case _:
                raise errors.bad_request(f"{here} is only allowed in a user message.", param=here)
    text = "".join(texts)
    if text:
        reasoning.append((of_text(text), before_text))
    message = chat.AssistantMessage(content=text or None, tool_calls=calls or None)
    return _Turn([(where, message)] if text or calls else [], reasoning, adjusted)


def _call(block: ToolUseBlock) -> chat.ToolCall:
    # Some clients' encoders add blanks. They are removed, because the backend cached the model's own output.
    arguments = msgspec.json.format(bytes(block.input), indent=-1).decode()
    return chat.ToolCall(id=block.id, function=chat.FunctionOfCall(name=block.name, arguments=arguments))


def _reasoning(encrypted: str | None, summary: str) -> Items:
    """Returns the reasoning item of a thinking block; empty when it has no encrypted content."""
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
        where, f"The source {quoted(source.type)} is not supported: send the {what} with the request, as base64."
    )


def _tool(tool: Tool, where: str) -> Raw:
    if tool.searches:
        return _search(tool)
    if tool.type not in (None, "custom"):
        raise errors.unsupported(
            where,
            f"Tools of type {quoted(tool.type)} run at Anthropic. Of these, codexd has only web search. "
            "Remove the tool.",
        )
    function: dict[str, object] = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    if given(tool.input_schema):
        function["parameters"] = tool.input_schema
    return Raw(msgspec.json.encode({"type": "function", "function": function}))


def _search(tool: Tool) -> Raw:
    search: dict[str, object] = {"type": SEARCH}
    domains = {"allowed_domains": tool.allowed_domains, "blocked_domains": tool.blocked_domains}
    if filters := {key: value for key, value in domains.items() if value}:
        search["filters"] = filters
    if given(tool.user_location):
        search["user_location"] = tool.user_location
    return Raw(msgspec.json.encode(search))


def searches(asked: MessagesRequest) -> bool:
    """Returns whether the client asked for Anthropic's web search, and so knows its blocks."""
    return any(tool.searches for tool in asked.tools or ())


def _choice(choice: ToolChoice | None, tools: Sequence[Tool]) -> str | NamedChoice | None:
    if choice is None:
        return None
    if any(tool.searches and tool.name == choice.name for tool in tools):
        return NamedChoice(type=SEARCH)
    match choice.type:
        case "any":
            return "required"
        case "tool":
            return NamedChoice(name=choice.name)
        case kind:
            return kind
