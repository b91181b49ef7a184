"""Which requests continue an answer: forged ones never, harmless changes always (properties)."""

import copy
import unicodedata
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from codexd.protocol.codex import continuation
from codexd.protocol.codex.request import (
    AdditionalTools,
    FunctionCall,
    FunctionCallOutput,
    InputItem,
    InputText,
    Message,
    OutputText,
    Reasoning,
    Text,
    UpstreamRequest,
)  # fmt: skip
from codexd.protocol.raw import RawObject

Json = dict[str, Any]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WORDS = st.text("abcdef é", min_size=1, max_size=12).filter(str.strip)
NAMES = st.text("abcdef_", min_size=1, max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e6, 1e6, allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=4)


def encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def raw(item: Json) -> RawObject:
    return msgspec.json.decode(msgspec.json.encode(item), type=RawObject)


def message(text: str, phase: str | None = None, **more: Any) -> Json:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"type": "message", "role": "assistant", "status": "completed", "content": [part], **more}
    return item if phase is None else item | {"phase": phase}


def user(text: str, **more: Any) -> Json:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}], **more}


@st.composite
def outputs(draw: st.DrawFn) -> list[Json]:
    """An answer as the backend sends it: reasoning, commentary, calls or a text, in a usual order."""
    items: list[Json] = [
        {"type": "reasoning", "id": f"rs_{number}", "summary": [], "encrypted_content": f"gAAAA{number}"}
        for number in range(draw(st.integers(0, 3)))
    ]
    if draw(st.booleans()):
        items.append(message(draw(WORDS), "commentary", id="msg_c"))
    if draw(st.booleans()):
        items.append({"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "q"}})
    for number in range(draw(st.integers(0, 3))):
        call = {"id": f"fc_{number}", "call_id": f"call_{number}", "name": draw(NAMES), "status": "completed"}
        if draw(st.booleans()):
            items.append({"type": "function_call", **call, "arguments": encoded(draw(ARGUMENTS))})
        else:
            items.append({"type": "custom_tool_call", **call, "input": draw(TEXT)})
    if not items or draw(st.booleans()):
        items.append(message(draw(WORDS), "final_answer", id="msg_f"))
    return items


HISTORY = [user("first", id="u1"), message("old answer", id="msg_0"), user("second")]


def tail_of(answer: list[Json]) -> list[Json]:
    outputs = [
        {"type": each["type"] + "_output", "call_id": each["call_id"], "output": "done"}
        for each in answer
        if "call_id" in each
    ]
    return outputs or [user("third")]


def request(items: list[Json] | list[InputItem], **fields: Any) -> UpstreamRequest:
    inputs = [raw(item) if isinstance(item, dict) else item for item in items]
    given = {"model": "m", "reasoning": Reasoning(), "prompt_cache_key": "k", "text": Text(verbosity="low")} | fields
    return UpstreamRequest(input=inputs, **given)


def continues(
    asked: UpstreamRequest,
    answer: list[Json],
    again: UpstreamRequest,
    *,
    lossless: bool = True,
    callers: tuple[str, str] = ("", ""),
) -> bool:
    """Whether ``again`` continues what was answered to ``asked``, as the pool decides it."""
    head = continuation.chain_of(asked, callers[0]).digest
    chain = continuation.chain_of(again, callers[1])
    return chain.before == head and continuation.equals(
        continuation.answer_of([raw(item) for item in answer]), again.input[chain.start : chain.tail], lossless=lossless
    )


# --- the plain case


@given(outputs(), st.booleans())
def test_what_a_client_repeats_is_continued(answer: list[Json], lossless: bool) -> None:
    tail = tail_of(answer)
    again = request([*HISTORY, *answer, *tail])
    assert continues(request(HISTORY), answer, again, lossless=lossless)
    chain = continuation.chain_of(again, "")
    assert (chain.start, chain.tail) == (len(HISTORY), len(HISTORY) + len(answer))
    assert [msgspec.json.decode(item) for item in chain.items[chain.tail :]] == tail
    assert chain.size == sum(len(bytes(item)) for item in chain.items)
    assert not any("id" in msgspec.json.decode(item) for item in chain.items)


@given(outputs())
def test_a_conversation_is_continued_again_and_again(answer: list[Json]) -> None:
    first = request([*HISTORY, *answer, *tail_of(answer)])
    second = request([*HISTORY, *answer, *tail_of(answer), message("done"), user("more")])
    assert continues(first, [message("done")], second)


# --- what is not a continuation


def _replaced(items: list[Json], at: int, new: list[Json]) -> list[Json]:
    return [*items[:at], *new, *items[at + 1 :]]


@given(outputs(), st.integers(0, 2), st.sampled_from(["changed", "dropped", "added", "doubled"]))
def test_another_history_is_not_continued(answer: list[Json], at: int, how: str) -> None:
    item = HISTORY[at]
    ways: dict[str, list[Json]] = {
        "changed": [item | {"content": "other"}],
        "dropped": [],
        "added": [item, user("more")],
        "doubled": [item, item],
    }
    forged = _replaced(HISTORY, at, ways[how])
    assert not continues(request(HISTORY), answer, request([*forged, *answer, *tail_of(answer)]))


@given(outputs())
def test_a_history_in_another_order_is_not_continued(answer: list[Json]) -> None:
    forged = [HISTORY[2], HISTORY[1], HISTORY[0]]
    assert not continues(request(HISTORY), answer, request([*forged, *answer, *tail_of(answer)]))


@given(outputs(), st.booleans())
def test_without_the_answer_or_without_anything_after_it_nothing_is_continued(
    answer: list[Json], lossless: bool
) -> None:
    asked = request(HISTORY)
    for again in ([*HISTORY, user("third")], [*HISTORY, *answer], HISTORY, answer, [*answer, user("third")]):
        assert not continues(asked, answer, request(again), lossless=lossless)
    assert not continues(asked, answer, request([*HISTORY, *answer, user("x"), message("y")]), lossless=lossless)


@given(st.lists(WORDS, min_size=2, max_size=2, unique=True))
def test_an_output_of_the_history_must_be_there(texts: list[str]) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": texts[0]}
    history, answer = [user("a"), call, output], [message("done")]
    assert continues(request(history), answer, request([*history, *answer, user("b")]))
    for forged in ([user("a"), call], [user("a"), call, output | {"output": texts[1]}], [user("a"), output]):
        assert not continues(request(history), answer, request([*forged, *answer, user("b")]))


def _edits(item: Json) -> list[Json | None]:
    """What makes an item of an answer another one; None takes it away."""
    match item["type"]:
        case "message":
            text = item["content"][0]["text"]
            return [message(text + "!"), message("x" + text), message(text.strip()[:-1]), None]
        case "reasoning":
            return [item | {"encrypted_content": "gAAAAforeign"}]
        case "function_call":
            changed = msgspec.json.decode(item["arguments"]) | {"another": 1}
            fields = {"arguments": encoded(changed), "call_id": "call_x", "name": item["name"] + "x"}
            return [*(item | {key: value} for key, value in fields.items()), None]
        case "custom_tool_call":
            fields = {"input": item["input"] + " ", "call_id": "call_x", "name": item["name"] + "x"}
            return [*(item | {key: value} for key, value in fields.items()), None]
        case _:
            return [item | {"action": {"query": "other"}}, None]


@given(outputs())
def test_an_edited_answer_is_not_continued(answer: list[Json]) -> None:
    tail = tail_of(answer)
    for at, item in enumerate(answer):
        for edited in _edits(item):
            forged = _replaced(answer, at, [] if edited is None else [edited])
            assert not continues(request(HISTORY), answer, request([*HISTORY, *forged, *tail])), edited
    calls = [each for each in answer if "call_id" in each]
    if len(calls) > 1:
        others = [each for each in answer if "call_id" not in each]
        forged = [*others, *reversed(calls)]
        assert not continues(request(HISTORY), answer, request([*HISTORY, *forged, *tail]), lossless=False)
    more = {"type": "function_call", "call_id": "more", "name": "f", "arguments": "{}"}
    assert not continues(request(HISTORY), answer, request([*HISTORY, *answer, more, *tail]), lossless=False)


@given(st.text("ab ", max_size=4), st.text("ab ", max_size=4), st.text("ab ", max_size=4))
def test_another_text_is_not_continued(commentary: str, final: str, text: str) -> None:
    answer = [message(commentary, "commentary"), message(final, "final_answer")]
    again = request([*HISTORY, message(text), user("third")])
    same = text.strip() == (commentary + final).strip()
    assert continues(request(HISTORY), answer, again, lossless=True) == same
    assert continues(request(HISTORY), answer, again, lossless=False) == (same or text.strip() == final.strip())


def test_foreign_doubled_and_reordered_reasoning_is_not_continued() -> None:
    ours = [{"type": "reasoning", "summary": [], "encrypted_content": text} for text in ("a", "b", "c")]
    answer = [*ours, message("done")]

    def taken(*reasoning: Json) -> bool:
        again = request([*HISTORY, *reasoning, message("done"), user("third")])
        return continues(request(HISTORY), answer, again)

    a, b, c = ours
    assert all(taken(*each) for each in ([], [a], [b], [c], [a, b], [a, c], [b, c], [a, b, c]))
    foreign = a | {"encrypted_content": "x"}
    assert not any(taken(*each) for each in ([b, a], [c, a], [a, c, b], [a, a], [a, b, c, foreign], [foreign]))
    # Without its encrypted content it says nothing.
    assert taken({"type": "reasoning", "summary": [{"type": "summary_text", "text": "mine"}]})


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "other"},
        {"instructions": "x"},
        {"service_tier": "priority"},
        {"tools": []},
        {"tool_choice": "none"},
        {"parallel_tool_calls": False},
        {"reasoning": Reasoning(effort="high")},
        {"text": Text(verbosity="high")},
        {"text": Text(verbosity="low", format={"type": "json_object"})},
    ],
)
def test_other_fields_are_not_continued(fields: Json) -> None:
    again = [*HISTORY, message("done"), user("third")]
    assert not continues(request(HISTORY), [message("done")], request(again, **fields))


