import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codexd.errors import ApiError
from codexd.protocol import parameters
from codexd.protocol.adjustments import Adjustment
from codexd.protocol.anthropic import wire as anthropic
from codexd.protocol.anthropic.convert import as_chat, thinking_of
from codexd.protocol.chat import wire as chat
from codexd.protocol.chat.convert import from_chat
from codexd.protocol.codex.models import Model, Resolved
from codexd.protocol.convert import NEUTRAL, Converted, Settings
from codexd.protocol.members import split
from codexd.protocol.responses import wire as responses
from support.adjusted import rules_applied, told
from support.converted import CATALOGUE, chat_request, refusal, responses_request, up


def test_the_request_asks_for_what_the_backend_insists_on() -> None:
    for body in (up(chat_request()), up(responses_request())):
        assert (body["stream"], body["store"], body["include"]) == (True, False, ["reasoning.encrypted_content"])
        assert body["reasoning"] == {"effort": "medium", "summary": "auto"}
        assert body["text"] == {"verbosity": "low"}


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6-sol"])
def test_the_cache_key_stays_for_all_turns_of_a_conversation_and_no_longer(model: str) -> None:
    first = [{"role": "user", "content": "hi"}]
    later = [*first, {"role": "assistant", "content": "hello"}, {"role": "user", "content": "more"}]
    key = chat_request(model, messages=first).request.prompt_cache_key
    assert chat_request(model, messages=later).request.prompt_cache_key == key
    assert chat_request(model, messages=[{"role": "user", "content": "other"}]).request.prompt_cache_key != key
    assert chat_request(model, Settings(prompt="Q")).request.prompt_cache_key != key
    own = "0199F0AA-1111-7222-8333-444455556666"
    for request in (chat_request, responses_request):
        assert request(model, prompt_cache_key=own).request.prompt_cache_key == own
        derived = request(model, prompt_cache_key="mine")
        assert str(uuid.UUID(derived.request.prompt_cache_key)) == derived.request.prompt_cache_key
        assert Adjustment("prompt_cache_key", "derived") in derived.adjusted
        assert request(model, prompt_cache_key="mine").request == derived.request
        assert request(model, prompt_cache_key="x" * 65).request.prompt_cache_key != derived.request.prompt_cache_key
    only_system = [{"role": "system", "content": "a"}]
    assert chat_request(model, messages=only_system).request.prompt_cache_key


def test_the_effort_comes_from_the_name_then_the_request_then_the_configuration_then_the_model() -> None:
    def effort(model: str, configured: str | None = None, **fields: Any) -> Any:
        return up(chat_request(model, Settings(prompt="P", effort=configured), **fields))["reasoning"].get("effort")

    assert effort("gpt-5.1") == "none"
    assert effort("gpt-5.1", "medium") == "medium"
    assert effort("gpt-5.1-codex-mini", "none") == "medium"
    assert effort("gpt-5.1", "medium", reasoning_effort="low") == "low"
    assert effort("gpt-5.1-high", "medium", reasoning_effort="low") == "high"
    assert effort("gpt-6-sol-ultra") == "max"


def test_an_effort_in_the_name_that_wins_over_the_request_is_reported() -> None:
    assert told(chat_request("gpt-5.1-high", reasoning_effort="low").adjusted) == ["reasoning_effort=high"]
    assert told(chat_request("gpt-5.1-high", reasoning_effort="high").adjusted) == []
    both = responses_request("gpt-5.1-high", reasoning={"effort": "low"})
    assert told(both.adjusted) == ["reasoning.effort=high"]


def test_a_model_without_efforts_is_asked_for_none() -> None:
    model = Model(slug="m", efforts=(), default_effort=None)
    asked = msgspec.convert({"model": "m", "messages": [{"role": "user", "content": "hi"}]}, chat.ChatRequest)
    assert up(from_chat(asked, Resolved(model, None), Settings()))["reasoning"] == {"summary": "auto"}


def effort_sent(converted: Converted) -> tuple[Any, list[str]]:
    told = [str(each) for each in converted.adjusted if each.param in EFFORT_FIELDS]
    return up(converted)["reasoning"].get("effort"), told


