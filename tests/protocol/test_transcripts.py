"""Golden transcripts: a client's request, what goes up, what comes, what the client sees streamed and folded.

``pytest --accept`` rewrites what is expected; the diff is the review.
"""

import difflib
from pathlib import Path

import msgspec
import pytest

from codexd.errors import ApiError
from codexd.protocol import anthropic, blocks, chat, parameters, responses, sse
from codexd.protocol import conversion as conversions
from codexd.protocol import request as convert
from codexd.protocol.conversion import Conversion
from codexd.protocol.cut import Cut, Limits, limits
from codexd.protocol.models import Catalogue
from codexd.protocol.passthrough import ECHOED, ResponsesStream
from codexd.protocol.stream import ChatStream
from codexd.protocol.truncation import Truncation

FOLDER = Path(__file__).parent.parent / "transcripts"
NAMES = sorted(folder.name for folder in FOLDER.iterdir())


MODE_OFF = ("chat-own-instructions", "chat-no-instructions-lite")
"""Transcripts with ``codex.mode`` off."""


def settings(folder: Path) -> convert.Settings:
    prompt = None if folder.name in MODE_OFF else "(the family's instructions)"
    return convert.Settings(prompt=prompt, repair_history=folder.name.endswith("-repaired"))


def sent(folder: Path) -> tuple[convert.Converted, list[str]]:
    body = (folder / "request.json").read_bytes()
    catalogue = Catalogue({})
    if folder.name.startswith("chat"):
        asked = chat.REQUEST.decode(body)
        return convert.from_chat(asked, catalogue.resolve(asked.model), settings(folder)), parameters.sort_out(
            body, parameters.CHAT
        )
    if folder.name.startswith("messages"):
        found = anthropic.as_chat(anthropic.REQUEST.decode(body))
        resolved = catalogue.resolve(found.request.model)
        converted = convert.from_chat(found.request, resolved, settings(folder), found.recall, found.places)
        return converted, [*parameters.sort_out(body, parameters.MESSAGES), *found.adjusted]
    wanted = responses.REQUEST.decode(body)
    return convert.from_responses(wanted, catalogue.resolve(wanted.model), settings(folder)), parameters.sort_out(
        body, parameters.RESPONSES
    )


def conversion(folder: Path, *, streamed: bool) -> Conversion:
    body = (folder / "request.json").read_bytes()
    if folder.name.startswith("chat"):
        asked = chat.REQUEST.decode(body)
        usage = not streamed or bool(asked.stream_options and asked.stream_options.include_usage)
        converted, _ = sent(folder)
        wanted = limits(asked.stop, ("max_tokens", asked.max_tokens))
        stream = ChatStream(
            id="chatcmpl-1", model=asked.model, created=1795324300, include_usage=usage, names=converted.names,
            legacy=converted.legacy, cut=Cut(wanted) if wanted != Limits() else None, prompt_tokens=lambda: 7,
        )  # fmt: skip
        return conversions.chat(stream, streamed=streamed)
    if folder.name.startswith("messages"):
        return messages(folder, anthropic.REQUEST.decode(body), streamed=streamed)
    given = msgspec.json.decode(body, type=responses.RawObject)
    echo = {key: given[key] for key in ECHOED if key in given}
    limit = limits(None, ("max_output_tokens", responses.REQUEST.decode(body).max_output_tokens))
    truncation = Truncation(Cut(limit)) if limit.max_tokens else None
    return conversions.responses(ResponsesStream(echo, sent(folder)[0].names, truncation, lambda: 7))


def messages(folder: Path, asked: anthropic.MessagesRequest, *, streamed: bool) -> Conversion:
    cut = Cut(limits(asked.stop_sequences, ("max_tokens", asked.max_tokens)))
    thinking = anthropic.wants_thinking(asked)
    stream = ChatStream(
        id="msg_1", model=asked.model, created=0, include_usage=False, names=sent(folder)[0].names, cut=cut,
        prompt_tokens=lambda: 7, reasoning="reasoning_content" if thinking else "none",
    )  # fmt: skip
    dialect = blocks.MessagesDialect(
        stream, id="msg_1", model=asked.model, streamed=streamed, thinking=thinking, cut=cut, prompt_tokens=lambda: 7
    )
    return blocks.conversion(dialect)


def upstream(folder: Path) -> bytes:
    lines = (folder / "upstream.jsonl").read_bytes().splitlines()
    return b"".join(sse.encode(msgspec.json.decode(line, type=responses.Other).type.encode(), line) for line in lines)


def failure(folder: Path, error: ApiError) -> str:
    body = anthropic.failure(error) if folder.name.startswith("messages") else error.body()
    wait = f" after {error.retry_after} s" if error.retry_after is not None else ""
    again = ", tried once more" if error.retryable else ""
    return f"HTTP {error.status}{wait}{again}\n{body.decode()}\n"


def streamed(folder: Path) -> str:
    converter = conversion(folder, streamed=True)
    out = converter.feed(upstream(folder))
    converter.state.eof()
    if converter.state.error is None:
        return out.decode()
    if not converter.state.begun:
        return failure(folder, converter.state.error)
    return (out + converter.failure(converter.state.error)).decode()


def folded(folder: Path) -> str:
    converter = conversion(folder, streamed=False)
    converter.feed(upstream(folder))
    converter.state.eof()
    if converter.state.error is not None:
        return failure(folder, converter.state.error)
    return msgspec.json.format(converter.document()).decode() + "\n"


def expected(folder: Path) -> dict[str, str]:
    converted, dropped = sent(folder)
    adjusted = ", ".join([*dropped, *converted.adjusted])
    head = f"lite: {converted.lite}\nx-codexd-adjusted: {adjusted}\n\n"
    body = msgspec.json.format(msgspec.json.encode(converted.request)).decode()
    return {"sent.txt": f"{head}{body}\n", "streamed.txt": streamed(folder), "folded.txt": folded(folder)}


@pytest.mark.parametrize("name", NAMES)
def test_transcript_is_what_was_accepted(name: str, accept: bool) -> None:
    folder = FOLDER / name
    differences = []
    for file, text in expected(folder).items():
        path = folder / file
        if accept:
            path.write_text(text)
        before = path.read_text() if path.exists() else ""
        differences += difflib.unified_diff(before.splitlines(), text.splitlines(), file, "now", lineterm="")
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("name", NAMES)
def test_a_transcript_does_not_depend_on_where_the_network_cuts(name: str) -> None:
    folder = FOLDER / name
    whole = conversion(folder, streamed=True)
    out = whole.feed(upstream(folder))
    cut = conversion(folder, streamed=True)
    pieces = b"".join(cut.feed(bytes([byte])) for byte in upstream(folder))
    whole.state.eof()
    cut.state.eof()
    assert pieces == out
    assert (cut.state.begun, cut.state.done, cut.state.usage) == (
        whole.state.begun,
        whole.state.done,
        whole.state.usage,
    )
    assert repr(cut.state.error) == repr(whole.state.error)
