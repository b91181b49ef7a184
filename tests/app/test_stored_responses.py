"""Stored responses over the whole app: coming back to them, reading, deleting, forgetting."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from codexd.config.model import Config, Storage
from codexd.state import responses
from codexd.state.responses import OVERHEAD, ResponseStore
from support.asgi import client
from support.backend import CALLED, REASONED, Counting, texts
from support.upstream import ADDED, Json, done, text

NOW = 1_795_000_000.0


def ask(said: Any = "x", **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-5.5", "input": said, **fields}


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_conversation_goes_on_by_its_last_answer(
    autojump_clock: MockClock, tmp_path: Path, streamed: bool
) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/responses", ask("one", stream=streamed))
        await app.request("POST", "/v1/responses", ask("two", previous_response_id="resp_1", stream=streamed))
        answer = await app.request("POST", "/v1/responses", ask("three", previous_response_id="resp_2"))
        assert texts(backend.sent) == ["one", "Hi", "two", "Hi", "three"]
        assert all("id" not in item for item in backend.sent["input"])
        assert "previous_response_id" not in backend.sent
        assert (answer.json["previous_response_id"], answer.json["store"]) == ("resp_2", True)
        branch = await app.request("POST", "/v1/responses", ask("other", previous_response_id="resp_1"))
        assert (branch.status, texts(backend.sent)) == (200, ["one", "Hi", "other"])


async def test_calls_and_reasoning_go_on_too(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Counting(REASONED, CALLED)
    result = [{"type": "function_call_output", "call_id": "call_1", "output": "1"}]
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/responses", ask())
        await app.request("POST", "/v1/responses", ask(result, previous_response_id="resp_1"))
    kinds = [item["type"] for item in backend.sent["input"]]
    assert kinds == ["message", "reasoning", "function_call", "function_call_output"]


async def test_a_call_of_an_earlier_turn_that_is_not_answered_is_named_so(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with client(tmp_path, Counting(CALLED)) as app:
        await app.request("POST", "/v1/responses", ask())
        lost = await app.request("POST", "/v1/responses", ask("and?", previous_response_id="resp_1"))
        assert (lost.status, lost.json["error"]["param"]) == (400, "previous_response_id")
        alone = [{"type": "function_call_output", "call_id": "call_1", "output": "1"},
                 {"type": "function_call_output", "call_id": "other", "output": "1"}]  # fmt: skip
        lost = await app.request("POST", "/v1/responses", ask(alone, previous_response_id="resp_1"))
        assert (lost.status, lost.json["error"]["param"]) == (400, "input[1]")


async def test_what_is_stored_can_be_read_and_deleted(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Counting()) as app:
        made = await app.request("POST", "/v1/responses", ask())
        for path in ("/v1/responses/resp_1", "/responses/resp_1"):
            assert (await app.request("GET", path)).json == made.json
        refused = await app.request("POST", "/v1/responses/resp_1/cancel")
        assert (refused.status, refused.json["error"]["code"]) == (400, "not_cancellable")
        gone = await app.request("DELETE", "/v1/responses/resp_1")
        assert gone.json == {"id": "resp_1", "object": "response", "deleted": True}
        for method, path in (
            ("GET", "/v1/responses/resp_1"),
            ("DELETE", "/v1/responses/resp_1"),
            ("GET", "/v1/responses/resp_1/input_items"),
            ("POST", "/v1/responses/resp_1/cancel"),
        ):
            missing = await app.request(method, path)
            assert (missing.status, missing.json["error"]["code"]) == (404, "response_not_found")
        lost = await app.request("POST", "/v1/responses", ask(previous_response_id="resp_1"))
        assert (lost.status, lost.json["error"]["param"]) == (400, "previous_response_id")
        assert lost.json["error"]["code"] == "previous_response_not_found"


async def test_a_reference_stands_for_the_stored_item(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app:
        first = await app.request("POST", "/v1/responses", ask("x"))
        (answer,) = first.json["output"]
        reference = {"type": "item_reference", "id": answer["id"]}
        items = [{"role": "user", "content": "x"}, reference, {"role": "user", "content": "y"}]
        assert (await app.request("POST", "/v1/responses", ask(items))).status == 200
        sent = msgspec.json.decode(backend.requests[-1].content)["input"]
        assert [item["role"] for item in sent] == ["user", "assistant", "user"]
        assert sent[1]["content"] == answer["content"]
        lost = await app.request("POST", "/v1/responses", ask([reference | {"id": "msg_lost"}]))
        assert (lost.status, lost.json["error"]["code"], lost.json["error"]["param"]) == (
            404,
            "item_not_found",
            "input[0]",
        )


async def test_store_false_keeps_nothing(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Counting()) as app:
        answer = await app.request("POST", "/v1/responses", ask(store=False))
        assert answer.json["store"] is False
        assert (await app.request("GET", "/v1/responses/resp_1")).status == 404
        kept = await app.request("POST", "/v1/responses", ask(store=True))
        assert (kept.json["store"], "store" in kept.headers.get("x-codexd-adjusted", "")) == (True, False)


async def test_the_input_comes_in_pages_and_every_item_has_an_id(autojump_clock: MockClock, tmp_path: Path) -> None:
    items = [{"role": "user", "content": str(number)} for number in range(25)]
    items[3]["id"] = "msg_own"
    async with client(tmp_path, Counting()) as app:
        await app.request("POST", "/v1/responses", ask(items))

        async def page(query: str = "") -> Any:
            return (await app.request("GET", f"/v1/responses/resp_1/input_items{query}")).json

        newest = await page()
        assert (newest["object"], len(newest["data"]), newest["has_more"]) == ("list", 20, True)
        assert newest["data"][0]["content"] == "24"
        rest = await page(f"?after={newest['last_id']}")
        assert ([item["content"] for item in rest["data"]], rest["has_more"]) == (["4", "3", "2", "1", "0"], False)
        oldest = await page("?order=asc&limit=4")
        assert [item["id"].partition("_")[0] for item in oldest["data"]] == ["msg"] * 4
        assert oldest["last_id"] == "msg_own"
        assert (oldest["first_id"], oldest["data"][0]["type"]) == (oldest["data"][0]["id"], "message")
        assert (await page(f"?after={rest['last_id']}"))["data"] == []
        for query, param in (
            ("?limit=0", "limit"),
            ("?limit=x", "limit"),
            ("?limit=101", "limit"),
            ("?order=up", "order"),
            ("?after=x", "after"),
        ):
            assert (await page(query))["error"]["param"] == param
        await app.request("POST", "/v1/responses", ask("plain"))
        (only,) = (await app.request("GET", "/v1/responses/resp_2/input_items")).json["data"]
        assert (only["role"], only["content"]) == ("user", [{"type": "input_text", "text": "plain"}])


async def test_input_is_counted_by_estimate(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app:
        small = (await app.request("POST", "/v1/responses/input_tokens", ask("x" * 400))).json
        assert small["object"] == "response.input_tokens"
        more = (await app.request("POST", "/v1/responses/input_tokens", ask("x" * 800))).json
        assert more["input_tokens"] - small["input_tokens"] == 100
        assert (await app.request("POST", "/v1/responses/input_tokens", ask(model="nope"))).status == 404
    assert backend.requests == []


# --- the store itself


def make(folder: Path, moment: list[float], **fields: Any) -> ResponseStore:
    return ResponseStore(folder / "responses", Storage(**fields), clock=lambda: moment[0])


def add(store: ResponseStore, name: str, size: int = 10) -> None:
    response = msgspec.json.encode({"id": name, "output": [], "text": "x" * size})
    store.add(store.entry(name, [], response, 0))


async def test_the_oldest_and_the_old_go(tmp_path: Path) -> None:
    moment = [NOW]
    store = make(tmp_path, moment, response_bytes=5 * (OVERHEAD + 400), response_seconds=60)
    for number in range(10):
        add(store, f"r{number}", 300)
    assert [number for number in range(10) if store.get(f"r{number}")] == [5, 6, 7, 8, 9]
    add(store, "r9", 10)
    add(store, "huge", 6 * OVERHEAD)
    assert store.get("huge") is None
    assert store.get("r8") is not None
    moment[0] += 61
    assert store.get("r9") is None
    assert repr(store) == "<ResponseStore 0 responses, 0 bytes>"
    nothing = make(tmp_path, moment, response_bytes=0)
    add(nothing, "a")
    assert nothing.get("a") is None


async def test_files_outlive_a_restart(tmp_path: Path) -> None:
    moment = [NOW]
    store = make(tmp_path, moment, responses=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        add(store, "resp_a")
        moment[0] += 1
        add(store, "../../etc/passwd")
        add(store, "resp_gone")
        assert store.delete("resp_gone")
        await trio.testing.wait_all_tasks_blocked()
        add(store, "resp_late")
        nursery.cancel_scope.cancel()
    names = sorted(path.name for path in (tmp_path / "responses").iterdir())
    assert len(names) == 3
    assert {"resp_a.json", "resp_late.json"} <= set(names)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "responses").iterdir())
    (tmp_path / "responses" / "broken.json").write_text("{")
    again = make(tmp_path, moment, responses=True)
    for name in ("resp_a", "../../etc/passwd", "resp_late"):
        assert again.get(name) is not None
    assert again.get("resp_gone") is None
    assert (tmp_path / "responses" / "broken.json").exists()
    assert make(tmp_path, moment).get("resp_a") is None


async def test_what_changes_while_it_is_written_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path, [NOW], responses=True)
    write, written, twice = responses.write_durably, list[bytes](), trio.Event()

    def slow(path: Path, data: bytes) -> None:
        write(path, data)
        written.append(data)
        if len(written) == 1:
            trio.from_thread.run_sync(add, store, "resp_a", 50)
        else:
            trio.from_thread.run_sync(twice.set)

    monkeypatch.setattr(responses, "write_durably", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        add(store, "resp_a", 5)
        with trio.fail_after(10):
            await twice.wait()
        nursery.cancel_scope.cancel()
    again = make(tmp_path, [NOW], responses=True).get("resp_a")
    assert again is not None
    assert b"x" * 50 in bytes(again.stored().response)


async def test_a_disk_that_is_full_costs_the_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(responses, "write_durably", full)
    store = make(tmp_path, [NOW], responses=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        add(store, "resp_a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert store.get("resp_a") is not None


async def test_the_configuration_reaches_the_store(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Counting(), Config(storage=Storage(response_bytes=0))) as app:
        await app.request("POST", "/v1/responses", ask())
        assert (await app.request("GET", "/v1/responses/resp_1")).status == 404


COMPACTED: Json = {
    "type": "response.output_item.done",
    "output_index": 0,
    "item": {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAAA"},
}


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-6-sol"])
async def test_a_conversation_is_compacted_and_goes_on(autojump_clock: MockClock, tmp_path: Path, model: str) -> None:
    backend = Counting(COMPACTED)
    turn = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    async with client(tmp_path, backend) as app:
        answer = await app.request("POST", "/v1/responses/compact", {"model": model, "input": turn})
        assert backend.sent["input"][-1] == {"type": "compaction_trigger"}
        found = answer.json
        assert (found["object"], [item.get("type", "message") for item in found["output"]]) == (
            "response.compaction",
            ["message", "compaction"],
        )
        next_turn = [*found["output"], {"role": "user", "content": "three"}]
        await app.request("POST", "/v1/responses", {"model": model, "input": next_turn})
        kinds = [item["type"] for item in backend.sent["input"]]
        assert kinds[-3:] == ["message", "compaction", "message"]


async def test_a_compaction_holds_valid_items(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Counting(COMPACTED)
    async with client(tmp_path, backend) as app:
        body = ask(
            [{"role": "user", "content": "one"}, {"role": "user", "content": [{"type": "input_text", "text": "two"}]}]
        )
        answer = (await app.request("POST", "/v1/responses/compact", body)).json
        assert isinstance(answer["created_at"], int)
        for item in answer["output"]:
            assert {"id", "type"} <= item.keys()
        first = answer["output"][0]
        assert (first["status"], first["content"]) == ("completed", [{"type": "input_text", "text": "one"}])
        backend.parts = (ADDED, text("Hi"), done("Hi"))
        stored = await app.request("POST", "/v1/responses", ask("three"))
        backend.parts = (COMPACTED,)
        name = stored.json["id"]
        again = await app.request("POST", "/v1/responses/compact", {"model": "gpt-5.5", "previous_response_id": name})
        assert [item["type"] for item in again.json["output"]] == ["message", "compaction"]


async def test_a_backend_that_does_not_compact_is_an_error(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with client(tmp_path, Counting()) as app:
        answer = await app.request("POST", "/v1/responses/compact", ask())
    assert (answer.status, answer.json["error"]["code"]) == (502, "not_compacted")


async def test_a_reference_may_have_no_type(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app:
        first = await app.request("POST", "/v1/responses", ask("one"))
        name = first.json["output"][0]["id"]
        await app.request("POST", "/v1/responses", ask([{"id": name}, {"role": "user", "content": "two"}]))
        assert texts(backend.sent) == ["Hi", "two"]
        unknown = await app.request("POST", "/v1/responses", ask([{"id": "msg_other"}]))
        assert unknown.status == 404
        assert "msg_other" in unknown.json["error"]["message"]


async def test_a_stored_response_alone_can_be_continued(autojump_clock: MockClock, tmp_path: Path) -> None:
    backend = Counting()
    async with client(tmp_path, backend) as app:
        await app.request("POST", "/v1/responses", ask("one"))
        body = {"model": "gpt-5.5", "previous_response_id": "resp_1"}
        assert (await app.request("POST", "/v1/responses", body)).status == 200
        assert texts(backend.sent) == ["one", "Hi"]
        nothing = await app.request("POST", "/v1/responses", {"model": "gpt-5.5"})
        assert (nothing.status, nothing.json["error"]["param"]) == (400, "input")
