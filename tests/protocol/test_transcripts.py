"""Golden transcripts: a client's request, what goes up, what comes, what the client sees streamed and folded.

``pytest --accept`` rewrites what is expected; the diff is the review.
"""

import difflib
from pathlib import Path

import msgspec
import pytest

from codexd.errors import ApiError
from support.transcripts import FOLDER, NAMES, conversion, dialect_of, prepared, upstream


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
def test_a_transcript_does_not_depend_on_how_many_events_a_read_brings(name: str) -> None:
    folder = FOLDER / name
    whole = conversion(folder, streamed=True)
    out = whole.feed(upstream(folder))
    cut = conversion(folder, streamed=True)
    pieces = b"".join(cut.feed([event]) for event in upstream(folder))
    whole.state.eof()
    cut.state.eof()
    assert pieces == out
    assert (cut.state.begun, cut.state.done, cut.state.usage) == (
        whole.state.begun,
        whole.state.done,
        whole.state.usage,
    )
    assert repr(cut.state.error) == repr(whole.state.error)
