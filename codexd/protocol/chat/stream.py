"""The automaton of Chat Completions: Responses events in, chunks out. An answer is in one of four states:

    state     | left by                                              | to
    ----------|------------------------------------------------------|---------
    waiting   | the first event that carries part of the answer      | begun
    waiting   | completed without any output item                    | failed
    begun     | completed, incomplete                                | done
    waiting   | incomplete                                           | done
    begun     | a stop sequence, or the limit of tokens (cut short)  | done
    any       | failed, error, cancelled, end without a terminal     | failed
    done      | –                                                    | –
    failed    | –                                                    | –

While it is waiting, nothing has been sent to the client: a failure can still have its own HTTP status, and the request
can be tried again. The start of a reasoning item does not count as a beginning: it has no content, and overload often
occurs after it. The first chunk carries the role. Done yields exactly one ``finish_reason``, failed yields none.

``output_item.done`` is authoritative and deltas may be missing. So whatever an item holds beyond what was already sent
is sent then, if what was sent is how it begins. Without streaming nothing of an item is sent before. The final event's
``output`` (observed to be empty on this backend) is treated the same way. Items are identified by ``output_index``, not
by id, because ids were observed to change between events.

Text of messages in the phase ``commentary`` is the model's comment on its work. It is sent as reasoning, and as the
answer only if there is no other.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from msgspec import UNSET, UnsetType

from codexd import errors
from codexd.errors import ApiError
from codexd.protocol.chat.usage import chat_usage
from codexd.protocol.chat.wire import (
    Chunk,
    ChunkChoice,
    Citation,
    CompletionUsage,
    CustomDelta,
    Delta,
    FinishReason,
    FunctionDelta,
    Image,
    ImageUrl,
    ToolCallDelta,
    UrlCitation,
)
from codexd.protocol.codex.events import (
    ArgumentsDelta,
    ArgumentsDone,
    Cancelled,
    Completed,
    CustomInputDelta,
    CustomInputDone,
    ErrorEvent,
    Event,
    Failed,
    HalfDelta,
    Incomplete,
    Item,
    OutputItemAdded,
    OutputItemDone,
    Part,
    ReasoningDelta,
    RefusalDelta,
    Response,
    Silent,
    SummaryDelta,
    TextDelta,
    Usage,
    join_halves,
)
from codexd.protocol.codex.failures import from_event
from codexd.protocol.stops import Cutoff
from codexd.protocol.tokens import estimated_usage

ReasoningFormat = Literal["reasoning_content", "reasoning", "think-tags", "none"]
"""Where a chat client gets the reasoning summary: in one of two fields, in the text, or not at all."""

ImageFormat = Literal["images", "markdown"]
"""Where a chat client gets an image: in a field, or in the text."""

_INCOMPLETE: dict[str | None, FinishReason] = {"max_output_tokens": "length", "content_filter": "content_filter"}


class _Open:
    """One output item: the deltas of its text, refusal and arguments so far, and whether it has reasoning."""

    __slots__ = ("arguments", "commentary", "custom", "done", "index", "reasoning", "refusal", "text")

    def __init__(self) -> None:
        self.text, self.refusal, self.arguments = list[str](), list[str](), list[str]()
        self.commentary = self.custom = self.reasoning = False
        self.done = False
        self.index: int | None = None


class ChatStream:
    """Automaton of one answer. The caller chooses ``id``, ``model`` and ``created`` (Unix seconds) of the chunks.

    ``names`` maps tool names back to the client's own. ``legacy``: the first call is sent as ``function_call``.
    ``cut`` may end the answer early; its usage is then estimated, with ``prompt_tokens`` for the request. ``index`` is
    the choice's index. With several choices ``usage_chunk`` is off, because the usage covers all of them. Without
    ``streamed`` the chunks are folded, and items are taken from their last event.
    """

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the API's own word
        model: str,
        created: int,
        include_usage: bool,
        names: Mapping[str, str] | None = None,
        legacy: bool = False,
        cut: Cutoff | None = None,
        prompt_tokens: Callable[[], int] = lambda: 0,
        index: int = 0,
        usage_chunk: bool = True,
        reasoning: ReasoningFormat = "reasoning_content",
        images: ImageFormat = "images",
        streamed: bool = True,
    ) -> None:
        self._streamed = streamed
        # Finds where a limit ends an answer of which nothing is sent yet.
        self._probe = Cutoff(cut.limits) if cut is not None and not streamed else None
        self._reasoning_format, self._image_format = reasoning, images
        self._thinking = False
        self._usage_chunk = usage_chunk
        self._cut = cut
        self._prompt_tokens = prompt_tokens
        self._index = index
        self._names = names or {}
        self._legacy = legacy
        self._id = id
        self._model = model
        self._created = created
        self._include_usage = include_usage
        self._items: dict[int, _Open] = {}
        self._calls = 0
        self._answered = False
        self._comments: list[str] = []
        self._halves: dict[tuple[type, int], str] = {}
        self._reasoned: tuple[int, int] | None = None
        self.begun = False
        self.done = False
        self.cut_short = False
        self.error: ApiError | None = None
        self.usage: Usage | None = None

    def passes(self, event: TextDelta) -> bool:
        """Returns whether the event becomes exactly one text chunk; if so, counts it as sent.

        This holds for nearly all events. A caller that knows how the chunk is encoded need not push such an event.
        """
        item = self._items.get(event.output_index)
        if item is None or item.commentary or not self.begun or self.done or self.error is not None:
            return False
        if self._cut is not None or self._thinking or not event.delta:
            return False
        item.text.append(event.delta)
        self._answered = True
        return True

    def keeper(self, output_index: int) -> Callable[[str], None]:
        """Returns what keeps the texts of an item, of which one has passed, until an event that is none is pushed."""
        return self._items[output_index].text.append

    def text_chunk(self, text: str) -> Chunk:
        """Returns the chunk for a piece of text that ``passes``."""
        return self._chunk([ChunkChoice(self._index, Delta(content=text))])

    def push(self, event: Event) -> list[Chunk]:
        """Takes one event and returns its chunks. After the end or a failure the list is always empty."""
        if self.done or self.error is not None:
            return []
        match event:
            case TextDelta():
                return self._text(event.output_index, event.delta)
            case ArgumentsDelta() | CustomInputDelta():
                return self._arguments(event.output_index, event.delta)
            case SummaryDelta():
                return self._reasoning(event.output_index, event.summary_index, event.delta)
            case ReasoningDelta():
                return self._reasoning(event.output_index, 0, event.delta)
            case RefusalDelta():
                return self._refusal(event.output_index, event.delta)
            case _:
                return self._push_structure(event)

    def _push_structure(self, event: Event) -> list[Chunk]:
        match event:
            case Silent():
                return []
            case OutputItemAdded():
                return self._added(event.output_index, event.item)
            case ArgumentsDone() if self._streamed:
                return self._all_arguments(event.output_index, event.arguments)
            case CustomInputDone() if self._streamed:
                return self._all_arguments(event.output_index, event.input)
            case OutputItemDone():
                return self._item_done(event.output_index, event.item)
            case Completed():
                return self._completed(event.response)
            case Incomplete():
                return self._incomplete(event.response)
            case HalfDelta():
                return self._half(event)
            case Failed() | Cancelled() | ErrorEvent():
                self.error = from_event(event)
                return []
            case _:
                return []

    def eof(self) -> None:
        """Handles the end of the upstream's stream; without a terminal event before, it is a failure."""
        if not self.done and self.error is None:
            self.error = errors.stream_ended()

    # --- items

    def _open(self, output_index: int) -> _Open:
        item = self._items.get(output_index)
        if item is None:
            item = self._items[output_index] = _Open()
        return item

    def _added(self, output_index: int, item: Item) -> list[Chunk]:
        state = self._open(output_index)
        if item.phase is not None and not state.text:
            state.commentary = item.phase == "commentary"
        if item.type in ("function_call", "custom_tool_call") and state.index is None:
            state.index, self._calls = self._calls, self._calls + 1
            state.custom = item.type == "custom_tool_call"
            held = self._thought() + self._flush()
            if self.done:
                return held
            return held + self._call(state, "", name=self._names.get(item.name, item.name), id=item.call_id)
        return [] if item.type == "reasoning" else self._chunks()

    def _item_done(self, output_index: int, item: Item) -> list[Chunk]:
        state = self._open(output_index)
        if state.done:
            return []
        chunks = self._added(output_index, item) if item.type != "reasoning" else []
        match item.type:
            case "message":
                chunks += self._message_done(output_index, state, item.content or ())
            case "function_call":
                # A call without parameters may come with no arguments at all.
                chunks += self._all_arguments(output_index, item.arguments or "{}")
            case "custom_tool_call":
                chunks += self._all_arguments(output_index, item.input)
            case "image_generation_call" if item.result:
                url = f"data:image/{item.output_format or 'png'};base64,{item.result}"
                chunks += self._thought() + self._flush()
                chunks += [] if self.done else self._image(url)
            case "reasoning" if not state.reasoning:
                chunks += self._whole_reasoning(output_index, item.summary or item.content or ())
        state.done = True
        return chunks

    def _image(self, url: str) -> list[Chunk]:
        if self._image_format == "markdown":
            return self._chunks(Delta(content=f"![image]({url})\n"))
        return self._chunks(Delta(images=[Image(ImageUrl(url))]))

    def _message_done(self, output_index: int, state: _Open, parts: Sequence[Part]) -> list[Chunk]:
        self._answered |= not state.commentary
        before = state.text
        rest = self._rest(before, "".join(part.text for part in parts))
        chunks = self._text(output_index, rest, whole=True) + self._flush()
        refusal = self._rest(state.refusal, "".join(part.refusal for part in parts))
        chunks += self._refusal(output_index, refusal, whole=True)
        if any(part.annotations for part in parts) and not self.done and not state.commentary:
            chunks += self._cited(list(self._citations(output_index, parts)))
        return chunks

    def _cited(self, found: list[Citation]) -> list[Chunk]:
        return self._chunks(Delta(annotations=found)) if found else []

    def _rest(self, before: list[str], whole: str) -> str:
        """Returns what is left to send of a complete text, nothing if what was sent is not how it begins."""
        sent = "".join(before)
        if not self._streamed:
            before.clear()
            return whole or sent
        return whole.removeprefix(sent) if whole.startswith(sent) else ""

    def _citations(self, output_index: int, parts: Sequence[Part]) -> Iterator[Citation]:
        """Returns the citations of web pages; their indexes count the characters of the whole answer."""
        earlier = [state.text for index, state in self._items.items() if index < output_index and not state.commentary]
        offset = sum(len(piece) for text in earlier for piece in text)
        for part in parts:
            for each in part.annotations or ():
                if each.type == "url_citation" and isinstance(each.url, str):
                    start, end = (at if isinstance(at, int) else 0 for at in (each.start_index, each.end_index))
                    yield Citation(UrlCitation(each.url, str(each.title or ""), offset + start, offset + end))
            offset += len(part.text)

    # --- what the items hold

    def _half(self, event: HalfDelta) -> list[Chunk]:
        """Joins the halves of a character that came in two deltas."""
        place = (event.kind, event.output_index)
        whole, self._halves[place] = join_halves(self._halves.get(place, "") + event.delta)
        return self.push(event.kind(output_index=event.output_index, delta=whole)) if whole else []

    def _text(self, output_index: int, text: str, *, whole: bool = False) -> list[Chunk]:
        """Sends a piece of text. ``whole``: it is the rest of its item."""
        state = self._open(output_index)
        if text:
            state.text.append(text)
        if state.commentary:
            self._comments += [text] if text and (whole or self._streamed) else []
            return self._reasoning(output_index, 0, text) if whole or self._streamed else self._chunks()
        self._answered |= bool(text)
        if not self._streamed and not whole:
            return self._held(output_index, state, text)
        thought = self._thought() if text else []
        if self._cut is None:
            return thought + self._chunks(Delta(content=text)) if text else []
        return thought + self._cut_text(self._cut, self._cut.text(text))

    def _held(self, output_index: int, state: _Open, text: str) -> list[Chunk]:
        """Keeps a piece of text until its item is done, unless it reaches a limit."""
        if self._probe is not None:
            self._probe.text(text)
            if self._probe.reason is not None:
                so_far = "".join(state.text)
                state.text.clear()
                return self._text(output_index, so_far, whole=True)
        return self._chunks() if text else []

    def _cut_text(self, cut: Cutoff, text: str) -> list[Chunk]:
        chunks = self._chunks(Delta(content=text)) if text else []
        return chunks + self._cut_off(cut)

    def _cut_off(self, cut: Cutoff) -> list[Chunk]:
        """Ends the answer if the text or arguments sent last reached a limit."""
        if cut.reason is None or self.done:
            return []
        self.cut_short = True
        return self._finish(cut.reason, estimated_usage(self._prompt_tokens(), cut.spent))

    def _flush(self) -> list[Chunk]:
        """Returns the text that was held back, because something else begins."""
        if self._probe is not None:
            self._probe.flush()
        return [] if self._cut is None or self.done else self._cut_text(self._cut, self._cut.flush())

    def _refusal(self, output_index: int, text: str, *, whole: bool = False) -> list[Chunk]:
        if not text or self.done:
            return []
        self._open(output_index).refusal.append(text)
        return self._chunks(Delta(refusal=text)) if whole or self._streamed else []

    def _reasoning(self, output_index: int, summary_index: int, text: str) -> list[Chunk]:
        if not text:
            return []
        state = self._open(output_index)
        state.reasoning = True
        here = (output_index, summary_index)
        if self._reasoned not in (None, here):
            text = f"\n\n{text}"
        self._reasoned = here
        match self._reasoning_format:
            case "reasoning_content":
                return self._chunks(Delta(reasoning_content=text), answers=False)
            case "reasoning":
                return self._chunks(Delta(reasoning=text), answers=False)
            case "think-tags":
                opening, self._thinking = "" if self._thinking else "<think>", True
                return self._chunks(Delta(content=f"{opening}{text}"), answers=False)
            case _:
                return []

    def _thought(self) -> list[Chunk]:
        """Closes an open ``<think>`` tag before any other part of the answer."""
        if not self._thinking:
            return []
        self._thinking, self._reasoned = False, None
        return self._chunks(Delta(content="</think>\n\n"), answers=False)

    def _whole_reasoning(self, output_index: int, parts: Iterable[Part]) -> list[Chunk]:
        return [chunk for index, part in enumerate(parts) for chunk in self._reasoning(output_index, index, part.text)]

    def _arguments(self, output_index: int, text: str, *, whole: bool = False) -> list[Chunk]:
        """Sends a piece of a call's arguments. ``whole``: it is the rest of its item."""
        state = self._open(output_index)
        if state.index is None or not text or self.done:
            # The call was never announced; its item arrives complete with output_item.done.
            return []
        state.arguments.append(text)
        if not self._streamed and not whole:
            if self._probe is None or self._probe.spend(text) == text:
                return []
            text = "".join(state.arguments)
        if self._cut is None:
            return self._call(state, text)
        fits = self._cut.spend(text)
        return (self._call(state, fits) if fits else []) + self._cut_off(self._cut)

    def _call(
        self,
        state: _Open,
        text: str,
        *,
        name: str | UnsetType = UNSET,
        id: str | UnsetType = UNSET,  # noqa: A002
    ) -> list[Chunk]:
        """Returns a piece of a call: first name and id, then arguments or the input of a custom tool."""
        index = state.index or 0
        if self._legacy:
            # The legacy message has only one call.
            return self._chunks(Delta(function_call=FunctionDelta(text, name))) if index == 0 else []
        if state.custom:
            piece = ToolCallDelta(index, custom=CustomDelta(text, name), id=id)
        else:
            kind: Literal["function"] | UnsetType = UNSET if id is UNSET else "function"
            piece = ToolCallDelta(index, FunctionDelta(text, name), id=id, type=kind)
        return self._chunks(Delta(tool_calls=[piece]))

    def _all_arguments(self, output_index: int, arguments: str) -> list[Chunk]:
        rest = self._rest(self._open(output_index).arguments, arguments)
        return self._arguments(output_index, rest, whole=True)

    # --- the end

    def _completed(self, response: Response) -> list[Chunk]:
        chunks = self._leftovers(response) + self._flush()
        if self.done:
            return chunks
        if not self._answered and self._comments:
            chunks += self._thought() + self._chunks(Delta(content="".join(self._comments)))
        if not self._answered:
            self.error = errors.empty_answer()
            return []
        called: FinishReason = "function_call" if self._legacy else "tool_calls"
        return chunks + self._finish(called if self._calls else "stop", response.usage)

    def _incomplete(self, response: Response) -> list[Chunk]:
        details = response.incomplete_details
        reason = details.reason if details else None
        chunks = self._leftovers(response) + self._flush()
        return chunks if self.done else chunks + self._finish(_INCOMPLETE.get(reason, "length"), response.usage)

    def _leftovers(self, response: Response) -> list[Chunk]:
        chunks = [
            chunk
            for index, item in enumerate(response.output or ())
            if not self.done
            for chunk in self._item_done(index, item)
        ]
        if not self._streamed:
            # Items of which only deltas came.
            for index, state in list(self._items.items()):
                if not state.done and not self.done:
                    chunks += self._text(index, self._rest(state.text, ""), whole=True)
                    chunks += self._refusal(index, self._rest(state.refusal, ""), whole=True)
                    chunks += self._arguments(index, self._rest(state.arguments, ""), whole=True)
        return chunks

    def _finish(self, reason: FinishReason, usage: Usage | None) -> list[Chunk]:
        self.done = True
        self.usage = usage
        chunks = self._thought() + self._chunks(Delta(), finish_reason=reason)
        if self._include_usage and self._usage_chunk and self.usage is not None:
            chunks.append(self._chunk([], chat_usage(self.usage)))
        return chunks

    # --- chunks

    def _chunks(
        self, delta: Delta | None = None, finish_reason: FinishReason | None = None, *, answers: bool = True
    ) -> list[Chunk]:
        """Returns the chunk of a delta, preceded by the chunk with the role if that was not sent yet.

        ``answers``: the delta is part of the answer, not of the reasoning before it.
        """
        chunks = []
        if not self.begun:
            self.begun = True
            chunks.append(self._chunk([ChunkChoice(self._index, Delta(role="assistant", content=""))]))
        if delta is not None:
            self._answered |= answers
            chunks.append(self._chunk([ChunkChoice(self._index, delta, finish_reason=finish_reason)]))
        return chunks

    def _chunk(self, choices: list[ChunkChoice], usage: CompletionUsage | None = None) -> Chunk:
        return Chunk(
            self._id,
            "chat.completion.chunk",
            self._created,
            self._model,
            choices,
            usage if self._include_usage else UNSET,
        )
