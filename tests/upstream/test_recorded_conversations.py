"""Recorded conversations of real clients: which of their requests continue an answer, and that nothing forged does.

The recordings hold digests instead of texts; texts are made from those here. Without the recordings this is skipped.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from msgspec import Raw

from codexd.protocol.codex import continuation
from codexd.protocol.codex.continuation import Answer, Chain
from codexd.protocol.codex.request import Reasoning, Text, UpstreamRequest
from codexd.protocol.raw import RawObject
from support.daemon import ROOT

RECORDED = ROOT.parent / "shared" / "upstream" / "captures" / "conversations"

pytestmark = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded conversations are not here")

Json = dict[str, Any]

FOLLOW_UPS, CONTINUED = 773, 694
"""Of 773 requests with history 694 continue. The others are meant changes (edits, trims, another effort or tool choice, a
date in the system text), answers that the client lost, and what an earlier codexd did to the recorded requests."""


class Recorded(NamedTuple):
    """One request. ``items`` are its input, ``output`` the answer; ``lossless`` as in ``Call``."""

    scenario: str
    items: list[Json]
    output: list[Json]
    fields: str
    lossless: bool

    def request(self, items: list[Json]) -> UpstreamRequest:
        return UpstreamRequest(model="m", instructions=self.fields, input=[raw(item) for item in items], prompt_cache_key="k",
                               reasoning=Reasoning(), text=Text(verbosity="low"))  # fmt: skip


def raw(item: Json) -> RawObject:
    return {key: Raw(msgspec.json.encode(value)) for key, value in item.items()}


class Scenario:
    def __init__(self, path: Path) -> None:
        document = msgspec.json.decode(path.read_bytes())
        self.name: str = document["scenario"]
        self._items, self._requests = document["items"], document["requests"]
        self._texts: dict[str, str] = {}
        for request in self._requests:
            whole, final = request["said"]["all"], request["said"]["final"]
            if whole[2] != final[2] and whole[0]:
                self._texts[whole[2]] = f"commentary {whole[2]} {self._text(final)}"

    def requests(self) -> Iterator[Recorded]:
        places: list[int] = []
        for request in self._requests:
            places = places[: request["keep"]] + request["input"]
            items = [self._item(place) for place in places]
            for start, end, *text in request["runs"]:
                self._spread(items[start:end], self._text(text))
            output = [self._item(place) for place in request["output"]]
            whole, final = self._text(request["said"]["all"]), self._text(request["said"]["final"])
            messages = [item for item in output if item["type"] == "message"]
            self._spread([each for each in messages if each.get("phase") != "commentary"], final)
            self._spread([each for each in messages if each.get("phase") == "commentary"], whole.removesuffix(final))
            fields = msgspec.json.encode(request["fields"], order="sorted").decode()
            yield Recorded(self.name, items, output, fields, request["dialect"] == "responses")

    def _text(self, found: list[Any]) -> str:
        """Length, digest, digest without blanks at the ends."""
        return "" if found[0] == 0 else self._texts.get(found[2], found[2])

    def _spread(self, items: list[Json], text: str) -> None:
        """Gives a run of messages its joined text."""
        for item in items:
            if item["type"] == "message" and item["role"] == "assistant":
                item["content"] = [{"type": "output_text", "text": text}]
                text = ""

    def _item(self, place: int) -> Json:
        found = self._items[place]
        kind = found["t"]
        match kind:
            case "message" if found["role"] == "assistant":
                return {"type": kind, "role": "assistant", "phase": found.get("phase"), "content": []}
            case "message":
                return {"type": kind, "role": found["role"], "content": [{"type": "input_text", "text": found["j"]}]}
            case "reasoning":
                return {"type": kind, "summary": [], "encrypted_content": found.get("enc")}
            case "function_call":
                spelling = "" if found["args"][1] == found["argj"] else " " * (int(found["args"][1][:2], 16) + 1)
                arguments = f'{{"v":{spelling}"{found["argj"]}"}}'
                return {"type": kind, "call_id": found["call"], "name": found["name"], "arguments": arguments}
            case "custom_tool_call":
                return {"type": kind, "call_id": found["call"], "name": found["name"], "input": found["args"][1]}
            case _:
                return {"type": kind, "call_id": found.get("call"), "output": found.get("q", found["j"])}


class Backend:
    """Answers by digest, as the pool of connections keeps them: each is taken once."""

    def __init__(self) -> None:
        self.heads: dict[bytes, Answer] = {}

    def ask(self, recorded: Recorded, caller: str, *, forget: bool = True) -> Chain | None:
        """What the request continues; None if nothing."""
        request = recorded.request(recorded.items)
        chain = continuation.chain_of(request, caller)
        found = self.heads.get(chain.before or b"")
        continues = found is not None and continuation.equals(
            found, request.input[chain.start : chain.tail], lossless=recorded.lossless
        )
        if continues and forget:
            del self.heads[chain.before or b""]
        return chain if continues else None

    def answer(self, recorded: Recorded, caller: str) -> None:
        if recorded.output:
            chain = continuation.chain_of(recorded.request(recorded.items), caller)
            self.heads[chain.digest] = continuation.answer_of([raw(item) for item in recorded.output])


def scenarios() -> list[Scenario]:
    return [Scenario(path) for path in sorted(RECORDED.glob("*.json"))]


def has_history(recorded: Recorded) -> bool:
    return any(item["type"] == "reasoning" or item["type"].endswith("_call") or item.get("role") == "assistant"
               for item in recorded.items)  # fmt: skip


def test_nine_in_ten_follow_ups_are_deltas_alone_or_interleaved() -> None:
    everything = [list(scenario.requests()) for scenario in scenarios()]
    assert sum(has_history(each) for requests in everything for each in requests) == FOLLOW_UPS
    for at_once in (1, 8, len(everything)):
        backend, continued = Backend(), 0
        for start in range(0, len(everything), at_once):
            waiting = [list(requests) for requests in everything[start : start + at_once]]
            while any(waiting):
                for requests in filter(None, waiting):
                    recorded = requests.pop(0)
                    continued += backend.ask(recorded, recorded.scenario) is not None
                    backend.answer(recorded, recorded.scenario)
        assert continued == CONTINUED, at_once


def test_no_caller_continues_another_ones_conversation() -> None:
    for scenario in scenarios():
        backend = Backend()
        for recorded in scenario.requests():
            assert backend.ask(recorded, "somebody else") is None
            backend.answer(recorded, "me")


def forged(recorded: Recorded, chain: Chain) -> Iterator[list[Json]]:
    """The request with one thing changed that the model has not seen like that."""
    assert chain.start is not None
    for place, item in enumerate(recorded.items[: chain.tail]):
        if item["type"] == "reasoning":
            changed = copy.deepcopy(recorded.items)
            changed[place]["encrypted_content"] = "foreign"
            yield changed
            continue
        for key in {"content", "arguments", "name", "call_id", "output", "input"} & item.keys():
            changed = copy.deepcopy(recorded.items)
            if key == "content":
                text = changed[place]["content"]
                changed[place]["content"] = [*text, {"type": "output_text", "text": "forged"}]
            elif key == "arguments":
                changed[place][key] = '{"v": "forged"}'
            else:
                changed[place][key] = f"{item[key]} forged"
            yield changed
        if place < chain.start or (item["type"].endswith("_call") and "name" in item):
            yield recorded.items[:place] + recorded.items[place + 1 :]
        if place < chain.start:
            yield [*recorded.items[:place], item, *recorded.items[place:]]


def test_nothing_forged_continues_and_what_is_harmless_does() -> None:
    tried = 0
    for scenario in scenarios():
        backend = Backend()
        for recorded in scenario.requests():
            if (chain := backend.ask(recorded, "me", forget=False)) is not None:
                for items in forged(recorded, chain):
                    if backend.ask(recorded._replace(items=items), "me", forget=False) is not None:
                        raise AssertionError((scenario.name, items))
                    tried += 1
                spaced = copy.deepcopy(recorded.items)
                for item in spaced[chain.start : chain.tail]:
                    item |= {"status": "completed", "phase": None, "id": "x"}
                    for part in item.get("content", ()):
                        part["annotations"] = []
                assert backend.ask(recorded._replace(items=spaced), "me") is not None
            backend.answer(recorded, "me")
    assert tried > 5000