def test_what_is_not_part_of_the_question_may_differ() -> None:
    again = [*HISTORY, message("done"), user("third")]
    fields = {"prompt_cache_key": "other", "client_metadata": Raw(b'{"turn":1}')}
    assert continues(request(HISTORY), [message("done")], request(again, **fields))


def test_nobody_continues_anothers_answer() -> None:
    asked, again = request(HISTORY), request([*HISTORY, message("done"), user("third")])
    assert continues(asked, [message("done")], again, callers=("one", "one"))
    assert not continues(asked, [message("done")], again, callers=("one", "other"))


# --- what changes nothing


def _strip(item: Json, *names: str) -> Json:
    return {key: value for key, value in item.items() if key not in names}


def _each_part(item: Json, change: Callable[[Json], Json]) -> Json:
    return item | {"content": [change(part) for part in item["content"]]} if item["type"] == "message" else item


def _padded(item: Json) -> Json:
    return _each_part(item, lambda part: part | {"text": f" \n{part['text']}\n"})


def _reserialised(item: Json) -> Json:
    if item["type"] != "function_call":
        return item
    import json

    return item | {"arguments": json.dumps(json.loads(item["arguments"]), sort_keys=True, indent=1)}


HARMLESS: dict[str, Callable[[Json], Json | None]] = {
    "id": lambda item: _strip(item, "id"),
    "another id": lambda item: item | {"id": "mine"},
    "status": lambda item: _strip(item, "status"),
    "phase": lambda item: _strip(item, "phase"),
    "annotations": lambda item: _each_part(item, lambda part: _strip(part, "annotations", "logprobs")),
    "nulls": lambda item: item | {"phase": item.get("phase"), "namespace": None},
    "key order": lambda item: dict(reversed(item.items())),
    "the order in parts": lambda item: _each_part(item, lambda part: dict(reversed(part.items()))),
    "arguments written again": _reserialised,
    "reasoning": lambda item: None if item["type"] == "reasoning" else item,
}