EFFORT_FIELDS = (
    "reasoning_effort",
    "reasoning.effort",
    "reasoning",
    "enable_thinking",
    "thinking",
    "output_config.effort",
)


@pytest.mark.parametrize(
    ("model", "asked", "sent"),
    [
        ("gpt-5.1-codex", "none", "low"),
        ("gpt-5.1-codex", "minimal", "low"),
        ("gpt-5.1-codex", "max", "high"),
        ("gpt-5.1-codex", " HIGH", "high"),
        ("gpt-5.1-codex", "extreme", "medium"),
        ("gpt-5.1-codex-none", None, "low"),
        ("gpt-5.1-codex-none", "high", "low"),
        ("gpt-5.1-codex", "high", "high"),
        ("gpt-6-sol", "none", "low"),
    ],
)
def test_an_effort_that_the_model_lacks_becomes_the_nearest(model: str, asked: str | None, sent: str) -> None:
    fields = {} if asked is None else {"reasoning_effort": asked}
    told = [] if asked == sent else [f"reasoning_effort={sent}"]
    assert effort_sent(chat_request(model, **fields)) == (sent, told)
    fields = {} if asked is None else {"reasoning": {"effort": asked}}
    assert effort_sent(responses_request(model, **fields)) == (sent, [each.replace("_", ".") for each in told])


@pytest.mark.parametrize(
    ("fields", "sent", "told"),
    [
        ({"reasoning": {"effort": "high"}}, "high", []),
        ({"reasoning": {"effort": "high"}, "reasoning_effort": "low"}, "low", []),
        ({"reasoning": {"max_tokens": 1000}}, "low", []),
        ({"reasoning": {"max_tokens": 100_000}}, "xhigh", []),
        ({"reasoning": {"enabled": False}}, "none", []),
        ({"reasoning": {"enabled": True}}, "medium", []),
        ({"reasoning": {}}, "none", []),
        ({"enable_thinking": False}, "none", []),
        ({"enable_thinking": True}, "medium", []),
    ],
)
def test_other_ways_to_ask_for_thinking(fields: Any, sent: str, told: list[str]) -> None:
    assert effort_sent(chat_request("gpt-5.2", **fields)) == (sent, told)


@pytest.mark.parametrize(
    ("fields", "model", "sent", "told"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "gpt-5.2", "low", []),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, "gpt-5.2", "medium", []),
        ({"thinking": {"type": "enabled", "budget_tokens": 16000}}, "gpt-5.2", "high", []),
        ({"thinking": {"type": "enabled", "budget_tokens": 31999}}, "gpt-5.1", "high", ["thinking=high"]),
        ({"thinking": {"type": "adaptive"}}, "gpt-5.2", "medium", []),
        ({"thinking": {"type": "disabled"}}, "gpt-5.2", "none", []),
        ({"thinking": {"type": "disabled"}}, "gpt-6-sol", "low", ["thinking=low"]),
        ({"thinking": {"type": "disabled", "budget_tokens": 9}}, "gpt-5.2", "none", []),
        ({"output_config": {"effort": "max"}}, "gpt-5.2", "xhigh", ["output_config.effort=xhigh"]),
        ({"output_config": {"effort": "none"}, "thinking": {"type": "adaptive"}}, "gpt-5.2", "medium",
         ["output_config.effort=medium"]),
        ({}, "gpt-5.2", "none", []),
    ],
)  # fmt: skip
def test_thinking_of_messages(fields: Any, model: str, sent: str, told: list[str]) -> None:
    body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}
    asked = anthropic.REQUEST.decode(split(msgspec.json.encode(body)))
    converted = from_chat(as_chat(asked).request, CATALOGUE.resolve(model), Settings(), thinking=thinking_of(asked))
    assert effort_sent(converted) == (sent, told)


@pytest.mark.parametrize(
    ("asked", "sent", "adjusted"),
    [
        ("priority", "priority", []),
        ("fast", "priority", ["service_tier=priority"]),
        ("flex", None, ["service_tier=dropped"]),
        ("auto", None, []),
        (None, None, []),
    ],
)
def test_the_backend_knows_one_service_tier(asked: str | None, sent: str | None, adjusted: list[str]) -> None:
    converted = chat_request(service_tier=asked)
    assert (up(converted).get("service_tier"), told(converted.adjusted)) == (sent, adjusted)


