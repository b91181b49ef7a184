"""Stop sequences and limits of tokens, whatever the pieces in which the text comes."""

import json
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codexd.errors import ApiError
from codexd.protocol.chat.fold import join, total
from codexd.protocol.chat.stream import ChatStream
from codexd.protocol.chat.wire import CompletionTokensDetails, CompletionUsage, PromptTokensDetails
from codexd.protocol.codex.events import decode_event
from codexd.protocol.stops import Cutoff, StopLimits, limits_of
from codexd.protocol.tokens import TokenCounter, prompt_tokens
from support.converted import chat_request, responses_request


def cut(pieces: list[str], *stop: str, max_tokens: int | None = None) -> tuple[str, str | None]:
    it = Cutoff(StopLimits(stop, max_tokens))
    out = ""
    for piece in pieces:
        out += it.text(piece)
        if it.reason is not None:
            return out, it.reason
    return out + it.flush(), it.reason


@pytest.mark.parametrize(
    ("pieces", "stop", "out", "reason"),
    [
        (["abcSTOPdef"], ["STOP"], "abc", "stop"),
        (["abcS", "T", "OPdef"], ["STOP"], "abc", "stop"),
        (["abcST", "and more"], ["STOP"], "abcSTand more", None),
        (["SSTOP"], ["STOP"], "S", "stop"),
        (["SST", "OP"], ["STOP"], "S", "stop"),
        (["aSTO"], ["STOP"], "aSTO", None),
        (["xxENDyySTOP"], ["STOP", "END"], "xx", "stop"),
        (["STOP"], ["STOP"], "", "stop"),
        (["aaab"], ["aab"], "a", "stop"),
        (["a", "a", "a", "b"], ["aab"], "a", "stop"),
        ([], ["x"], "", None),
    ],
)
def test_a_stop_sequence_is_found_across_pieces(pieces: list[str], stop: list[str], out: str, reason: str) -> None:
    assert cut(pieces, *stop) == (out, reason)


@given(st.text(alphabet="ab\n", max_size=40), st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=4), st.randoms())  # fmt: skip
def test_the_pieces_make_no_difference(text: str, stops: list[str], random: object) -> None:
    whole = cut([text], *stops)
    cuts = sorted(random.sample(range(len(text) + 1), min(5, len(text) + 1)))  # type: ignore[attr-defined]
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert cut(pieces, *stops) == whole
    ends = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    assert whole == ((text[: min(ends)[1]], "stop") if ends else (text, None))


TEXT = st.text(alphabet="aB é,.'1 \n漢한😀", max_size=12)


@example(["1B.", "1漢漢", "B漢"], 5)
@given(st.lists(TEXT, max_size=8), st.integers(1, 12))
def test_the_limit_is_never_passed(pieces: list[str], tokens: int) -> None:
    out, reason = cut(pieces, max_tokens=tokens)
    text = "".join(pieces)
    assert text.startswith(out)
    assert (reason is None) == (out == text)
    assert counted(out) <= tokens
    if reason is None:
        assert counted(text) <= tokens
    elif len(pieces) == 1:
        assert counted(text) > tokens


def counted(text: str) -> int:
    it = TokenCounter(None)
    assert it.take(text) == text
    return it.total()


@given(st.lists(TEXT, max_size=8))
def test_it_counts_the_same_in_pieces(pieces: list[str]) -> None:
    it = TokenCounter(None)
    for piece in pieces:
        it.take(piece)
        it.total()
    assert it.total() == counted("".join(pieces))


KINDS = json.loads((Path(__file__).parent / "tokens" / "o200k.json").read_text())
"""Texts of many kinds, with their number of tokens by o200k_base."""


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_fits_is_never_cut(kind: str) -> None:
    text, tokens = KINDS[kind]["text"], KINDS[kind]["tokens"]
    assert cut(list(text), max_tokens=tokens) == (text, None)
    assert cut([text], max_tokens=tokens) == (text, None)
    assert tokens / 3 < counted(text) <= tokens, "and one of three times as much is"
    assert cut([text * 3], max_tokens=tokens)[1] == "length"


def test_a_word_without_an_end_is_counted_too() -> None:
    it = TokenCounter(40)
    sent = sum(len(it.take("a" * 50)) for _ in range(40))
    assert 400 <= sent < 2000
    assert it.total() == 40
    assert cut(["漢" * 100], max_tokens=10) == ("漢" * 28, "length")


def test_the_limit_counts_before_a_stop_sequence() -> None:
    assert cut(["one two three STOP"], "STOP", max_tokens=2) == ("one two", "length")
    assert cut(["one ", "ST"], "STOP", max_tokens=2) == ("one ST", None)


def test_what_makes_no_sense_is_refused_by_name() -> None:
    for stop, tokens, param in ((list("abcde"), None, "stop"), (None, 0, "max_tokens"), (None, -1, "max_tokens")):
        with pytest.raises(ApiError) as caught:
            limits_of(stop, ("max_tokens", tokens))
        assert caught.value.error.param == param
    assert limits_of(["", "a"], ("a", None), ("b", 2)) == StopLimits(("a",), 2)
    assert limits_of("x", ("a", 1), ("b", 2)) == StopLimits(("x",), 1)
    assert limits_of(None) == StopLimits()