@given(outputs(), st.sets(st.sampled_from(sorted(HARMLESS)), min_size=1))
def test_harmless_changes_of_the_answer_are_continued(answer: list[Json], which: set[str]) -> None:
    changed: list[Json | None] = list(copy.deepcopy(answer))
    for name in sorted(which):
        changed = [None if item is None else HARMLESS[name](item) for item in changed]
    given = [item for item in changed if item is not None]
    assume(given)
    assert continues(request(HISTORY), answer, request([*HISTORY, *given, *tail_of(answer)]))


@given(outputs())
def test_commentary_and_hosted_calls_may_be_missing_where_the_api_has_none(answer: list[Json]) -> None:
    given = [item for item in answer if item.get("phase") != "commentary" and item["type"] != "web_search_call"]
    assume(given)
    asked, again = request(HISTORY), request([*HISTORY, *given, *tail_of(answer)])
    assert continues(asked, answer, again, lossless=False)
    assert continues(asked, answer, again, lossless=True) == (given == answer)


@pytest.mark.parametrize(
    ("backends", "clients", "same"),
    [
        (["text"], " text\n", True),
        (["a", "b"], "ab", True),
        (["a ", "b"], "a b", True),
        (["a ", "b"], "ab", False),
        (["café"], unicodedata.normalize("NFD", "café"), False),
        (["a\u00a0"], "a", True),
        ([""], "", True),
    ],
)
def test_texts_are_joined_and_blanks_at_both_ends_do_not_count(backends: list[str], clients: str, same: bool) -> None:
    answer = [message(text) for text in backends]
    one = request([*HISTORY, Message(role="assistant", content=[OutputText(text=clients)]), user("third")])
    assert continues(request(HISTORY), answer, one) == same
    plain = {"type": "message", "role": "assistant", "content": clients}
    assert continues(request(HISTORY), answer, request([*HISTORY, plain, user("third")])) == same


