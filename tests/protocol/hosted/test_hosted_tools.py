"""Which hosted tools codexd runs, and what it asks the backend for."""

from typing import Any

import pytest

from codexd.errors import ApiError
from codexd.protocol.convert import Converted, Settings
from codexd.protocol.hosted import tools
from codexd.protocol.hosted.tools import Hosted, ImageOptions, SearchOptions
from support.converted import chat_request, responses_request, up

SEARCH = {"type": "web_search"}


def told(converted: Converted) -> list[str]:
    return [str(each) for each in converted.adjusted]


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6-sol"])
def test_the_mode_decides(model: str) -> None:
    lite = model != "gpt-5.5"
    always = responses_request(model, settings=Settings(web_search="always"))
    assert (always.hosted is not None) is lite and (lite or up(always)["tools"] == [SEARCH])
    off = responses_request(model, tools=[SEARCH], settings=Settings(web_search="off"))
    assert off.hosted is None and "web_search=dropped" in told(off) and "tools" not in up(off)
    for fields in ({"tool_choice": "none"}, {"input": [{"type": "compaction_trigger"}]},
                   {"input": [{"type": "additional_tools", "tools": []}, {"role": "user", "content": "x"}]}):  # fmt: skip
        assert responses_request(model, settings=Settings(web_search="always"), **fields).hosted is None


def test_a_tool_that_nobody_would_run_is_refused() -> None:
    for tool in ({"type": "mcp"}, {"type": "computer_use_preview"}, {"type": "new_thing"}):
        with pytest.raises(ApiError) as caught:
            responses_request("gpt-6-sol", tools=[SEARCH, tool])
        assert caught.value.error.param == "tools[1]"
        assert responses_request("gpt-5.5", tools=[tool]).hosted is None
    with pytest.raises(ApiError, match=r"^tools\[0\]\.search_context_size: unknown value \"huge\""):
        responses_request("gpt-6-sol", tools=[SEARCH | {"search_context_size": "huge"}])


def test_a_namespace_of_the_clients_keeps_its_name() -> None:
    own = {"type": "namespace", "name": "hosted", "tools": []}
    converted = responses_request("gpt-6-sol", tools=[own, SEARCH])
    assert converted.hosted is not None and converted.hosted.space == "hosted_"
    assert [tool["name"] for tool in up(converted)["input"][0]["tools"]] == ["hosted", "hosted_"]


def test_a_limit_of_none_leaves_the_tools_out() -> None:
    converted = responses_request("gpt-6-sol", tools=[SEARCH], max_tool_calls=0)
    assert converted.hosted is None and "hosted" not in str(up(converted))
    assert responses_request("gpt-6-sol", tools=[SEARCH], max_tool_calls=99).hosted.rounds == 8  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("choice", "said"),
    [({"type": "web_search"}, "Search the web"), ({"type": "image_generation"}, "Draw an image")],
)
def test_a_choice_of_a_hosted_tool_is_an_instruction(choice: dict[str, Any], said: str) -> None:
    converted = responses_request("gpt-6-sol", tools=[SEARCH, {"type": "image_generation"}], tool_choice=choice)
    assert said in up(converted)["input"][-1]["content"][0]["text"]


def test_a_choice_of_a_tool_that_was_left_out_is_free() -> None:
    """Nothing may force what is not there."""
    off = Settings(web_search="off")
    function = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
    for choice, own, kept in ((SEARCH, [], "auto"), (SEARCH, [function], "auto"), ("required", [], "auto"),
                              ("required", [function], "required")):  # fmt: skip
        converted = responses_request("gpt-5.5", tools=[SEARCH, *own], tool_choice=choice, settings=off)
        assert up(converted)["tool_choice"] == kept
    lite = responses_request("gpt-6-sol", tools=[SEARCH], tool_choice=SEARCH, max_tool_calls=0)
    assert up(lite)["input"][-1]["role"] == "user" and "web_search=dropped" in told(lite)


def test_filters_of_an_odd_shape_are_the_backends_to_refuse() -> None:
    for filters in ("blocked_domains", ["blocked_domains"]):
        converted = responses_request("gpt-5.5", tools=[SEARCH | {"filters": filters}])
        assert up(converted)["tools"][0]["filters"] == filters


def test_blocked_domains_go_into_the_query_or_are_told() -> None:
    search = SEARCH | {"filters": {"allowed_domains": ["a.example"], "blocked_domains": ["b.example"]}}
    classic = responses_request("gpt-5.5", tools=[search])
    assert up(classic)["tools"][0]["filters"] == {"allowed_domains": ["a.example"]}
    assert "blocked_domains=dropped" in told(classic)
    hosted = responses_request("gpt-6-sol", tools=[search]).hosted
    assert hosted is not None
    body = tools.search_body(hosted, "x", 7, ["c.example"])
    assert body["commands"]["search_query"] == [{"q": "x -site:b.example", "recency": 7, "domains": ["c.example"]}]
    assert body["settings"]["filters"] == {"allowed_domains": ["a.example"]}


def test_what_chat_asks_for() -> None:
    place = {"type": "approximate", "approximate": {"country": "CH", "city": "Bern"}}
    options = {"search_context_size": "high", "user_location": place}
    classic = chat_request("gpt-5.5", web_search_options=options)
    location = {"type": "approximate", "country": "CH", "city": "Bern"}
    assert up(classic)["tools"] == [SEARCH | {"search_context_size": "high", "user_location": location}]
    hosted = chat_request("gpt-6-sol", web_search_options=options).hosted
    assert hosted is not None
    settings = tools.search_body(hosted, "x", None, [])["settings"]
    assert settings["user_location"] == location and settings["search_context_size"] == "high"
    bare = chat_request("gpt-5.5", web_search_options={"user_location": {}})
    assert up(bare)["tools"] == [SEARCH | {"user_location": {"type": "approximate"}}]
    forced = chat_request("gpt-5.5", web_search_options={}, tool_choice={"type": "web_search"})
    assert up(forced)["tool_choice"] == SEARCH
    assert up(chat_request("gpt-5.5", web_search_options={}))["tools"] == [SEARCH]
    both = chat_request("gpt-5.5", web_search_options={}, tools=[SEARCH])
    assert up(both)["tools"] == [SEARCH], "one search is enough"
    assert "tools" not in up(chat_request("gpt-5.5", plugins=[{"id": "file-parser"}]))


def test_the_bodies_of_the_endpoints() -> None:
    made = Hosted(space="hosted", model="m", key="k", search=SearchOptions(external_web_access=False))
    assert tools.search_body(made, "x", None, []) == {
        "id": "k", "model": "m", "commands": {"search_query": [{"q": "x"}]}, "max_output_tokens": 10_000,
        "settings": {"search_context_size": "medium", "allowed_callers": ["direct"], "external_web_access": False},
    }  # fmt: skip
    assert tools.image_body(ImageOptions(), "a dot") == {
        "prompt": "a dot", "background": "opaque", "model": "gpt-image-2", "quality": "auto", "size": "auto",
    }  # fmt: skip
    assert tools.image_body(ImageOptions(), "x", ["data:,"])["images"] == [{"image_url": "data:,"}]
