"""Folding of streamed chunks into one completion, for clients that do not stream."""

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd.protocol import decoding
from codexd.protocol.chat.wire import (
    Choice,
    Chunk,
    Completion,
    CompletionTokensDetails,
    CompletionUsage,
    CustomCall,
    Delta,
    FinishReason,
    FunctionCall,
    MessageToolCall,
    ResponseMessage,
    ToolCallDelta,
)


def fold(chunks: Iterable[Chunk]) -> Completion:
    """Returns the completion of a whole stream of chunks. Raises ValueError when no chunk has a finish_reason."""
    first: Chunk | None = None
    usage: CompletionUsage | UnsetType | None = UNSET
    reason: FinishReason | None = None
    deltas: list[Delta] = []
    index = 0
    for chunk in chunks:
        first = first or chunk
        usage = chunk.usage or usage
        for choice in chunk.choices:
            deltas.append(choice.delta)
            index = choice.index
            reason = reason or choice.finish_reason
    if first is None or reason is None:
        raise ValueError("a stream without an end has no completion")
    message = _message(deltas)
    return Completion(
        first.id, "chat.completion", first.created, first.model, [Choice(index, message, reason)], usage or UNSET
    )


class _Document(Struct):
    choices: list[Raw]
    usage: CompletionUsage | None = None


def join(documents: Sequence[bytes], per_prompt: int) -> bytes:
    """Joins the documents of several choices into one, with their total usage."""
    parts = [decoding.decode(document, type=_Document) for document in documents]
    whole = decoding.decode(documents[0], type=dict[str, Raw])
    whole["choices"] = Raw(msgspec.json.encode([choice for part in parts for choice in part.choices]))
    if (usage := total([part.usage for part in parts if part.usage is not None], per_prompt)) is not None:
        whole["usage"] = Raw(msgspec.json.encode(usage))
    return msgspec.json.encode(whole)


def total(usages: Sequence[CompletionUsage], per_prompt: int) -> CompletionUsage | None:
    """Returns the usage of several answers. A prompt counts once for its ``per_prompt`` answers, as in the API."""
    if not usages:
        return None
    completion = sum(usage.completion_tokens for usage in usages)
    reasoning = sum(usage.completion_tokens_details.reasoning_tokens for usage in usages)
    prompt = sum(usage.prompt_tokens for usage in usages[::per_prompt])
    return msgspec.structs.replace(
        usages[0],
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning),
    )


def _message(deltas: list[Delta]) -> ResponseMessage:
    content = "".join(delta.content for delta in deltas if delta.content is not UNSET)
    refusal = "".join(delta.refusal for delta in deltas if delta.refusal is not UNSET)
    reasoning = "".join(delta.reasoning_content for delta in deltas if delta.reasoning_content is not UNSET)
    other = "".join(delta.reasoning for delta in deltas if delta.reasoning is not UNSET)
    calls = _calls(deltas)
    annotations = [each for delta in deltas if delta.annotations is not UNSET for each in delta.annotations]
    images = [each for delta in deltas if delta.images is not UNSET for each in delta.images]
    legacy = [delta.function_call for delta in deltas if delta.function_call is not UNSET]
    called: FunctionCall | UnsetType = UNSET
    if legacy:
        called = FunctionCall(legacy[0].name or "", "".join(piece.arguments for piece in legacy))
    return ResponseMessage(
        # Clients read the key even without text: with a call or a refusal it is null, never missing.
        content=content if content or not (calls or refusal or legacy) else None,
        refusal=refusal or None,
        annotations=annotations,
        images=images or UNSET,
        reasoning_content=reasoning or UNSET,
        reasoning=other or UNSET,
        tool_calls=calls or UNSET,
        function_call=called,
    )


def _calls(deltas: list[Delta]) -> list[MessageToolCall]:
    pieces: dict[int, list[ToolCallDelta]] = {}
    for delta in deltas:
        for call in delta.tool_calls or ():
            pieces.setdefault(call.index, []).append(call)
    return [_call(of_one) for _, of_one in sorted(pieces.items())]


def _call(pieces: list[ToolCallDelta]) -> MessageToolCall:
    first = pieces[0]
    if first.custom is not UNSET:
        text = "".join(piece.custom.input for piece in pieces if piece.custom is not UNSET)
        return MessageToolCall(id=first.id or "", type="custom", custom=CustomCall(first.custom.name or "", text))
    functions = [piece.function for piece in pieces if piece.function is not UNSET]
    text = "".join(function.arguments for function in functions)
    return MessageToolCall(id=first.id or "", function=FunctionCall(functions[0].name or "", text))
