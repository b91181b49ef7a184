"""The legacy Completions API: text in, text out. Each prompt becomes one user message of a chat.

The backend supports only chats, so the answer is the text of a chat answer.
"""

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol import decoding
from codexd.protocol.chat import wire as chat
from codexd.protocol.chat.fold import fold
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.chat.wire import Chunk, CompletionUsage, FinishReason
from codexd.protocol.codex.events import decode_event
from codexd.protocol.members import RequestDecoder


class CompletionRequest(Struct, frozen=True, kw_only=True):
    model: str
    prompt: Raw = msgspec.field(default_factory=lambda: Raw(b'""'))
    stream: bool | None = False
    stream_options: chat.StreamOptions | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    echo: bool | None = None


REQUEST = RequestDecoder(CompletionRequest)


class TextChoice(Struct, frozen=True):
    text: str
    index: int
    logprobs: None = None
    finish_reason: FinishReason | None = None


class TextCompletion(Struct, frozen=True):
    """A whole answer or one chunk of it; both have the same shape."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage | UnsetType | None = UNSET


def prompts(asked: CompletionRequest) -> list[str]:
    """Returns the prompts as texts. Raises ApiError 400 for an empty prompt or one of token numbers."""
    try:
        found = decoding.decode(asked.prompt, type=str | list[str])
    except msgspec.ValidationError as error:
        raise errors.bad_request("prompt must be text or a list of texts, not tokens.", param="prompt") from error
    texts = [found] if isinstance(found, str) else found
    if not texts or not all(texts):
        raise errors.bad_request("prompt must not be empty.", param="prompt")
    return texts


def as_chat(asked: CompletionRequest, prompt: str) -> chat.ChatRequest:
    return chat.ChatRequest(model=asked.model, messages=[chat.UserMessage(content=prompt)])


class CompletionsConverter:
    """Legacy completions, built on the chat automaton. ``echo`` is sent before the answer."""

    def __init__(self, stream: ChatStream, *, streamed: bool, echo: str, index: int) -> None:
        self.state = stream
        self._streamed = streamed
        self._echo = echo
        self._index = index
        self._chunks: list[Chunk] = []

    def push(self, data: bytes) -> bytes:
        chunks = self.state.push(decode_event(data))
        if self._streamed:
            return b"".join([frame for chunk in chunks if (frame := self._frame(chunk))])
        self._chunks += chunks
        return b""

    def _frame(self, chunk: Chunk) -> bytes:
        choices = []
        for choice in chunk.choices:
            content = choice.delta.content
            text, self._echo = self._echo + ("" if content is UNSET else content), ""
            if text or choice.finish_reason is not None:
                choices.append(TextChoice(text, self._index, finish_reason=choice.finish_reason))
        if not choices and not chunk.usage:
            return b""
        return frame(TextCompletion(chunk.id, "text_completion", chunk.created, chunk.model, choices, chunk.usage))

    def failure(self, error: ApiError) -> bytes:
        return b"data: %b\n\n" % error.body()

    def keepalive(self) -> bytes:
        return b": keepalive\n\n"

    def document(self) -> bytes:
        whole = fold(self._chunks)
        (choice,) = whole.choices
        text = TextChoice(self._echo + (choice.message.content or ""), self._index, finish_reason=choice.finish_reason)
        return msgspec.json.encode(
            TextCompletion(whole.id, "text_completion", whole.created, whole.model, [text], whole.usage)
        )


def frame(chunk: TextCompletion) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(chunk)
