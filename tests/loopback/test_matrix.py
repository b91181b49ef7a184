"""Every fault of the backend, asked in four ways of one running daemon: a single outcome each, and nothing is left over.

The outcomes are the table of docs/RELIABILITY.md, which ``pytest --accept`` rewrites: read what changed in it.
"""

import gzip
import socket
import struct
import time
from pathlib import Path

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
    polite,
    refuse,
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


HEAD = b"HTTP/1.1 200 OK\r\n"
FAULTS: dict[str, Script] = {
    "none": polite,
    "closed without a word": cut,
    "reset without a word": reset,
    "silence before the status": silence,
    "half a status line": raw(b"HTTP/1.1 2"),
    "no HTTP": raw(b"\x15\x03\x01\x00\x02\x02\x46"),
    "headers without an end": raw(HEAD + b"x: y\r\n" * 20_000),
    "silence inside the headers": raw(HEAD + b"x-a: b\r\n", close=False),
    "103 Early Hints first": raw(
        b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
        + HEAD
        + b"content-length: %d\r\n\r\n" % len(encoded(*ANSWER))
        + encoded(*ANSWER)
    ),
    "101 Switching Protocols": raw(b"HTTP/1.1 101 X\r\nupgrade: h2c\r\n\r\n"),
    "HTTP/1.0, until the end": raw(b"HTTP/1.0 200 OK\r\n\r\n" + encoded(*ANSWER)),
    "content length too small": raw(HEAD + b"content-length: 20\r\n\r\n" + encoded(*ANSWER)),
    "content length too large": raw(HEAD + b"content-length: 99999\r\n\r\n" + encoded(*ANSWER[:4])),
    "two content lengths": raw(HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\n" + encoded(*ANSWER)),
    "a chunk of no size": raw(HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n"),
    "an unknown transfer coding": raw(HEAD + b"transfer-encoding: br\r\n\r\n" + encoded(*ANSWER)),
    **{f"closed after {number} events": after(number, cut) for number in range(6)},
    **{f"reset after {number} events": after(number, reset) for number in (0, 3, 5)},
    **{f"a clean end after {number} events": after(number, early_end) for number in range(6)},
    **{f"silence after {number} events": after(number, silence) for number in (0, 3, 5, 6)},
    "closed inside an event": after(3, inside_an_event),
    "one byte a write": byte_by_byte,
    "lines ended by CR": in_one(encoded(*ANSWER, end=b"\r")),
    "lines ended by CR LF": in_one(encoded(*ANSWER, end=b"\r\n")),
    "U+2028 and U+0085 in a text": in_one(
        "".join(
            f"data: {msgspec.json.encode(e).decode()}\n\n"
            for e in (CREATED, ADDED, text("\u2028\x85"), done("\u2028\x85"), COMPLETED)
        ).encode()
    ),
    "invalid JSON": in_one(b"data: {bad\n\n" + encoded(*ANSWER)),
    "events that nobody knows": in_one(encoded({"type": "codex.brand_new", "x": 1}, *ANSWER)),
    "bytes that are no UTF-8": in_one(b"data: \xff\xfe\n\n" + encoded(*ANSWER)),
    "an event of 8 MiB": large(8 * 1024 * 1024),
    "an event without an end": endless,
    "gzip": in_one(gzip.compress(encoded(*ANSWER)), "content-encoding: gzip"),
    "zstd": in_one(zstd.compress(encoded(*ANSWER)), "content-encoding: zstd"),
    "invalid gzip": in_one(encoded(*ANSWER), "content-encoding: gzip"),
    "an empty body": in_one(b""),
    "a JSON document": in_one(b'{"id": "x"}', "content-type: application/json"),
    "an HTML page as 200": in_one(b"<html>Sign in</html>", "content-type: text/html"),
    "an HTML page as 403": refuse(403, b"<!DOCTYPE html><title>Just a moment...</title>", "content-type: text/html"),
    "an HTML page as 502": refuse(502, b"<html>Bad gateway</html>", "content-type: text/html"),
    "400": refuse(400, {"detail": "Unsupported parameter: foo"}),
    "404": refuse(404, b""),
    "413": refuse(413, b""),
    "429 with Retry-After": refuse(429, {"error": {"message": "slow"}}, "retry-after: 7"),
    "429 without": refuse(429, b"{}"),
    "500": refuse(500, b"oops"),
    "503 with Retry-After": refuse(503, {"error": {"code": "slow_down"}}, "retry-after: 7"),
    "a redirect": refuse(302, b"", "location: http://127.0.0.1:1/"),
    "response.failed first": in_one(encoded(CREATED, failed("server_error"))),
    "response.failed on the way": in_one(encoded(*ANSWER[:3], failed("server_error"))),
    "error event on the way": in_one(encoded(*ANSWER[:3], {"type": "error", "code": "server_error", "message": "x"})),
    "more after the end": in_one(encoded(*ANSWER, *ANSWER)),
}


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


async def test_one_outcome_for_each_fault(tmp_path: Path, logs: Path, upstream: Upstream, accept: bool) -> None:
    rows = [
        "| The backend's fault | chat, streamed | chat, whole | responses, streamed | responses, whole |",
        "|---|---|---|---|---|",
    ]
    limits = {"first_event_timeout": PATIENCE, "idle_timeout": PATIENCE}
    async with running(
        tmp_path, logs, upstream, backend=limits, logging={"level": "info", "enable_request_logging": False}
    ) as daemon:
        await daemon.logged("model catalogue refreshed")
        await all_ways(daemon)
        before = descriptors(daemon)
        for name, script in FAULTS.items():
            upstream.plays = [script]
            begun = time.monotonic()
            outcomes = await all_ways(daemon)
            assert time.monotonic() - begun < LIMIT, name
            for outcome in outcomes:
                assert outcome.finished == (outcome.error is None), name
                assert outcome.error is None or outcome.error["message"], name
                assert "set-cookie" not in outcome.headers, name
            rows.append(f"| {name} | {' | '.join(map(shown, outcomes))} |")
            upstream.plays = [polite]
            assert [outcome.text for outcome in await all_ways(daemon)] == ["Hello"] * 4, f"after {name}"
        with trio.fail_after(PATIENCE):
            # Polled: the descriptors of another process say nothing of changes.
            while upstream.open > len(WAYS) + 1 or descriptors(daemon) > before + len(WAYS):  # idle ones to use again
                await trio.sleep(0.02)
        async with httpx.AsyncClient(base_url=daemon.base, timeout=LIMIT) as http:
            assert (await http.get("/health")).status_code == 200
    log = daemon.log.read_text()
    assert "fault of codexd itself" not in log
    assert "Traceback" not in log
    page = PAGE.read_text()
    head, _, rest = page.partition(START)
    table, _, tail = rest.partition(END)
    wanted = "\n" + "\n".join(rows) + "\n\n"
    if accept:
        PAGE.write_text(head + START + wanted + END + tail)
    else:
        assert table == wanted