def test_verbosity_comes_from_the_request_then_the_configuration_then_the_model() -> None:
    assert up(chat_request(verbosity="high"))["text"]["verbosity"] == "high"
    assert up(chat_request(settings=Settings(verbosity="medium")))["text"]["verbosity"] == "medium"
    assert up(responses_request(text={"verbosity": "high"}))["text"]["verbosity"] == "high"
    assert up(responses_request(text={"format": None}))["text"] == {"verbosity": "low"}


def test_empty_messages_are_refused() -> None:
    assert refusal(messages=[]).error.param == "messages"


@pytest.mark.parametrize("input", [[], [{"type": "reasoning", "id": "a"}]])
def test_an_input_with_nothing_to_send_is_refused(input: list[Any]) -> None:  # noqa: A002
    with pytest.raises(ApiError) as caught:
        responses_request(input=input)
    assert caught.value.error.param == "input"


def test_messages_without_content_are_left_out() -> None:
    messages = [
        {"role": "system"},
        {"role": "user", "content": []},
        {"role": "assistant"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
        {"role": "assistant", "refusal": "c"},
        {"role": "user", "content": [{"type": "refusal", "refusal": "d"}]},
        {"role": "assistant", "tool_calls": [{"id": "x", "function": {"name": "f"}}]},
        {"role": "tool", "tool_call_id": "x"},
    ]
    body = up(chat_request(messages=messages))
    texts = [item["content"][0]["text"] for item in body["input"] if item["type"] == "message"]
    assert texts == ["ab", "c", "d"]
    assert body["input"][-1] == {"type": "function_call_output", "call_id": "x", "output": ""}


def test_files_and_audio_that_cannot_be_sent_are_refused_with_their_place() -> None:
    by_id = [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]
    assert refusal(messages=by_id).error.param == "messages[0].content[0]"
    audio = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
    ]
    body = msgspec.json.encode({"model": "gpt-5.5", "messages": audio})
    with pytest.raises(ApiError) as caught:
        from_chat(chat.REQUEST.decode(split(body)), CATALOGUE.resolve("gpt-5.5"), Settings())
    assert caught.value.error.param == "messages[1].content[0]"
    unnamed = [{"role": "user", "content": [{"type": "file", "file": {"file_data": "data:,"}}]}]
    assert up(chat_request(messages=unnamed))["input"][0]["content"][0]["filename"] == "file"


def test_a_tool_without_parameters_takes_none() -> None:
    for function in ({"name": "f"}, {"name": "f", "parameters": None, "strict": True, "description": "d"}):
        body = msgspec.json.encode(
            {"model": "gpt-5.5", "messages": [{"role": "user", "content": "hi"}], "tools": [{"function": function}]}
        )
        tool = up(from_chat(chat.REQUEST.decode(split(body)), CATALOGUE.resolve("gpt-5.5"), Settings()))["tools"][0]
        assert tool["parameters"]["properties"] == {}
        assert tool["strict"] is bool(function.get("strict"))


def test_with_the_mode_off_the_clients_own_text_is_the_instructions() -> None:
    off = Settings()
    system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "hi"}
    assert up(chat_request(settings=off))["instructions"] == NEUTRAL
    both = up(chat_request(settings=off, messages=[system, user, system]))
    assert both["instructions"] == "S"
    assert [item["role"] for item in both["input"]] == ["user", "developer"]
    alone = up(chat_request(settings=off, messages=[system]))
    assert (alone["instructions"], alone["input"][0]["role"]) == (NEUTRAL, "developer")
    assert told(chat_request(settings=off, messages=[system, user]).adjusted) == ["system=instructions"]
    assert up(responses_request(settings=off))["instructions"] == NEUTRAL
    assert up(responses_request(settings=off, instructions="mine"))["instructions"] == "mine"
    assert up(responses_request(instructions="mine"))["instructions"] == "P\n\nmine"


