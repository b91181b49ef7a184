"""That the comparison of captures notices what changes, and nothing else."""

from typing import Any

import msgspec
import pytest

from upstream import compare, shapes
from upstream.recorder import Json, Recorded

PLACE = "POST chatgpt.com/backend-api/codex/responses"


def request(body: Any, address: str = PLACE, **headers: str) -> Json:
    return {"request": address, "alpn": ["h2"], "headers": {"accept": "*/*", **headers}, "body": body}


BODY = {"model": "m", "reasoning": {"effort": "low"}, "tools": [{"name": "a", "strict": False}, {"type": "web_search"}]}


@pytest.mark.parametrize(
    ("new", "line"),
    [
        (BODY | {"store": False}, "body.store: new, false"),
        ({key: BODY[key] for key in ("model", "tools")}, 'body.reasoning: gone (was {"effort":"low"})'),
        (BODY | {"reasoning": {"effort": "high"}}, 'body.reasoning.effort: "low" -> "high"'),
        (BODY | {"reasoning": {"effort": None}}, 'body.reasoning.effort: "low" -> null'),
        (BODY | {"model": 1}, 'body.model: "m" -> 1'),
        (BODY | {"tools": [{"name": "a", "strict": True}, {"type": "web_search"}]}, "body.tools[a].strict: false -> true"),
        (BODY | {"tools": [{"name": "a", "strict": False}]}, "body.tools[web_search]: gone"),
        (BODY | {"tools": [*BODY["tools"], {"name": "b"}]}, "body.tools[b]: new"),
        (
            {key: BODY[key] for key in ("tools", "model", "reasoning")},
            "body: order model reasoning tools -> tools model reasoning",
        ),
    ],
)  # fmt: skip
def test_a_field_that_is_added_removed_or_changed_is_one_line(new: Json, line: str) -> None:
    old = {"one": [request(BODY)], "two": [request(BODY)]}
    assert compare.captures(old, {"one": [request(new)], "two": [request(BODY)]}) == [f"{PLACE}.{line}   [one]"]
    assert compare.captures(old, old) == []


def test_headers_are_compared_too_and_a_difference_in_many_scenarios_is_said_once() -> None:
    names = ["a", "b", "c", "d"]
    old = {name: [request(BODY, version="1")] for name in names}
    new = {name: [request(BODY, originator="x")] for name in names}
    assert compare.captures(old, new) == [
        f'{PLACE}.headers.version: gone (was "1")   [a, b, c and 1 more]',
        f'{PLACE}.headers.originator: new, "x"   [a, b, c and 1 more]',
    ]


def test_requests_of_one_address_are_paired_whatever_came_between_them() -> None:
    first, second, other = request({"n": 1}), request({"n": 2}), request(None, "GET x")
    assert list(compare.scenario([first, other, second], [other, first, second])) == []
    found = [str(each) for each in compare.scenario([first, second], [first, other])]
    assert found == ["GET x: 0 -> 1 requests", f"{PLACE}: 2 -> 1 requests"]


def test_a_scenario_that_could_not_be_run_is_no_difference() -> None:
    old: dict[str, Any] = {"login": [], "_version": "1"}
    assert compare.captures(old, {"_version": "2"}, ["login"]) == ['_version: "1" -> "2"']
    assert compare.captures(old, {"_version": "1"}) == ["login: gone"]
    assert compare.captures({"_version": "1"}, old) == ["login: new"]


def test_a_string_of_the_binary_is_known_by_its_beginning() -> None:
    old, new = ["x-codex-turn-stateno", "x-codex-gone-now"], ["x-codex-turn-stateincremental", "x-oai-new"]
    assert list(compare.strings(old, new)) == ["_strings: gone x-codex-gone-now", "_strings: new x-oai-new"]


# --- shapes


ID, OTHER = "01893d6e-0000-7000-8000-000000000001", "11893d6e-0000-4000-8000-000000000002"


def recorded(body: Any, *headers: tuple[str, str], method: str = "POST", target: str = "/r") -> Recorded:
    return Recorded(method, target, [("Host", "chatgpt.com"), *headers], msgspec.json.encode(body))


def test_equal_ids_keep_one_name_and_texts_are_not_kept() -> None:
    prompt = "You are a model. " * 20
    log = [recorded({"thread": ID, "at": f"at_{OTHER}", "text": prompt}, ("thread-id", ID), ("content-length", "9"))]
    assert shapes.of(log) == [
        {
            "request": "POST chatgpt.com/r",
            "alpn": [],
            "headers": {"Host": "chatgpt.com", "thread-id": "<uuid7#0>", "content-length": "<n>"},
            "body": {"thread": "<uuid7#0>", "at": "at_<uuid4#1>", "text": shapes.hashed(prompt)},
        }
    ]


def test_json_within_a_text_is_opened_and_chance_is_taken_out() -> None:
    inner = {"started_at_unix_ms": 1_795_000_000_123, "model": "gpt-5.5", "on": "2026-11-25", "dir": "/tmp/x/cwd"}
    body = {"meta": msgspec.json.encode(inner).decode(), "beta": "responses_websockets=2026-02-06", "create_time": 1.5}
    (shape,) = shapes.of([recorded(body)], [("/tmp/x", "<home>")])
    assert shape["body"] == {
        "meta": {"<json>": {"started_at_unix_ms": "<time>", "model": "gpt-5.5", "on": "<date>", "dir": "<home>/cwd"}},
        "beta": "responses_websockets=2026-02-06",
        "create_time": "<time>",
    }


def test_what_is_asked_at_start_stands_once_and_last() -> None:
    agent = ("user-agent", "codex_exec/1.2.3 (Debian 12.0.0; x86_64) xterm (codex_exec; 1.2.3)")
    questions = [
        recorded(None, agent, ("cookie", "a=b"), method="GET", target="/q"),
        recorded(None, agent, method="GET", target="/q"),
        recorded(None, method="GET", target="/backend-api/ps/plugins"),
    ]
    found = shapes.of([*questions, recorded({}, agent)])
    assert [shape["request"] for shape in found] == ["POST chatgpt.com/r", "GET chatgpt.com/q"]
    assert found[0]["headers"]["user-agent"] == "codex_exec/1.2.3 (<system>) xterm (codex_exec; 1.2.3)"
    assert found[1]["headers"] == {"Host": "chatgpt.com", "user-agent": "<originator>/1.2.3 (<system>) xterm"}


def test_forms_keep_their_fields_in_their_order() -> None:
    log = [Recorded("POST", "/t", [("content-type", "application/x-www-form-urlencoded")], b"state=s&scope=a+b")]
    (shape,) = shapes.of(log)
    assert shape["form"] == {"state": "<state>", "scope": "a b"}


def test_strings_are_taken_apart_where_the_next_one_begins() -> None:
    binary = b"\0x-codex-turn-statex-openai-subagent\0CODEX_HOME_DIROPENAI_API_KEY\0wham/usage\0gpt-image-1.5\0"
    assert shapes.strings(binary) == [
        "CODEX_HOME_DIR", "OPENAI_API_KEY", "gpt-image-1.5", "wham/usage", "x-codex-turn-state", "x-openai-subagent",
    ]  # fmt: skip