def test_a_request_is_estimated_by_its_text() -> None:
    small = prompt_tokens(chat_request(messages=[{"role": "user", "content": "x" * 400}]).request)
    assert 100 <= small <= 102
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 4000}"}}
    assert prompt_tokens(chat_request(messages=[{"role": "user", "content": [image]}]).request) < 5
    call = {"id": "c", "function": {"name": "f", "arguments": "x" * 400}}
    turn = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "y" * 400}]
    tools = [{"type": "function", "name": "f", "description": "z" * 400}]
    assert 300 < prompt_tokens(chat_request(messages=turn, tools=tools).request) < 360
    raw = [{"role": "user", "content": "x" * 400}, {"role": "user", "content": [{"type": "input_image", "image_url": f"data:image/png;base64,{'A' * 4000}"}]}]  # fmt: skip
    assert 100 <= prompt_tokens(responses_request("gpt-6-sol", input=raw).request) < 150
    result = [{"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}, {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": f"data:image/png;base64,{'A' * 4000}"}]}]  # fmt: skip
    assert prompt_tokens(responses_request(input=result).request) < 40
    picture = [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}, {"role": "tool", "tool_call_id": "c", "content": [image]}]  # fmt: skip
    assert prompt_tokens(chat_request(messages=picture).request) < 60


def usage(completion: int, reasoning: int) -> CompletionUsage:
    return CompletionUsage(
        prompt_tokens=10,
        completion_tokens=completion,
        total_tokens=10 + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=4),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning),
    )


def test_the_prompt_of_several_answers_counts_once() -> None:
    whole = total([usage(3, 1), usage(5, 2)], 2)
    assert whole is not None
    assert (whole.prompt_tokens, whole.completion_tokens, whole.total_tokens) == (10, 8, 18)
    assert whole.completion_tokens_details.reasoning_tokens == 3
    assert whole.prompt_tokens_details.cached_tokens == 4
    assert total([], 1) is None
    apart = total([usage(3, 1), usage(5, 2)], 1)
    assert apart is not None
    assert (apart.prompt_tokens, apart.total_tokens) == (20, 28)
    joined = join([b'{"id":"a","choices":[{"index":0}]}', b'{"id":"a","choices":[{"index":1}]}'], 2)
    assert msgspec.json.decode(joined) == {"id": "a", "choices": [{"index": 0}, {"index": 1}]}
    documents = [msgspec.json.encode({"choices": [n], "usage": usage(n, 0)}) for n in (1, 2)]
    assert msgspec.json.decode(join(documents, 2))["usage"]["completion_tokens"] == 3


def events(*steps: dict[str, object]) -> tuple[str, object]:
    """The text that a stream with a limit of one token gives, and why it ends."""
    stream = ChatStream(id="i", model="m", created=1, include_usage=False, cut=Cutoff(StopLimits(("ZZ",), 1)))
    chunks = [chunk for step in steps for chunk in stream.push(decode_event(msgspec.json.encode(step)))]
    assert stream.done
    assert stream.cut_short
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.finish_reason for choice in choices[:-1]] == [None] * (len(choices) - 1)
    return "".join(choice.delta.content or "" for choice in choices), choices[-1].finish_reason


TEXT = {"type": "response.output_text.delta", "output_index": 0, "delta": "abcdZ"}
CALL = {"type": "response.output_item.added", "output_index": 1, "item": {"type": "function_call", "name": "f", "call_id": "c"}}  # fmt: skip
REFUSED = {"type": "response.output_item.done", "output_index": 0, "item": {"type": "message", "content": [{"type": "output_text", "text": "abcdZ"}, {"type": "refusal", "refusal": "no"}]}}  # fmt: skip
END = {"type": "response.completed", "response": {"output": []}}


@pytest.mark.parametrize("last", [CALL, REFUSED, END])
def test_what_was_held_back_counts_when_it_goes_out(last: dict[str, object]) -> None:
    assert events(TEXT, last, END) == ("abcd", "length")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (" " * 32 + "x = 1\n", 6), (" " * 128, 1), (" " * 40 + "|", 2), ("-" * 64, 1), ("=" * 64, 1),
        (("-" * 80 + "\n") * 10, 20), ("# " + "-" * 77 + "\n", 3), ("/*" + "*" * 76 + "*/\n", 3), ("_" * 60, 2),
    ],
)  # fmt: skip
def test_runs_of_one_sign_are_few_tokens(text: str, tokens: int) -> None:
    """The numbers are those of o200k_base."""
    assert counted(text) <= tokens
    assert cut(list(text), max_tokens=tokens) == (text, None)


@pytest.mark.parametrize("text", ["x" * 3_000_000, "ab " * 1_000_000, "é" * 1_000_000])
def test_a_long_text_is_counted_in_little_memory(text: str) -> None:
    counters = TokenCounter(10**9), TokenCounter(400_000)
    tracemalloc.start()
    try:
        for counter in counters:
            for at in range(0, len(text), 1_000_000):
                counter.take(text[at : at + 1_000_000])
            counter.total()
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