def test_the_official_clients_tools_keep_their_place_before_the_instructions() -> None:
    tools = {
        "type": "additional_tools",
        "role": "developer",
        "tools": [{"type": "namespace", "name": "n", "tools": []}],
    }
    call = {"type": "function_call", "namespace": "n", "name": "f", "call_id": "c", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": ""}
    body = up(responses_request("gpt-6-sol", input=[tools, {"role": "user", "content": "hi"}, call, result]))
    kinds = ["additional_tools", "message", "message", "function_call", "function_call_output"]
    assert [item["type"] for item in body["input"]] == kinds
    assert body["input"][0] == tools
    assert body["input"][3]["namespace"] == "n"


def test_lite_leaves_alone_what_it_does_not_know() -> None:
    items = [
        {"type": "custom_tool_call", "name": "x", "call_id": "c", "input": ""},
        {"type": "function_call_output", "call_id": "c", "output": '{"detail": 1}'},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "other", "detail": 2}]},
        {"type": "function_call_output", "call_id": "c", "output": {"detail": 3}},
    ]
    body = up(responses_request("gpt-6-sol", input=items))
    assert body["input"][1]["namespace"] == "functions"
    assert body["input"][2] == items[1]
    assert [item["output"] for item in body["input"][3:]] == ['[{"type":"other","detail":2}]', '{"detail":3}']


def test_lite_drops_the_detail_of_images_and_of_nothing_else() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    other = {"type": "other", "detail": 1}
    call = {"type": "custom_tool_call", "name": "x", "call_id": "c", "input": ""}
    for data in ([image, other], [image | {"detail": "low"}, other]):
        result = {"type": "custom_tool_call_output", "call_id": "c", "output": data[:1]}
        converted = responses_request("gpt-6-sol", input=[{"role": "user", "content": data}, call, result])
        items = up(converted)["input"]
        assert (items[1]["content"], items[3]["output"]) == ([image, other], [image])
        assert told(converted.adjusted) == (["image_detail=dropped"] if "detail" in data[0] else [])
    unknown = {"type": "something_else", "output": {"input_image": {"detail": 1}}}
    assert up(responses_request("gpt-6-sol", input=[unknown]))["input"][-1] == unknown


def test_lite_wraps_hosted_tools_beside_the_namespace() -> None:
    found = {"type": "tool_search", "execution": "client"}
    body = up(responses_request("gpt-6-sol", tools=[{"type": "web_search"}, found]))
    assert body["input"][0]["tools"][0] == found
    assert body["input"][0]["tools"][1]["name"] == "hosted"


