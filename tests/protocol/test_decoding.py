"""What cannot be read is one kind of error, wherever it turns up; and what is bounded in the pure rooms says so."""

from typing import Any

import msgspec
import pytest
from msgspec import Raw

from codexd.errors import ApiError
from codexd.protocol import decoding, sse
from codexd.protocol.codex import schemas, tools
from codexd.protocol.codex.request import FunctionTool
from codexd.protocol.conversion import Conversion
from codexd.protocol.decoding import Decoder, NotUtf8, TooDeep
from codexd.protocol.members import MAX_MEMBERS, split
from codexd.protocol.raw import encoded, plain
from codexd.protocol.responses import stored
from codexd.protocol.tokens import counted, prompt_tokens
from support.converted import chat_request, responses_request

DEEP = b"[" * 60_000
NOT_TEXT = b'"\xff"'


@pytest.mark.parametrize("decode", [Decoder(list[Any]).decode, Decoder(msgspec.Raw).decode, decoding.decode])
def test_json_that_is_too_deep_is_a_decode_error(decode: Any) -> None:
    with pytest.raises(TooDeep, match="nested too deeply") as caught:
        decode(DEEP)
    assert isinstance(caught.value, msgspec.DecodeError)


@pytest.mark.parametrize("decode", [Decoder(str).decode, lambda data: decoding.decode(data, type=str)])
def test_bytes_that_are_no_text_are_one_too(decode: Any) -> None:
    with pytest.raises(NotUtf8) as caught:
        decode(NOT_TEXT)
    assert isinstance(caught.value, msgspec.DecodeError)


def test_a_text_in_raw_json_that_is_no_text_is_a_decode_error() -> None:
    assert (plain(Raw(b'"a"')), plain(Raw(b"1")), plain(None)) == ("a", None, None)
    with pytest.raises(msgspec.DecodeError):
        plain(Raw(b'"\xff"'))


def test_a_schema_that_is_too_deep_is_refused_and_not_remembered() -> None:
    raw = msgspec.Raw(b'{"a":' * 5000 + b"{}" + b"}" * 5000)
    for _ in range(2):
        with pytest.raises((RecursionError, TooDeep)):
            schemas.check(raw)
    with pytest.raises(ApiError, match="nested too deeply"):
        tools.fit([FunctionTool(name="f", parameters=raw)])


class _Deep:
    """A converter that meets what is too deep for it."""

    class State:
        begun = done = cut_short = False
        error: ApiError | None = None
        usage = None

        def eof(self) -> None: ...

    def __init__(self, error: Exception) -> None:
        self.state = self.State()
        self._error = error

    def push(self, _: bytes) -> bytes:
        raise self._error

    failure = keepalive = document = None


@pytest.mark.parametrize("error", [TooDeep(), RecursionError()])
def test_an_event_that_is_too_deep_for_its_conversion_fails_the_answer(error: Exception) -> None:
    converter: Any = _Deep(error)
    assert Conversion(converter).feed([b"{}"]) == b""
    assert converter.state.error.error.code == "upstream_unreadable"


def test_there_is_an_end_to_parameters() -> None:
    split(msgspec.json.encode(dict.fromkeys(map(str, range(MAX_MEMBERS)))))
    with pytest.raises(ApiError, match=f"the maximum is {MAX_MEMBERS}"):
        split(msgspec.json.encode(dict.fromkeys(map(str, range(MAX_MEMBERS + 1)))))


def test_what_is_named_again_and_again_has_an_end() -> None:
    item = {"id": encoded("msg_1"), "type": encoded("message"), "content": encoded("x" * 1000)}
    reference = {"type": encoded("item_reference"), "id": encoded("msg_1")}
    assert stored.references([reference, reference, item]) == ["msg_1"]
    assert stored.resolved([reference] * 3, {"msg_1": item}.get, 4000) == [item] * 3
    with pytest.raises(ApiError, match="larger than 4000 bytes together") as caught:
        stored.resolved([reference] * 5, {"msg_1": item}.get, 4000)
    assert caught.value.status == 413


def test_there_is_an_end_to_the_lines_of_an_event() -> None:
    decoder = sse.EventDecoder()
    assert (decoder.feed(b"data: a\n" * 10), decoder.pending > 0) == ([], True)
    assert decoder.feed(b"\n") == [b"\n".join([b"a"] * 10)]
    with pytest.raises(sse.EventTooLarge, match="lines"):
        decoder.feed(b":\n" * (sse.MAX_LINES + 2) + b"\n")


@pytest.mark.parametrize("converted", [chat_request(), responses_request()])
def test_tokens_are_counted_now_or_later(converted: Any) -> None:
    later, now = counted(converted.request, now=False), counted(converted.request, now=True)
    assert later() == now() == prompt_tokens(converted.request)