def test_a_message_without_a_type_is_the_models_and_never_its_answer() -> None:
    """The conversion writes the type of every message."""
    asked = request(HISTORY)
    plain = {"role": "assistant", "content": "done"}
    assert not continues(asked, [message("done")], request([*HISTORY, plain, user("third")]))
    assert not continues(asked, [message("done")], request([*HISTORY, message("done"), plain, user("third")]))
    assert continuation.chain_of(request([*HISTORY, user("x"), plain]), "").before is None


def test_a_refusal_is_text_and_odd_content_is_its_json() -> None:
    refusal = message("x") | {"content": [{"type": "refusal", "refusal": "No."}]}
    assert continues(request(HISTORY), [refusal], request([*HISTORY, message("No."), user("third")]))
    for odd in ([1], [{"text": 1}], 7, [["x"]]):
        item = {"type": "message", "role": "assistant", "content": odd}
        assert continues(request(HISTORY), [item], request([*HISTORY, item, user("third")]))
        assert not continues(request(HISTORY), [item], request([*HISTORY, message("x"), user("third")]))
    for empty in (None, []):
        item = {"type": "message", "role": "assistant", "content": empty}
        assert continues(request(HISTORY), [item], request([*HISTORY, message(""), user("third")]))


def test_items_of_the_client_may_have_other_ids_key_orders_and_nulls() -> None:
    asked = request([user("a", id="u1"), {"type": "compaction", "encrypted_content": "x", "id": "cmp"}])
    again = request(
        [
            {"role": "user", "phase": None, **user("a"), "id": None},
            {"encrypted_content": "x", "type": "compaction"},
            message("done"),
            user("b"),
        ]
    )
    assert continues(asked, [message("done")], again)


