"""codexd's requests beside the official client's, as committed: where both send a field they send the same, or say why."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codexd.config.model import Backend
from upstream import compare, parity, shapes
from upstream.recorder import Json

SNAPSHOT = compare.read(Path(__file__).parent / "snapshot")


@pytest.fixture(scope="module")
def ids() -> list[str]:
    return ["header.session-id", "header.thread-id", "header.x-client-request-id", "body.prompt_cache_key"]


async def test_every_difference_to_the_official_client_was_decided_on(ids: list[str]) -> None:
    requests = await parity.own_requests(parity.PAIRS, SNAPSHOT["_version"])
    differing = set()
    for pair, own in zip(parity.PAIRS, requests, strict=True):
        official = parity.request_of(SNAPSHOT, pair)
        found = parity.compare(official, own)
        assert found.unlisted() == [], pair.scenario
        differing |= {path for path, _, _ in found.differing}
        # That they differ from one client to the other must not hide that they are one and the same id.
        for shape in (official, own):
            fields = parity.fields(shape)
            assert len({fields[path] for path in ids}) == 1, pair.scenario
        if pair.scenario.startswith("ws_"):
            for part in ("headers", "body"):
                theirs, ours = ([name.lower() for name in shape[part]] for shape in (official, own))
                assert [each for each in ours if each in theirs] == [each for each in theirs if each in ours], part
    assert differing == set(parity.DELIBERATE), "a listed difference is none any more"


async def test_the_report_tells_what_differs_and_where() -> None:
    report = await parity.report(SNAPSHOT | {"_version": "0.0.1"})
    version = f'header.version: "<version>", codexd "{Backend().client_version}"'
    assert report.unlisted == [
        f"{version}   [exec_classic, exec_classic_image, exec_classic_schema_fast_summary and 7 more]"
    ]
    assert report.decided == sorted(parity.DELIBERATE)
    assert {"header.x-codex-turn-metadata", "body.client_metadata"} <= set(report.official_only)
    assert {"header.openai-beta", "body.instructions"} <= set(report.own_only)
    assert len(list(report.lines())) == 1 + len(parity.DELIBERATE) + 2


def test_the_built_in_models_are_the_official_clients() -> None:
    assert parity.models(SNAPSHOT) == []


def test_the_snapshot_holds_no_texts_of_the_official_client() -> None:
    def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, each in value.items():
                yield from texts(each, name)
        elif isinstance(value, list):
            for each in value:
                yield from texts(each, key)
        elif isinstance(value, str):
            yield key, value

    long = [
        text for key, text in texts(SNAPSHOT) if len(text) > shapes.PROSE.get(key, shapes.LONGEST) and text[0] != "<"
    ]
    assert long == []


# --- the comparison itself


def shape(body: Json, **headers: str) -> Json:
    return {"request": "POST x", "alpn": ["h2"], "headers": headers, "body": body}


def test_a_field_that_both_send_has_to_be_the_same() -> None:
    official = shape({"store": False, "reasoning": {"effort": "low"}, "include": ["a"]}, Accept="*/*", version="1")
    own = shape({"store": True, "reasoning": {"effort": "low"}, "include": ["a", "b"]}, accept="*/*", beta="1")
    found = parity.compare(official, own)
    assert found.differing == [("body.store", False, True), ("body.include", ["a"], ["a", "b"])]
    assert found.unlisted() == ["body.store: false, codexd true", 'body.include: ["a"], codexd ["a","b"]']
    assert (found.official_only, found.own_only) == (["header.version"], ["header.beta"])


def test_a_listed_difference_is_none() -> None:
    assert parity.compare(shape({}, originator="a"), shape({}, originator="b")).unlisted() == []


def test_entries_of_lists_are_compared_by_their_kind() -> None:
    tool = {"type": "function", "name": "wait", "strict": False}
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    official = shape({"tools": [tool | {"name": "other", "strict": None}, tool], "input": [{"type": "x"}, message]})
    own = shape({"tools": [tool], "input": [message | {"content": [{"type": "input_text", "text": "ho"}]}]})
    found = parity.compare(official, own)
    assert [path for path, _, _ in found.differing] == ["body.input[message/user].content[input_text].text"]


def test_a_model_that_is_missing_or_another_is_told() -> None:
    first, *rest = SNAPSHOT["_catalogue"]
    changed = first | {"context_window": 1, "default_verbosity": "high"}
    found = parity.models({"_catalogue": [changed, *rest, first | {"slug": "gpt-new"}]})
    assert found == [
        f'models: {first["slug"]}: context_window 1, codexd 272000, verbosity "high", codexd "low"',
        "models: gpt-new: not built in",
    ]
