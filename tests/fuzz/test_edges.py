"""The edges of every limit, and what is one byte away from good: an answer or a refusal, never a fault of codexd's."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import httpx
import msgspec
import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock
from wsproto.connection import SERVER, Connection
from wsproto.events import Ping, TextMessage

from codexd.auth import store
from codexd.auth.issuer import Issuer
from codexd.auth.session import Session
from codexd.config.model import Config, OAuth, Server, Storage
from codexd.control import wire
from codexd.errors import ApiError
from codexd.lowlevel import workers
from codexd.protocol import bounds
from codexd.protocol.codings import RATIO
from codexd.protocol.members import MAX_MEMBERS, split
from codexd.state.instructions import Instructions
from codexd.state.keys import Keys
from codexd.state.responses import ResponseStore
from codexd.state.usage import Ledger
from codexd.upstream.catalog import Catalog
from codexd.upstream.frames import Closed, Frames
from support.asgi import client
from support.backend import Backend
from support.daemon import ROOT
from support.zstd import zstd

STATES = ROOT / "tests" / "states" / "1.0.0"
EPOCH = 1_795_000_000.0
NO_NETWORK = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: httpx.Response(500)))
PATHS = st.sampled_from(["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
                         "/v1/responses/input_tokens", "/v1/completions", "/api/chat", "/v1/images/generations"])  # fmt: skip
ROUGH = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
)


def run(config: Config, ask: Callable[[Any], Any]) -> Any:
    """Runs requests against the API, without a socket."""

    async def main() -> Any:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(workers, "LARGE", 1 << 60)
            async with client(Path(folder), Backend(), config) as app:
                return await ask(app)

    return trio.run(main, clock=MockClock(autojump_threshold=0))


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


VALUES = st.one_of(
    st.integers(900, 1100).map(lambda n: b'{"model":"gpt-5.5","messages":[{"role":"user","content":"x"}],"x":%b}' % deep(n)),
    st.integers(985, 1015).map(lambda n: b'{"model":"gpt-5.5","input":[' + b",".join([b'{"role":"user","content":"x"}'] * (n // 3)) + b"]}"),
    st.integers(MAX_MEMBERS - 2, MAX_MEMBERS + 2).map(lambda n: msgspec.json.encode({f"x{i}": i for i in range(n)})),
    st.integers(49_900, 50_100).map(lambda n: b'{"model":"gpt-5.5","max_tokens":9,"messages":[{"role":"user","content":"' + rb"\n" * n + b'"}]}'),
    st.integers(900, 1100).map(lambda n: msgspec.json.encode({"model": "gpt-5.5", "messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f", "parameters": msgspec.Raw(b'{"a":' * n + b"{}" + b"}" * n)}}]})),
    st.integers(1020, 1030).map(lambda n: b'{"model":"gpt-5.5","input":"%b"}' % (b"x" * (n * 1024 - 40))),
)  # fmt: skip


@ROUGH
@given(PATHS, VALUES)
def test_a_body_at_the_edge_of_a_limit(path: str, body: bytes) -> None:
    config = Config(server=Server(max_items=1000, max_body_bytes=1 << 20))
    answer = run(config, lambda app: app.request("POST", path, body))
    assert answer.status < 500, answer.body


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": zstd.compress,
    "br": brotli.compress,
    "gzip": lambda data: __import__("gzip").compress(data),
}


@ROUGH
@given(PATHS, st.sampled_from(sorted(CODERS)), st.integers(0, 22), st.binary(max_size=8), st.integers(0, 60))
def test_a_body_that_expands_and_is_not_quite_right(path: str, coding: str, power: int, noise: bytes, at: int) -> None:
    body = CODERS[coding](b'{"model":"gpt-5.5","input":"' + b"x" * 2**power + b'"}')
    body = body[:at] + noise + body[at + len(noise) :] if noise else body
    headers = {"content-encoding": coding}
    answer = run(
        Config(server=Server(max_body_bytes=1 << 20)), lambda app: app.request("POST", path, body, headers=headers)
    )
    assert answer.status < 500, answer.body
    assert RATIO > 20  # of what JSON really becomes


@given(st.lists(st.sampled_from(["forwarded", "x-forwarded-for", "x-real-ip", "via", "x-forwarded-proto"]), min_size=1, unique=True),
       st.sampled_from(["", "127.0.0.1", "::1", "unknown", '"', ",", "127.0.0.1, 127.0.0.1", "for=127.0.0.1"]),
       st.sampled_from(["/metrics", "//metrics", "/metrics/", "/openai/metrics"]))  # fmt: skip
@ROUGH
def test_no_field_of_a_proxy_makes_a_request_local(names: list[str], value: str, path: str) -> None:
    headers = dict.fromkeys(names, value)
    assert run(Config(), lambda app: app.request("GET", path, headers=headers)).status == 403


OPCODES = st.sampled_from([0x81, 0x01, 0x80, 0x00, 0x82, 0x88, 0x89, 0x8A, 0x91, 0xC1, 0x83])
LENGTHS = st.sampled_from(
    [
        b"\x00",
        b"\x01",
        b"\x7d",
        b"\x7e\x00\x03",
        b"\x7e\xff\xff",
        b"\x7f" + bytes(7) + b"\x05",
        b"\x7f" + b"\xff" * 8,
        b"\x81",
    ]
)


@given(
    st.lists(st.tuples(OPCODES, LENGTHS, st.binary(max_size=130)) | st.binary(max_size=20), max_size=8),
    st.integers(1, 50),
)
def test_frames_of_the_backend_are_messages_or_an_end(pieces: list[Any], cut: int) -> None:
    data = b"".join(piece if isinstance(piece, bytes) else bytes([piece[0]]) + piece[1] + piece[2] for piece in pieces)
    frames = Frames()
    try:
        for at in range(0, len(data), cut):
            for message in frames.feed(data[at : at + cut]):
                message.decode(errors="replace")
            assert frames.pending <= len(data) + 14
    except Closed as error:
        assert str(error)


@given(st.lists(st.text(max_size=300), max_size=5), st.integers(1, 50))
def test_frames_of_codexd_are_what_was_to_be_sent(texts: list[str], size: int) -> None:
    sender, receiver, found = Frames(), Connection(SERVER), ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("codexd.upstream.frames.FRAGMENT", size + 4)
        for each in texts:
            for frame in sender.encode(each.encode()):
                receiver.receive_data(frame)
    for event in receiver.events():
        assert isinstance(event, TextMessage | Ping)
        found += event.data if isinstance(event, TextMessage) else ""
    assert found == "".join(texts)


FILES = [
    "tokens.json",
    "keys.json",
    "models.json",
    "usage.json",
    "prompts.json",
    "responses/resp_3f3e09bde348b966ddcb5f79.json",
]


@ROUGH
@given(
    st.sampled_from(FILES),
    st.integers(0, 30_000),
    st.integers(1, 255),
    st.sampled_from(["flip", "cut", "double", "zeros"]),
)
@example("tokens.json", 0, 1, "cut")
def test_a_state_file_that_was_damaged_is_used_or_set_aside(name: str, at: int, mask: int, how: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        shutil.copytree(STATES, state, dirs_exist_ok=True)
        data = bytearray((state / name).read_bytes())
        at %= len(data)
        match how:
            case "flip":
                data[at] ^= mask
            case "cut":
                del data[at:]
            case "double":
                data[at:at] = data[at : at + mask]
            case _:
                data[at : at + mask] = bytes(mask)
        (state / name).write_bytes(data)

        async def load() -> None:
            config, clock = Config(storage=Storage(responses=True)), lambda: EPOCH
            keys = Keys(state / "keys.json", config, clock=clock)
            keys.check("sk-codexd-none")
            keys.list()
            Ledger(state / "usage.json", clock=clock).save()
            Instructions(state / "prompts.json", clock=clock).all()
            catalog = Catalog(
                state / "models.json", names=config.models, client_version=config.backend.client_version, clock=clock
            )
            assert catalog.models.own
            responses = ResponseStore(state / "responses", config.storage, clock=clock)
            if (entry := responses.get("resp_3f3e09bde348b966ddcb5f79")) is not None:
                with contextlib.suppress(msgspec.DecodeError):
                    entry.stored()
            issuer = Issuer(NO_NETWORK, OAuth(), {})
            session = Session(state / "tokens.json", issuer=issuer, clock=clock)
            described = session.describe()
            assert described.signed_in or described.why
            try:
                found = store.load(state / "tokens.json")
            except store.StoreError:
                return
            assert found is not None
            store.save(state / "tokens.json", found)

        trio.run(load)


@given(st.sampled_from(["status", "keys_add", "log", "history", "try", "login", "set_level", "prompts_set", "explain"]),
       st.dictionaries(st.sampled_from(["name", "limits", "lines", "by", "since", "question", "seconds", "level", "text", "request"]),
                       st.recursive(st.none() | st.integers() | st.text(max_size=4) | st.floats(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))),
       st.integers(0, 2000))  # fmt: skip
def test_a_line_of_control_is_a_request_or_refused(verb: str, fields: dict[str, Any], levels: int) -> None:
    for line in (
        msgspec.json.encode({"verb": verb, **fields}),
        b'{"verb":"%b","x":%b}' % (verb.encode(), deep(levels)),
    ):
        try:
            wire.decode_request(line)
        except wire.NotUnderstood as error:
            assert error.refusal.message


@given(st.binary(max_size=400).map(lambda data: b'{"a":' + data.replace(b"\x00", b"[") + b"}"))
def test_what_is_within_the_limit_is_read_or_refused(body: bytes) -> None:
    try:
        bounds.measure(body, 100, 0)
        split(body)
    except ApiError as error:
        assert error.status in (400, 413)
