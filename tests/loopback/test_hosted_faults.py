"""Faults of search and images, and of the answer after a search: a single outcome each, as a table of RELIABILITY.md."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from support.asking import Client, Outcome
from support.daemon import ROOT, Daemon, running
from support.upstream import (
    ADDED,
    COMPLETED,
    CREATED,
    Call,
    Json,
    Script,
    Upstream,
    cut,
    done,
    failed,
    refuse,
    stream_of,
    text,
)

pytestmark = pytest.mark.loopback

PAGE = ROOT / "docs" / "RELIABILITY.md"
PATIENCE = 1.0
LIMIT = 20.0
CALL: Json = {
    "type": "response.output_item.done",
    "output_index": 0,
    "item": {"id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1", "name": "web_search",
             "namespace": "hosted", "arguments": '{"query":"x"}'},
}  # fmt: skip
HELLO: list[Json] = [CREATED, ADDED, text("Hel"), text("lo"), done("Hello"), COMPLETED]
FOUND = refuse(200, {"output": "[A](https://a.example)"})
SEARCHING = stream_of(CREATED, CALL, COMPLETED)
"""The first round: a search, and nothing else."""


async def silence(call: Call) -> None:
    await call.gone()


async def endless(call: Call) -> None:
    await call.start()
    while True:
        await call.chunk(bytes(1 << 20))


TOOL_FAULTS: dict[str, Script] = {
    "closed before any response": cut,
    "silence": silence,
    "400": refuse(400, {"detail": "no"}),
    "403 as an HTML page": refuse(403, b"<!DOCTYPE html><title>Just a moment...</title>", "content-type: text/html"),
    "404": refuse(404, {"detail": "Not Found"}),
    "429, usage_limit_reached": refuse(429, {"error": {"type": "usage_limit_reached", "resets_in_seconds": 90}}),
    "500": refuse(500, b"oops"),
    "not JSON": refuse(200, b"<html>"),
    "unexpected JSON": refuse(200, {"data": 7}),
    "an endless answer": endless,
}


def cut_after(number: int) -> Script:
    async def play(call: Call) -> None:
        await call.start()
        await call.events(*HELLO[:number])
        await cut(call)

    return play


def silent_after(number: int) -> Script:
    async def play(call: Call) -> None:
        await call.start()
        await call.events(*HELLO[:number])
        await call.gone()

    return play


ROUND_FAULTS: dict[str, Script] = {
    "closed before any response": cut,
    "closed after response.created": cut_after(1),
    "closed in the text": cut_after(3),
    "silence": silence,
    "silence in the text": silent_after(3),
    "400": refuse(400, {"detail": "no"}),
    "429, usage_limit_reached": refuse(429, {"error": {"type": "usage_limit_reached", "resets_in_seconds": 90}}),
    "500": refuse(500, b"oops"),
    "response.failed": stream_of(CREATED, failed("server_error")),
    "searches without end": SEARCHING,
}

LIMITED = refuse(429, {"error": {"type": "usage_limit_reached", "resets_in_seconds": 90}})
FALLBACK_FAULTS: dict[str, Script] = {
    "none": stream_of(*HELLO),
    "429, usage_limit_reached": LIMITED,
    "400": refuse(400, {"detail": "no"}),
    "500": refuse(500, b"oops"),
    "closed before any response": cut,
    "closed in the text": cut_after(3),
    "response.failed": stream_of(CREATED, failed("server_error")),
}

SEARCH: dict[str, Any] = {"model": "gpt-6-sol", "web_search_options": {}}


def shown(outcome: Outcome) -> str:
    if outcome.error is None:
        return f"answer, “{outcome.text}”"
    code = outcome.error["code"] or outcome.error["type"]
    said = f"{outcome.status}" if outcome.status != 200 else f"{len(outcome.text)} characters, then an error:"
    return f"{said} `{code}`"


@asynccontextmanager
async def over(folder: Path, logs: Path, transport: str, **sections: Any) -> AsyncIterator[tuple[Upstream, Daemon]]:
    folder.mkdir()
    limits = {"first_event_timeout": PATIENCE, "idle_timeout": PATIENCE * 2, "transport": transport}
    names = ("SEARCH_SECONDS", "IMAGE_SECONDS")
    seconds = sections.pop("tool_seconds", PATIENCE)
    constants: dict[str, float] = {f"codexd.upstream.account_tools.{name}": seconds for name in names}
    constants |= {f"codexd.upstream.account_tools.{name}": 1 << 21 for name in ("MAX_DOCUMENT", "MAX_FOUND")}
    constants |= {"codexd.upstream.lane.FAILURES": 1_000_000, "codexd.upstream.conversations.BURST": 1_000_000}
    upstream = Upstream()
    async with trio.open_nursery() as nursery:
        await nursery.start(upstream.serve)
        async with running(folder, logs, upstream, backend=limits, constants=constants, **sections) as daemon:
            yield upstream, daemon
        nursery.cancel_scope.cancel()
    assert "internal error" not in daemon.log.read_text()


async def ask(
    upstream: Upstream, daemon: Daemon, plays: list[Script], tools: list[Script], *, streamed: bool
) -> Outcome:
    upstream.plays, upstream.calls, upstream.tool_plays, upstream.tool_calls = plays, [], tools, []
    begun = time.monotonic()
    async with httpx.AsyncClient(base_url=daemon.base, timeout=LIMIT * 2) as http:
        outcome = await Client(http, "chat", streamed).ask(**SEARCH)
    assert time.monotonic() - begun < LIMIT
    return outcome


async def image(upstream: Upstream, daemon: Daemon, tools: list[Script]) -> str:
    upstream.tool_plays, upstream.tool_calls = tools, []
    async with httpx.AsyncClient(base_url=daemon.base, timeout=LIMIT) as http:
        answer = await http.post("/v1/images/generations", json={"prompt": "x"})
    error = answer.json()["error"]
    assert error["message"]
    return f"{answer.status_code} `{error['code'] or error['type']}`"


def rewrite(name: str, rows: list[str], *, accept: bool) -> None:
    start, end = f"<!-- {name}: generated, `pytest --accept` rewrites it -->\n", "<!-- end -->"
    page = PAGE.read_text()
    head, found, rest = page.partition(start)
    assert found, name
    table, _, tail = rest.partition(end)
    wanted = "\n" + "\n".join(rows) + "\n\n"
    if accept:
        PAGE.write_text(head + start + wanted + end + tail)
    else:
        assert table == wanted


async def test_one_outcome_for_each_fault_of_a_tool(tmp_path: Path, logs: Path, accept: bool) -> None:
    """A search that fails is told to the model, which answers; the client of an image gets the error."""
    rows = ["| The fault | a search in an answer | an image |", "|---|---|---|"]
    async with over(tmp_path / "d", logs, "http") as (upstream, daemon):
        for name, fault in TOOL_FAULTS.items():
            cells = set()
            for streamed in (True, False):
                cells.add(
                    shown(await ask(upstream, daemon, [SEARCHING, stream_of(*HELLO)], [fault], streamed=streamed))
                )
                result = msgspec.json.decode(upstream.calls[-1].body)["input"][-1]
                assert (result["type"], result["call_id"]) == ("function_call_output", "call_1")
                assert "The tool failed" in result["output"], (name, result)
            assert len(cells) == 1, name
            rows.append(f"| {name} | {cells.pop()} | {await image(upstream, daemon, [fault])} |")
    rewrite("faults of search and images", rows, accept=accept)


async def test_one_outcome_for_each_fault_after_a_search(tmp_path: Path, logs: Path, accept: bool) -> None:
    """What the tools returned is sent again as long as nothing of the round has reached the client."""
    rows = ["| The fault after the search | HTTP, streamed | HTTP, whole | websocket, streamed | websocket, whole |"]
    rows.append("|---|---|---|---|---|")
    cells: dict[str, list[str]] = {name: [] for name in ROUND_FAULTS}
    for transport in ("http", "auto"):
        async with over(tmp_path / transport, logs, transport) as (upstream, daemon):
            await daemon.logged("model catalogue refreshed")
            for name, fault in ROUND_FAULTS.items():
                for streamed in (True, False):
                    plays = [SEARCHING, fault, fault if fault is SEARCHING else stream_of(*HELLO)]
                    outcome = await ask(upstream, daemon, plays, [FOUND], streamed=streamed)
                    cells[name].append(shown(outcome))
                    assert len(upstream.tool_calls) == (8 if fault is SEARCHING else 1), name
    rows += [f"| {name} | {' | '.join(each)} |" for name, each in cells.items()]
    rewrite("faults after a search", rows, accept=accept)


async def test_one_outcome_for_each_fault_of_a_fallback(tmp_path: Path, logs: Path, accept: bool) -> None:
    """The first model is at its limit; what becomes of the answer of the next is told as it would be without."""
    rows = ["| The fault of the fallback | streamed | whole |", "|---|---|---|"]
    async with over(tmp_path / "d", logs, "http", models={"fallback": ["gpt-5.5"]}) as (upstream, daemon):
        for name, fault in FALLBACK_FAULTS.items():
            cells = [
                shown(await ask(upstream, daemon, [LIMITED, fault], [FOUND], streamed=streamed))
                for streamed in (True, False)
            ]
            rows.append(f"| {name} | {' | '.join(cells)} |")
    rewrite("faults of a fallback", rows, accept=accept)


async def test_a_connection_may_fail_behind_a_search(tmp_path: Path, logs: Path) -> None:
    async def searching(call: Call) -> None:
        await call.start()
        await call.events(CREATED, CALL, COMPLETED)
        await cut(call)

    async with over(tmp_path / "d", logs, "http") as (upstream, daemon):
        for streamed in (True, False):
            outcome = await ask(upstream, daemon, [searching, stream_of(*HELLO)], [FOUND], streamed=streamed)
            assert (outcome.text, outcome.error) == ("Hello", None)


async def test_a_tool_may_take_longer_than_the_backend(tmp_path: Path, logs: Path) -> None:
    """The deadlines of the backend's silence are not those of a tool, which has its own."""
    async with over(tmp_path / "d", logs, "http", tool_seconds=4.0) as (upstream, daemon):
        for streamed in (True, False):
            outcome = await ask(upstream, daemon, [SEARCHING, stream_of(*HELLO)], [silence], streamed=streamed)
            assert (outcome.text, outcome.error) == ("Hello", None)
