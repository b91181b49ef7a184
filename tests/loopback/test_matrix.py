"""Every fault of the backend, asked in four ways of one running daemon: a single outcome each, and nothing is left over.

A fault over HTTP meets a daemon that uses HTTP alone. A fault on a websocket meets one that may go on over HTTP, where
nothing fails: so the table shows what the second lane saves. The outcomes are the table of docs/RELIABILITY.md, which ``pytest --accept`` rewrites: read what changed in it.
"""

import gzip
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from support.asking import Client, Outcome
from support.daemon import ROOT, Daemon, running
from support.upstream import (
    ADDED,
    BINARY,
    COMPLETED,
    CONTINUATION,
    CREATED,
    TEXT,
    Call,
    Json,
    Script,
    Upstream,
    WebsocketCall,
    cut,
    done,
    failed,
    framed,
    polite,
    refuse,
    stream_of,
    text,
)
from support.zstd import zstd

pytestmark = pytest.mark.loopback

PAGE = ROOT / "docs" / "RELIABILITY.md"
START, END = "<!-- faults of the backend: generated, `pytest --accept` rewrites it -->\n", "<!-- end -->"
PATIENCE = 1.0
LIMIT = 20.0
"""Seconds that any outcome may take here: two tries, each with a deadline of ``PATIENCE``, on a loaded machine."""

WAYS = [(dialect, streamed) for dialect in ("chat", "responses") for streamed in (True, False)]
ANSWER: list[Json] = [CREATED, ADDED, text("Hel"), text("lo"), done("Hello"), COMPLETED]
SEPARATORS: list[Json] = [CREATED, ADDED, text("\u2028\x85"), done("\u2028\x85"), COMPLETED]
CODES = (1000, 1001, 1008, 1009, 1011, 1012, 1013)


def encoded(*events: Json, end: bytes = b"\n") -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(event) + end * 2 for event in events)


async def reset(call: Call) -> None:
    call.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    call.stream.socket.close()


def after(number: int, then: Script) -> Script:
    """So many events of a good answer, and then something else."""

    async def play(call: Call) -> None:
        await call.start()
        await call.events(*ANSWER[:number])
        await then(call)

    return play


async def silence(call: Call) -> None:
    await call.gone()


async def inside_an_event(call: Call) -> None:
    await call.raw(b'ff\r\ndata: {"type": "resp')
    await call.stream.aclose()


async def early_end(call: Call) -> None:
    await call.end()


def ending(*events: Json) -> Script:
    async def play(call: Call) -> None:
        await call.events(*events)
        await call.end()

    return play


def in_one(data: bytes, *headers: str) -> Script:
    return refuse(200, data, *headers)


def raw(data: bytes, *, close: bool = True) -> Script:
    async def play(call: Call) -> None:
        await call.raw(data)
        if close:
            await call.stream.aclose()
        else:
            await call.gone()

    return play


async def byte_by_byte(call: Call) -> None:
    await call.start()
    for byte in encoded(*ANSWER):
        await call.chunk(bytes([byte]))
    await call.end()


async def endless(call: Call) -> None:
    await call.start()
    await call.events(CREATED, ADDED)
    await call.chunk(b"data: ")
    while True:
        await call.chunk(bytes(65536).replace(b"\0", b"x"))


def large(size: int) -> Script:
    async def play(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("x" * size), done("x" * size), COMPLETED)
        await call.end()

    return play


# --- websockets


Play = Callable[[WebsocketCall], Awaitable[None]]


def on_websockets(play: Play) -> Script:
    """A script for websockets, and a good answer over HTTP."""

    async def either(call: Call) -> None:
        await (play(call) if isinstance(call, WebsocketCall) else polite(call))

    return either


def frames(*events: Json) -> bytes:
    return b"".join(framed(msgspec.json.encode(event)) for event in events)


def closes(number: int, code: int) -> Play:
    """So many events of a good answer, a close frame, and no end of the connection until the other side ends it."""

    async def play(call: WebsocketCall) -> None:
        await call.events(*ANSWER[:number])
        await call.close(code, "as planned")
        await call.gone()

    return play


def raw_after(number: int, data: bytes, then: Script | None = None) -> Play:
    """So many events of a good answer, and bytes."""

    async def play(call: WebsocketCall) -> None:
        await call.events(*ANSWER[:number])
        await call.raw(data)
        if then is not None:
            await then(call)

    return play


def framing(data: bytes) -> Play:
    """Bytes in one write; the connection stays."""

    async def play(call: WebsocketCall) -> None:
        await call.raw(data)

    return play


async def frame_byte_by_byte(call: WebsocketCall) -> None:
    for byte in frames(*ANSWER):
        await call.raw(bytes([byte]))


