"""Golden transcripts: a client's request, what goes up, what comes, what the client sees streamed and folded.

``pytest --accept`` rewrites what is expected; the diff is the review.
"""

import difflib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec
import pytest

from codexd.api.anthropic import MESSAGES
from codexd.api.chat import CHAT
from codexd.api.pipeline import Context, Dialect
from codexd.api.responses import RESPONSES, understood
from codexd.errors import ApiError
from codexd.protocol import members, parameters, sse
from codexd.protocol.adjustments import Adjustments
from codexd.protocol.codex.events import Other
from codexd.protocol.codex.models import Catalogue
from codexd.protocol.conversion import Conversion
from codexd.protocol.convert import Converted, Settings
from codexd.protocol.reasoning import nothing

FOLDER = Path(__file__).parent.parent / "transcripts"
NAMES = sorted(folder.name for folder in FOLDER.iterdir())
DIALECTS = {dialect.name: dialect for dialect in (CHAT, RESPONSES, MESSAGES)}


MODE_OFF = ("chat-own-instructions", "chat-no-instructions-lite")
"""Transcripts with ``codex.mode`` off."""


def dialect_of(folder: Path) -> Dialect:
    return DIALECTS[folder.name.partition("-")[0]]


@cache
def prepared(folder: Path, *, streamed: bool) -> tuple[Converted, Callable[[], Conversion], Adjustments]:
    """What the API makes of the request: with the endpoint's own dialect, and a context that is always the same."""
    dialect = dialect_of(folder)
    found = members.split((folder / "request.json").read_bytes())
    asked = dialect.request.decode(found)
    prompt = None if folder.name in MODE_OFF else "(the family's instructions)"
    context = Context(
        id="1" * 48,
        created=1795324300,
        resolved=Catalogue({}).resolve(asked.model),
        settings=Settings(prompt=prompt, repair_history=folder.name.endswith("-repaired")),
        streamed=streamed,
        recall=nothing,
        turn=lambda: None,
        reasoning_format="reasoning_content",
    )
    ((converted, conversion),) = dialect.prepare(
        understood(asked, found) if dialect is RESPONSES else asked, context
    ).parts
    return converted, conversion, parameters.apply_rules(found, dialect.rules)


def conversion(folder: Path, *, streamed: bool) -> Conversion:
    _, make, _ = prepared(folder, streamed=streamed)
    return make()


def upstream(folder: Path) -> bytes:
    lines = (folder / "upstream.jsonl").read_bytes().splitlines()
    return b"".join(sse.encode(msgspec.json.decode(line, type=Other).type.encode(), line) for line in lines)


def failure(folder: Path, error: ApiError) -> str:
    body = dialect_of(folder).failure(error)
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
    converted, _, ruled = prepared(folder, streamed=False)
    adjusted = ", ".join(map(str, dict.fromkeys([*ruled, *converted.adjusted])))
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