@pytest.mark.parametrize("choice", ["none", {"type": "function", "function": {"name": "f"}}])
def test_tool_choice_for_lite_is_auto_or_no_tools(choice: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    converted = chat_request("gpt-6-sol", tools=tools, tool_choice=choice)
    assert told(converted.adjusted) == (["tools=dropped"] if choice == "none" else ["tool_choice=instruction"])
    assert (up(converted)["input"][0]["type"] == "additional_tools") is (choice != "none")
    dropped = responses_request("gpt-6-sol", tools=[{"type": "function", "name": "f"}], tool_choice="none")
    assert told(dropped.adjusted) == ["tools=dropped"]


def test_what_the_official_client_adds_passes() -> None:
    body = up(
        responses_request(client_metadata={"a": "b"}, tool_choice=None, reasoning={"generate_summary": "concise"})
    )
    assert body["client_metadata"] == {"a": "b"}
    assert body["tool_choice"] == "auto"
    assert body["reasoning"]["summary"] == "concise"
    assert "client_metadata" not in up(responses_request(client_metadata=None))


# --- the parameter tables


def test_parameters_are_dropped_refused_or_left_alone_by_the_table() -> None:
    body = b'{"model":"m","temperature":1,"user":null,"n":1,"stop":[],"x y":1,"foo":2,"metadata":{}}'
    assert rules_applied(split(body), parameters.CHAT) == ["temperature=dropped", "unknown=dropped", "foo=dropped"]
    with pytest.raises(ApiError) as caught:
        rules_applied(split(b'{"logprobs":true}'), parameters.CHAT)
    assert (caught.value.status, caught.value.error.param) == (400, "logprobs")
    assert rules_applied(split(b'{"n":2,"stop":"x"}'), parameters.CHAT) == ["n=emulated", "stop=emulated"]
    with pytest.raises(ApiError):
        rules_applied(split(b'{"background":true}'), parameters.RESPONSES)


def test_every_field_that_is_decoded_has_its_rule() -> None:
    assert set(chat.ChatRequest.__struct_fields__) <= {*parameters.CHAT, "adjusted"}
    assert set(responses.ResponsesRequest.__struct_fields__) <= set(parameters.RESPONSES)


# --- the law: what can be decoded is converted, or refused with a parameter

CONTENT = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.lists(
        st.one_of(
            st.builds(lambda text: {"type": "text", "text": text}, st.text(max_size=5)),
            st.just({"type": "image_url", "image_url": "data:,"}),
            st.just({"type": "file", "file": {"file_id": "f"}}),
            st.just({"type": "input_audio", "input_audio": {}}),
        ),
        max_size=3,
    ),
)
MESSAGES = st.lists(
    st.one_of(
        st.builds(lambda role, content: {"role": role, "content": content},
                  st.sampled_from(["system", "developer", "user", "assistant"]), CONTENT),
        st.builds(lambda content: {"role": "tool", "tool_call_id": "c", "content": content}, CONTENT),
        st.just({"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}),
    ),
    max_size=5,
)  # fmt: skip


@given(
    MESSAGES,
    st.sampled_from(["gpt-5.5", "gpt-6-sol", "gpt-5.1-high"]),
    st.sampled_from([None, "none", "auto", "required"]),
    st.sampled_from([None, "low", "none", "what"]),
    st.booleans(),
)
def test_every_decodable_request_converts_or_is_refused_naming_a_parameter(
    messages: list[Any], model: str, choice: str | None, effort: str | None, mode: bool
) -> None:
    asked = {"model": model, "messages": messages, "tool_choice": choice, "reasoning_effort": effort,
             "tools": [{"function": {"name": "f"}}]}  # fmt: skip
    try:
        decoded = chat.REQUEST.decode(split(msgspec.json.encode(asked)))
        converted = from_chat(decoded, CATALOGUE.resolve(model), Settings(prompt="P" if mode else None))
    except ApiError as error:
        assert error.status == 400
        assert error.error.param
    else:
        body = up(converted)
        assert ("instructions" in body) is not converted.lite
        assert all(item.get("role") != "system" for item in body["input"])


def test_a_value_that_cannot_be_read_is_not_the_default() -> None:
    assert rules_applied(split(b'{"seed": 1e400}'), parameters.CHAT) == ["seed=dropped"]
    assert rules_applied({"seed": msgspec.Raw(b"[")}, parameters.CHAT) == ["seed=dropped"]


def test_values_are_compared_and_not_their_spelling() -> None:
    body = b'{"modalities": [ "text" ], "n": 1.0, "stop": [ ], "foo": "' + b"x" * 100 + b'"}'
    assert rules_applied(split(body), parameters.CHAT) == ["foo=dropped"]


def test_messages_with_nothing_in_them_are_refused() -> None:
    assert refusal(messages=[{"role": "user", "content": []}, {"role": "assistant"}]).error.param == "messages"


def test_tools_beside_additional_tools_are_not_lost() -> None:
    tools = {"type": "additional_tools", "role": "developer", "tools": []}
    body = up(
        responses_request(
            "gpt-6-sol", input=[tools, {"role": "user", "content": "hi"}], tools=[{"type": "function", "name": "f"}]
        )
    )
    assert [item["type"] for item in body["input"]] == ["additional_tools", "additional_tools", "message", "message"]
    assert body["input"][1]["tools"][0]["name"] == "functions"


def test_with_the_mode_off_the_first_developer_texts_of_responses_are_the_instructions() -> None:
    user = {"role": "user", "content": "hi"}
    system = {"role": "system", "content": [{"type": "input_text", "text": "S"}]}
    body = up(responses_request(settings=Settings(), input=[system, {"role": "developer", "content": "D"}, user]))
    assert (body["instructions"], [item["role"] for item in body["input"]]) == ("S\n\nD", ["user"])
    alone = up(responses_request(settings=Settings(), input=[system]))
    assert (alone["instructions"], len(alone["input"])) == (NEUTRAL, 1)
    odd = {"role": "developer", "content": [{"type": "input_image", "image_url": "data:,"}]}
    assert up(responses_request(settings=Settings(), input=[odd, user]))["instructions"] == NEUTRAL
