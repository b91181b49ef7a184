"""Streamed chunks, folded into the one completion that a client gets which does not stream."""

from collections.abc import Iterable

from msgspec import UNSET, UnsetType

from codexd.protocol.chat import (
    Choice,
    Chunk,
    Completion,
    CompletionUsage,
    Delta,
    FinishReason,
    FunctionCall,
    MessageToolCall,
    ResponseMessage,
)


def fold(chunks: Iterable[Chunk]) -> Completion:
    """The completion that these chunks are the stream of. Raises ValueError when they have no finish_reason."""
    first: Chunk | None = None
    usage: CompletionUsage | UnsetType | None = UNSET
    reason: FinishReason | None = None
    deltas: list[Delta] = []
    for chunk in chunks:
        first = first or chunk
        usage = chunk.usage or usage
        for choice in chunk.choices:
            deltas.append(choice.delta)
            reason = reason or choice.finish_reason
    if first is None or reason is None:
        raise ValueError("a stream without an end has no completion")
    message = _message(deltas)
    return Completion(
        first.id, "chat.completion", first.created, first.model, [Choice(0, message, reason)], usage or UNSET
    )


def _message(deltas: list[Delta]) -> ResponseMessage:
    content = "".join(delta.content for delta in deltas if delta.content is not UNSET)
    refusal = "".join(delta.refusal for delta in deltas if delta.refusal is not UNSET)
    reasoning = "".join(delta.reasoning_content for delta in deltas if delta.reasoning_content is not UNSET)
    calls = _calls(deltas)
    return ResponseMessage(
        # Clients look for the key also where there is no text: with a call or a refusal it is null, never missing.
        content=content if content or not (calls or refusal) else None,
        refusal=refusal or None,
        annotations=[],
        reasoning_content=reasoning or UNSET,
        tool_calls=calls or UNSET,
    )


def _calls(deltas: list[Delta]) -> list[MessageToolCall]:
    starts: dict[int, tuple[str, str]] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        for call in delta.tool_calls or ():
            if call.id is not UNSET and call.function.name is not UNSET:
                starts[call.index] = (call.id, call.function.name)
            arguments.setdefault(call.index, []).append(call.function.arguments)
    return [
        MessageToolCall(id, FunctionCall(name, "".join(arguments[index])))
        for index, (id, name) in sorted(starts.items())  # noqa: A001 - the API's own word
    ]
