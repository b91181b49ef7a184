"""The rig of ``make bench``: what the simulated backend answers, and what the load generator makes of it."""

import json
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from rig import servers
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection, connect

PATH = "/backend-api/codex/responses"
MARKER = "@@n=3;b=8@@"
DEADLINE = 60

needs_rust = pytest.mark.skipif(shutil.which("rustc") is None, reason="the rig is written in Rust: rustc is missing")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    servers.build()
    with subprocess.Popen([servers.BINARIES / "backend", "--port", "0"], stdout=subprocess.PIPE, text=True) as backend:
        try:
            assert backend.stdout
            assert select.select([backend.stdout], [], [], DEADLINE)[0], "the backend does not say where it listens"
            yield int(backend.stdout.readline().rpartition(" ")[2])
        finally:
            backend.kill()


def load(port: int, words: str) -> dict[str, Any]:
    command = [servers.BINARIES / "load", "--port", str(port), "--up", str(port), "--path", PATH, *words.split()]
    ran = subprocess.run([*command, "--timeout", "50"], capture_output=True, text=True, timeout=DEADLINE, check=True)
    row: dict[str, Any] = json.loads(ran.stdout)
    return row


def ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def opened(port: int) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{port}{PATH}", compression=None, proxy=None, open_timeout=DEADLINE)


def events_of(connection: ClientConnection) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != "response.completed":
        found.append(json.loads(connection.recv(timeout=DEADLINE)))
    return found


def streamed(port: int) -> list[dict[str, Any]]:
    status, body = ask(port, "POST", PATH, json.dumps({"input": MARKER}))
    assert status == 200
    found = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        kind, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert kind == f"event: {found[-1]['type']}"
    return found


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_ids(each) for name, each in value.items() if name not in ("id", "item_id", "usage")}
    return [without_ids(each) for each in value] if isinstance(value, list) else value


@needs_rust
def test_a_stream_has_the_events_of_the_backend(port: int) -> None:
    events = streamed(port)
    pieces = ["response.output_text.delta"] * 3
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *(kind.removeprefix("response.") for kind in pieces),
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(11))
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "x" * 24


@needs_rust
def test_a_websocket_has_the_same_events_one_a_frame(port: int) -> None:
    expected = without_ids(streamed(port))
    message = json.dumps({"type": "response.create", "input": MARKER})
    with opened(port) as connection:
        for sent in (message, [message[:9], message[9:20], message[20:]]):  # whole, and in fragments
            connection.send(sent)
            assert without_ids(events_of(connection)) == expected
        assert connection.ping().wait(DEADLINE)


@needs_rust
def test_a_websocket_is_closed_for_what_is_no_request(port: int) -> None:
    with opened(port) as connection:
        connection.send('{"type":"session.update"}')
        with pytest.raises(ConnectionClosedError, match="1008"):
            connection.recv(timeout=DEADLINE)


@needs_rust
def test_a_websocket_is_closed_for_a_frame_without_a_mask(port: int) -> None:
    with opened(port) as connection:
        connection.socket.sendall(Frame(Opcode.TEXT, b'{"type":"response.create"}').serialize(mask=False))
        with pytest.raises(ConnectionClosedError, match="1002"):
            connection.recv(timeout=DEADLINE)


@needs_rust
@pytest.mark.parametrize("kind", ["resp", "resp --stream 0", "ws"])
@pytest.mark.parametrize("params", ["n=20;b=16", "n=64;b=16;k=16", "n=5000;b=16", "n=10;b=16;r=200"])
def test_the_load_generator_reads_every_answer(port: int, kind: str, params: str) -> None:
    pieces = int(params.partition(";")[0].removeprefix("n="))
    row = load(port, f"--kind {kind} --c 3 --total 9 --extra 70000 --params {params}")
    assert (row["ok"], row["errors"], row["chunks"]) == (9, 0, 9 * pieces), row["errs"]


@needs_rust
@pytest.mark.parametrize("kind", ["resp", "ws"])
def test_the_load_generator_holds_streams_open(port: int, kind: str) -> None:
    row = load(port, f"--kind {kind} --mode hold --c 20 --window 1 --params n=100000;b=16;r=50")
    assert (row["open"], row["errors"]) == (20, 0), row["errs"]
    assert row["win_chunks"] > 0


@needs_rust
@pytest.mark.parametrize("kind", ["resp", "ws"])
def test_the_backend_sees_each_client_that_leaves(port: int, kind: str) -> None:
    row = load(port, f"--kind {kind} --mode abort --c 5 --params n=100000;b=16;r=50")
    assert (row["abort_to_upstream_close_us"]["n"], row["abort_never_seen"], row["errors"]) == (5, 0, 0), row["errs"]


@needs_rust
def test_the_load_generator_counts_what_is_refused(port: int) -> None:
    for kind in ("resp", "ws"):
        row = load(port, f"--kind {kind} --path /nowhere --total 2")
        assert (row["ok"], row["errors"]) == (0, 2)
        assert "status=404" in row["errs"][0]


def once(listener: socket.socket, answers: int) -> None:
    """Answers the first request of each connection byte by byte, and does not read a second one."""
    body = b'data: {"text":"~0000000000ff"}\n\n', b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*body, b""))
    held = []
    for _ in range(answers):
        connection, _ = listener.accept()
        connection.settimeout(DEADLINE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.recv(65536)
        for byte in head + pieces:
            connection.sendall(bytes([byte]))
        held.append(connection)
    for connection in held:
        connection.close()


@needs_rust
def test_the_load_generator_obeys_a_close_and_reads_an_answer_cut_anywhere(port: int) -> None:
    """Werkzeug says ``close`` in a field of its own, behind the application's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        answering = threading.Thread(target=once, args=(listener, 3))
        answering.start()
        row = load(listener.getsockname()[1], "--kind chat --total 3")
        answering.join(DEADLINE)
    assert (row["ok"], row["errors"], row["chunks"]) == (3, 0, 3), row["errs"]


@needs_rust
def test_what_is_not_streamed_is_json(port: int) -> None:
    for method, path, name in (
        ("GET", "/backend-api/codex/models?client_version=1", "models"),
        ("GET", "/backend-api/wham/usage", "rate_limit"),
        ("POST", "/oauth/token", "access_token"),
        ("GET", "/__stats", "completed"),
    ):
        status, body = ask(port, method, path)
        assert status == 200
        assert name in json.loads(body)
    assert ask(port, "GET", "/nowhere")[0] == 404


def test_what_is_missing_is_named_as_debian_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert servers.missing("rustc", "valgrind", "callgrind_control", "nginx") == (
        "apt-get install rustc valgrind nginx-light first"
    )