async def pings_between(call: WebsocketCall) -> None:
    """Each event in three fragments, with pings between them."""
    for event in ANSWER:
        data = msgspec.json.encode(event)
        for start, opcode in ((0, TEXT), (10, CONTINUATION), (20, CONTINUATION)):
            await call.ping()
            await call.frame(data[start:] if start == 20 else data[start : start + 10], opcode, last=start == 20)
    await call.heard()


async def stray(call: WebsocketCall) -> None:
    await call.events(*ANSWER)
    await call.heard()
    await call.events(text("stray"))


def error(status: int | None, code: str | None, message: str = "It failed.") -> Json:
    event: Json = {"type": "error", "error": {"type": "invalid_request_error", "code": code, "message": message}}
    if status is not None:
        event["status"] = status
    return event


def other(event: Json) -> Json:
    return event | {"response": event["response"] | {"id": "resp_other"}}


HEAD = b"HTTP/1.1 200 OK\r\n"
LIMIT_REACHED: Json = {"error": {"type": "usage_limit_reached", "message": "The usage limit", "resets_in_seconds": 90}}

EITHER: dict[str, Script] = {
    "none": polite,
    "closed before any response": cut,
    "reset before any response": reset,
    "silence before the answer": silence,
    **{f"closed after {number} event{'' if number == 1 else 's'}": after(number, cut) for number in range(1, 6)},
    **{f"reset after {number} event{'' if number == 1 else 's'}": after(number, reset) for number in (1, 3, 5)},
    **{f"silence after {number} event{'' if number == 1 else 's'}": after(number, silence) for number in (1, 3, 5, 6)},
    "an event of 8 MiB": large(8 * 1024 * 1024),
    "400": refuse(400, {"detail": "Unsupported parameter: foo"}),
    "404": refuse(404, b""),
    "413": refuse(413, b""),
    "429 with Retry-After": refuse(429, {"error": {"message": "slow"}}, "retry-after: 7"),
    "429 without Retry-After": refuse(429, b"{}"),
    "429, usage_limit_reached": refuse(429, LIMIT_REACHED),
    "500": refuse(500, b"oops"),
    "503 with Retry-After": refuse(503, {"error": {"code": "slow_down"}}, "retry-after: 7"),
    "503, server_is_overloaded": refuse(503, {"error": {"code": "server_is_overloaded"}}),
    "response.failed first": stream_of(CREATED, failed("server_error")),
    "response.failed during the answer": after(3, ending(failed("server_error"))),
    "error event during the answer": after(3, ending({"type": "error", "code": "server_error", "message": "x"})),
    "complete without content": stream_of(CREATED, COMPLETED),
    "unknown event types": stream_of({"type": "codex.brand_new", "x": 1}, *ANSWER),
    "events after the last one": stream_of(*ANSWER, *ANSWER),
}
"""Faults that both lanes have, and scripts that play on both."""