def test_converted_items_are_the_clients_or_the_models_as_raw_ones_are() -> None:
    call = FunctionCall(call_id="c", name="f", arguments='{"a":1}')
    items: list[InputItem] = [AdditionalTools(tools=[]), Message(role="user", content=[InputText(text="a")])]
    again: list[InputItem] = [
        *items, Message(role="assistant", content=[OutputText(text="Look:")]), call,
        FunctionCallOutput(call_id="c", output="done"),
    ]  # fmt: skip
    answer = [message("Look:"), {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{ "a": 1 }'}]
    assert continues(request(items), answer, request(again))
    assert not continues(request(items[:1]), answer, request(again))


# --- arguments


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a":1}', '{ "a" : 1 }', True),
        ('{"a":1,"b":2}', '{"b":2,"a":1}', True),
        ('{"a":{"x":1,"y":2}}', '{"a":{"y":2,"x":1}}', True),
        ('{"a":1.0}', '{"a":1}', True),
        ('{"a":[1e1]}', '{"a":[10]}', True),
        ('{"a":"\\u00e9"}', '{"a":"é"}', True),
        ("", "{}", True),
        ("{}", " { } ", True),
        ('{"a":0.1}', '{"a":0.10}', True),
        ('{"a":true}', '{"a":1}', False),
        ('{"a":false}', '{"a":0}', False),
        ('{"a":false}', '{"a":null}', False),
        ('{"a":null}', "{}", False),
        ('{"a":"1"}', '{"a":1}', False),
        ('{"a":1.5}', '{"a":1}', False),
        ('{"a":[1,2]}', '{"a":[2,1]}', False),
        ('{"a":[]}', '{"a":{}}', False),
        ('{"a":"é"}', '{"a":"e\\u0301"}', False),
        ('{"a":"x"}', '{"a":"x "}', False),
        ('{"a":9007199254740993}', '{"a":9007199254740992}', False),
        ('{"a":9007199254740993}', '{"a":9007199254740993.0}', False),
        ('{"a":9007199254740992.0}', '{"a":9007199254740992}', False),
        ('{"a":9007199254740991.0}', '{"a":9007199254740991}', True),
        ('{"a":99999999999999999999}', '{"a":99999999999999999998}', False),
        ('{"a":12345678901234567890}', '{"a":12345678901234567890.0}', False),
        ('{"a":1e400}', '{"a":1e401}', False),
        ("no json", "no json", True),
        ("no json", "no  json", False),
        ("no json", "{}", False),
        ("[" * 5000, "[" * 5000, True),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + " ]" + "]" * 4999, False),
    ],
)
def test_arguments_are_compared_as_json_and_never_as_objects(one: str, other: str, same: bool) -> None:
    def call(arguments: str) -> Json:
        return {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}

    output = {"type": "function_call_output", "call_id": "c", "output": "done"}
    for backends, clients in ((one, other), (other, one)):
        again = request([*HISTORY, call(clients), output])
        assert continues(request(HISTORY), [call(backends)], again) == same


@given(ARGUMENTS, ARGUMENTS)
def test_different_arguments_are_different(one: Json, other: Json) -> None:
    def canonical(value: Any) -> Any:
        """The value with the type of everything, whole floats as integers."""
        match value:
            case dict():
                return {key: canonical(each) for key, each in value.items()}
            case list():
                return [canonical(each) for each in value]
            case float() if value.is_integer():
                return "int", int(value)
            case _:
                return type(value).__name__, value

    def answer(arguments: Json) -> continuation.Answer:
        call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": encoded(arguments)}
        return continuation.answer_of([raw(call)])

    found = answer(one).calls[0].canonical == answer(other).calls[0].canonical
    assert found == (canonical(one) == canonical(other))


def test_a_custom_tools_input_is_compared_as_bytes() -> None:
    def call(text: str) -> Json:
        return {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": text}

    output = {"type": "custom_tool_call_output", "call_id": "c", "output": "done"}
    again = request([*HISTORY, call('{"a": 1}'), output])
    assert continues(request(HISTORY), [call('{"a": 1}')], again)
    assert not continues(request(HISTORY), [call('{"a":1}')], again)
    function = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a": 1}'}
    assert not continues(request(HISTORY), [function], again)


def test_the_fields_of_a_request_are_all_compared() -> None:
    """A new field belongs to the question, until somebody decides otherwise."""
    compared = {
        "model",
        "instructions",
        "service_tier",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "reasoning",
        "text",
    }
    fixed = {"stream", "store", "include"}
    apart = {"input", "prompt_cache_key", "client_metadata"}
    assert set(UpstreamRequest.__struct_fields__) == compared | fixed | apart
    assert request(HISTORY).client_metadata is UNSET