HTTP = EITHER | {
    "half a status line": raw(b"HTTP/1.1 2"),
    "not HTTP": raw(b"\x15\x03\x01\x00\x02\x02\x46"),
    "headers without an end": raw(HEAD + b"x: y\r\n" * 20_000),
    "silence within the headers": raw(HEAD + b"x-a: b\r\n", close=False),
    "103 Early Hints first": raw(
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        + HEAD
        + b"content-length: %d\r\n\r\n" % len(encoded(*ANSWER))
        + encoded(*ANSWER)
    ),
    "101 Switching Protocols": raw(b"HTTP/1.1 101 X\r\nupgrade: h2c\r\n\r\n"),
    "HTTP/1.0, until the connection ends": raw(b"HTTP/1.0 200 OK\r\n\r\n" + encoded(*ANSWER)),
    "content length too small": raw(HEAD + b"content-length: 20\r\n\r\n" + encoded(*ANSWER)),
    "content length too large": raw(HEAD + b"content-length: 99999\r\n\r\n" + encoded(*ANSWER[:4])),
    "two content lengths": raw(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n" + encoded(*ANSWER)),
    "a chunk with an invalid size": raw(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
    "an unknown transfer coding": raw(HEAD + b"transfer-encoding: br\r\n\r\n" + encoded(*ANSWER)),
    "closed after the headers": after(0, cut),
    "reset after the headers": after(0, reset),
    "silence after the headers": after(0, silence),
    **{
        f"a clean end after {number} event{'' if number == 1 else 's'}": after(number, early_end) for number in range(6)
    },
    "closed inside an event": after(3, inside_an_event),
    "one byte per write": byte_by_byte,
    "lines ended by CR": in_one(encoded(*ANSWER, end=b"\r")),
    "lines ended by CR LF": in_one(encoded(*ANSWER, end=b"\r\n")),
    "U+2028 and U+0085 in the text": in_one(
        "".join(f"data: {msgspec.json.encode(e).decode()}\n\n" for e in SEPARATORS).encode()
    ),
    "invalid JSON": in_one(b"data: {bad\n\n" + encoded(*ANSWER)),
    "bytes that are not UTF-8": in_one(b"data: \xff\xfe\n\n" + encoded(*ANSWER)),
    "an event without an end": endless,
    "gzip": in_one(gzip.compress(encoded(*ANSWER)), "content-encoding: gzip"),
    "zstd": in_one(zstd.compress(encoded(*ANSWER)), "content-encoding: zstd"),
    "invalid gzip": in_one(encoded(*ANSWER), "content-encoding: gzip"),
    "an empty body": in_one(b""),
    "a JSON document": in_one(b'{"id": "x"}', "content-type: application/json"),
    "an HTML page as 200": in_one(b"<html>Sign in</html>", "content-type: text/html"),
    "an HTML page as 403": refuse(403, b"<!DOCTYPE html><title>Just a moment...</title>", "content-type: text/html"),
    "an HTML page as 502": refuse(502, b"<html>Bad gateway</html>", "content-type: text/html"),
    "a redirect": refuse(302, b"", "location: http://127.0.0.1:1/"),
}

RUDE: dict[str, Play] = {
    "closed inside an event": raw_after(3, framed(b'{"type":"response.output_text.delta"}')[:20], cut),
    "one byte per write": frame_byte_by_byte,
    "U+2028 and U+0085 in the text": framing(frames(*SEPARATORS)),
    "invalid JSON": framing(framed(b"{bad") + frames(*ANSWER)),
    "bytes that are not UTF-8": framing(framed(b"\xff\xfe") + frames(*ANSWER)),
    "a frame of 1 TiB": framing(b"\x81\x7f" + (1 << 40).to_bytes(8)),
    "close 1000 with the last event": framing(frames(*ANSWER) + b"\x88\x02\x03\xe8"),
    "fragments with pings between": pings_between,
    "JSON over many lines": framing(
        b"".join(framed(msgspec.json.format(msgspec.json.encode(event), indent=2)) for event in ANSWER)
    ),
    "two JSON objects in a frame": framing(framed(b'{"type":"a"}\n{"type":"b"}') + frames(*ANSWER)),
    "an array, an empty message, no type": framing(framed(b"[]") + framed(b"") + framed(b"{}") + frames(*ANSWER)),
    "a binary frame at once": framing(framed(b"\0", BINARY)),
    "a binary frame in the text": raw_after(3, framed(b"\0", BINARY)),
    "a masked frame": framing(b"\x81\x82mask{}"),
    "a reserved bit": framing(b"\xc1\x02{}"),
    "an orphaned fragment": framing(framed(b"{}", CONTINUATION)),
    "pings and silence": raw_after(1, b"\x89\x00\x89\x00", silence),
    "an answer without response.created": stream_of(*ANSWER[1:]),
    "an answer to another request": stream_of(*ANSWER[:5], other(COMPLETED)),
    "two answers in one": stream_of(CREATED, other(CREATED), *ANSWER[1:]),
    "an extra answer after the last event": framing(frames(*ANSWER, other(CREATED), text("stray"))),
    "a stray event while idle": stray,
    "previous_response_not_found": stream_of(error(400, "previous_response_not_found")),
    "previous_response_not_found, only in the message": stream_of(error(400, None, "Invalid previous_response_id.")),
    "previous_response_not_found, failed": stream_of(CREATED, failed("previous_response_not_found")),
    "websocket_connection_limit_reached": stream_of(error(400, "websocket_connection_limit_reached")),
    "401": refuse(401, {"error": {"code": "token_expired", "message": "expired"}}),
    "500 after response.created": after(1, refuse(500, b"oops")),
    "500 in the text": after(3, refuse(500, b"oops")),
    "error event without a status": stream_of(error(None, "server_error")),
}
CLOSES: dict[str, list[Play]] = {
    f"close frame {where}, {', '.join(map(str, CODES[:-1]))} or {CODES[-1]}": [closes(number, code) for code in CODES]
    for where, number in (("at once", 0), ("after response.created", 1), ("in the text", 3))
}
"""The code makes no difference."""

WEBSOCKET = {name: [play] for name, play in (EITHER | RUDE).items()} | CLOSES


def shown(outcome: Outcome) -> str:
    if outcome.error is None:
        return "answer" if outcome.status == 200 else f"{outcome.status}?"
    code = outcome.error["code"] or outcome.error["type"]
    where = f"{outcome.status}" if outcome.status != 200 else f"{len(outcome.text)} characters, then an error:"
    wait = f", retry after {outcome.headers['retry-after']} s" if "retry-after" in outcome.headers else ""
    return f"{where} `{code}`{wait}"


async def all_ways(daemon: Daemon) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}

    async def ask(number: int) -> None:
        dialect, streamed = WAYS[number]
        async with httpx.AsyncClient(base_url=daemon.base, timeout=LIMIT * 2) as http:
            outcomes[number] = await Client(http, dialect, streamed).ask()

    async with trio.open_nursery() as nursery:
        for number in range(len(WAYS)):
            nursery.start_soon(ask, number)
    return [outcomes[number] for number in range(len(WAYS))]


def descriptors(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


async def outcomes_of(name: str, script: Script, daemon: Daemon, upstream: Upstream) -> list[str]:
    """The two cells of a fault: streamed and whole, which are the same in either dialect."""
    upstream.plays, upstream.calls = [script], []
    begun = time.monotonic()
    outcomes = await all_ways(daemon)
    assert time.monotonic() - begun < LIMIT, name
    for outcome in outcomes:
        assert outcome.finished == (outcome.error is None), name
        assert outcome.error is None or outcome.error["message"], name
        assert "set-cookie" not in outcome.headers, name
    lanes = upstream.lanes
    upstream.plays = [polite]
    assert [outcome.text for outcome in await all_ways(daemon)] == ["Hello"] * 4, f"after {name}"
    cells = [shown(outcome) for outcome in outcomes]
    if "websocket" in lanes and "http" in lanes:
        assert (lanes.count("websocket"), lanes.count("http")) == (2 * len(WAYS), len(WAYS)), name
        cells = [f"{cell} over HTTP" for cell in cells]
    elif "websocket" in lanes:
        assert len(lanes) == len(WAYS), name
    assert cells[:2] == cells[2:], name
    return cells[:2]


async def play_all(
    faults: dict[str, list[Script]], cells: dict[str, list[str]], folder: Path, logs: Path, transport: str
) -> None:
    """Fills in the cells of one lane, with a daemon and a backend of its own."""
    folder.mkdir()
    limits = {"first_event_timeout": PATIENCE, "idle_timeout": PATIENCE, "transport": transport}
    upstream = Upstream()
    async with trio.open_nursery() as nursery:
        await nursery.start(upstream.serve)
        async with running(
            folder,
            logs,
            upstream,
            backend=limits,
            # Faults in a row would close the lane for ten minutes, and each needs more handshakes than a second may have.
            constants={"codexd.upstream.lane.FAILURES": 1_000_000, "codexd.upstream.conversations.BURST": 1_000_000},
            logging={"level": "info", "enable_request_logging": False},
        ) as daemon:
            await daemon.logged("model catalogue refreshed")
            await all_ways(daemon)
            before = descriptors(daemon)
            for name, scripts in faults.items():
                found = [await outcomes_of(name, script, daemon, upstream) for script in scripts]
                assert found == found[:1] * len(found), name
                cells[name] = found[0]
            with trio.fail_after(PATIENCE):
                # Polled: the descriptors of another process say nothing of changes. Idle ones to use again may stay.
                while upstream.open > 2 * len(WAYS) + 1 or descriptors(daemon) > before + 2 * len(WAYS):
                    await trio.sleep(0.02)
            assert upstream.websockets <= len(WAYS)
            async with httpx.AsyncClient(base_url=daemon.base, timeout=LIMIT) as http:
                assert (await http.get("/health")).status_code == 200
        nursery.cancel_scope.cancel()
    log = daemon.log.read_text()
    assert "internal error" not in log
    assert "Traceback" not in log


async def test_one_outcome_for_each_fault(tmp_path: Path, logs: Path, accept: bool) -> None:
    http, websocket = dict[str, list[str]](), dict[str, list[str]]()
    async with trio.open_nursery() as nursery:
        over_http = {name: [script] for name, script in HTTP.items()}
        over_websocket = {name: [on_websockets(play) for play in plays] for name, plays in WEBSOCKET.items()}
        nursery.start_soon(play_all, over_http, http, tmp_path / "http", logs, "http")
        nursery.start_soon(play_all, over_websocket, websocket, tmp_path / "websocket", logs, "auto")
    rows = [
        "| The backend's fault | HTTP, streamed | HTTP, whole | websocket, streamed | websocket, whole |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys([*HTTP, *WEBSOCKET]):
        cells = http.get(name, ["–", "–"]) + websocket.get(name, ["–", "–"])
        rows.append(f"| {name} | {' | '.join(cells)} |")
    page = PAGE.read_text()
    head, _, rest = page.partition(START)
    table, _, tail = rest.partition(END)
    wanted = "\n" + "\n".join(rows) + "\n\n"
    if accept:
        PAGE.write_text(head + START + wanted + END + tail)
    else:
        assert table == wanted
