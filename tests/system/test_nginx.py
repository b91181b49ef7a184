"""The site file as it is shipped, in a real nginx (and the Caddyfile in a real Caddy) before the real daemon."""

import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from support.daemon import ROOT, Daemon, hello, running
from support.upstream import ADDED, COMPLETED, CREATED, Call, Upstream, done, text

PACKAGING = ROOT / "packaging"
SILENCE = 35.0
"""Seconds; nginx is given 20 of patience for the test of it, so that keep-alives are what carries the stream."""

INSIDE = (
    "/auth/login",
    "//auth/login",
    "/metrics",
    "/metrics/",
    "//metrics",
    "/metrics//",
    "/anthropic/metrics",
    "/openai//metrics/",
)
"""What is this machine's own business, however it is written."""

pytestmark = pytest.mark.system


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificate(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", str(folder / "codexd.key"), "-out", str(folder / "codexd.pem")],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip


def site(folder: Path, api: str, port: int, read_timeout: str) -> str:
    """The shipped file, with this machine's paths in it."""
    shipped = (PACKAGING / "nginx" / "codexd.conf").read_text()
    changes = {
        "unix:/run/codexd/api.sock": api,
        "listen 443 ssl http2;": f"listen 127.0.0.1:{port} ssl http2;",
        "listen [::]:443 ssl http2;": "",
        "/etc/ssl/certs/codexd.pem": f"{folder}/codexd.pem",
        "/etc/ssl/private/codexd.key": f"{folder}/codexd.key",
        "client_max_body_size 64m": "client_max_body_size 1m",
        "proxy_read_timeout 3600s": f"proxy_read_timeout {read_timeout}",
    }
    for old, new in changes.items():
        assert old in shipped, old
        shipped = shipped.replace(old, new)
    return shipped


def nginx_conf(folder: Path, text: str) -> Path:
    """A configuration of its own: nothing outside of the folder is touched."""
    own = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    path = folder / "nginx.conf"
    path.write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; worker_processes 1; events {{}} "
        f"http {{ access_log {folder}/access.log; {own} gzip on; gzip_types text/event-stream;\n{text}\n}}"
    )
    return path


class Front:
    def __init__(self, url: str, daemon: Daemon, upstream: Upstream) -> None:
        self.url = url
        self.daemon = daemon
        self.upstream = upstream

    def command(self, path: str, *words: str) -> list[str]:
        return ["curl", "-4skN", "--max-time", "120", *words, f"{self.url}{path}"]

    async def curl(self, path: str, *words: str) -> tuple[int, str]:
        done = await trio.run_process(
            self.command(path, "-w", "\n%{http_code}", *words), capture_stdout=True, check=False
        )
        body, _, status = done.stdout.decode().rpartition("\n")
        return int(status), body

    @asynccontextmanager
    async def streaming(self, *words: str) -> AsyncIterator[trio.Process]:
        """A streamed chat; ended at the end."""
        body = msgspec.json.encode(hello(stream=True)).decode()
        command = self.command("/v1/chat/completions", "-d", body, *words)
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            with trio.move_on_after(10, shield=True):
                await process.wait()


@asynccontextmanager
async def fronted(
    folder: Path, logs: Path, upstream: Upstream, command: Callable[[str, int], list[str]]
) -> AsyncIterator[Front]:
    api = f"unix:{folder}/api.sock"
    port = free_port()
    server = {"bind": [api], "max_body_bytes": 1 << 20, "allow_unauthenticated": True}
    async with running(folder, logs, upstream, server=server) as daemon:
        log = (folder / "front.log").open("wb")
        front = await trio.lowlevel.open_process(command(api, port), stdout=log, stderr=log)
        try:
            with trio.fail_after(15):
                while True:
                    assert front.poll() is None, (folder / "front.log").read_text()
                    try:
                        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                        break
                    except OSError:
                        await trio.sleep(0.02)
            yield Front(f"https://localhost:{port}", daemon, upstream)
        finally:
            front.terminate()
            with trio.move_on_after(10, shield=True):
                await front.wait()
            log.close()


@asynccontextmanager
async def nginx(
    folder: Path,
    logs: Path,
    upstream: Upstream,
    read_timeout: str = "3600s",
    edit: Callable[[str], str] = lambda site: site,
) -> AsyncIterator[Front]:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    # Its workers are not root's own, and pytest's folders are: one that all may enter, away from there.
    certificate(folder)

    def command(api: str, port: int) -> list[str]:
        conf = nginx_conf(folder, edit(site(folder, api, port, read_timeout)))
        conf.write_text(conf.read_text().replace("daemon off;", "daemon off; user root;", 1))
        return ["nginx", "-p", str(folder), "-c", str(conf), "-e", "stderr"]

    async with fronted(folder, logs, upstream, command) as front:
        yield front


class Gate:
    """An answer whose second half waits until it is let go."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.gone = trio.Event()

    async def play(self, call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hel"))
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await call.gone()
                self.gone.set()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await self.open.wait()
            nursery.cancel_scope.cancel()
        if not self.gone.is_set():
            await call.events(text("lo"), done("Hello"), COMPLETED)
            await call.end()


async def until(process: trio.Process, marker: bytes) -> None:
    """Read until this has come."""
    assert process.stdout is not None
    seen = b""
    while marker not in seen:
        data = await process.stdout.receive_some()
        assert data, seen
        seen += data


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_events_come_as_they_are_made(tmp_path: Path, logs: Path, upstream: Upstream, version: str) -> None:
    gate = Gate()
    upstream.plays = [gate.play]
    async with nginx(tmp_path, logs, upstream) as front, front.streaming(version, "--compressed") as process:
        with trio.fail_after(10):
            await until(process, b'"Hel"')
            gate.open.set()
            await until(process, b"[DONE]")
            assert await process.wait() == 0


async def test_a_client_that_leaves_frees_the_upstream(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    gate = Gate()
    upstream.plays = [gate.play]
    async with nginx(tmp_path, logs, upstream) as front:
        async with front.streaming() as process:
            assert process.stdout is not None
            await process.stdout.receive_some()
        with trio.fail_after(5):
            await gate.gone.wait()


async def test_a_silence_longer_than_nginxs_patience_is_survived(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def silent(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hel"))
        await trio.sleep(SILENCE)
        await call.events(text("lo"), done("Hello"), COMPLETED)
        await call.end()

    upstream.plays = [silent]
    async with nginx(tmp_path, logs, upstream, read_timeout="20s") as front:
        body = msgspec.json.encode(hello(stream=True)).decode()
        status, said = await front.curl("/v1/chat/completions", "-d", body)
    assert (status, said.count(": keepalive"), "[DONE]" in said) == (200, 2, True)


async def test_who_and_what_is_let_in(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with nginx(tmp_path, logs, upstream) as front:
        for path in INSIDE:
            assert (await front.curl(path, "--path-as-is", "-H", "x-forwarded-for;"))[0] == 404
        (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
        (tmp_path / "allowed").write_bytes(b" " * (1 << 20))
        status, said = await front.curl("/v1/responses", "--http1.1", "--data-binary", f"@{tmp_path}/large")
        assert (status, msgspec.json.decode(said)["error"]["code"]) == (413, "request_too_large")
        status, said = await front.curl("/v1/responses", "--http1.1", "--data-binary", f"@{tmp_path}/allowed")
        assert (status, msgspec.json.decode(said)["error"]["code"]) == (400, None)
        spoofed = ("-H", "x-forwarded-for: 203.0.113.9", "-d", msgspec.json.encode(hello()).decode())
        assert (await front.curl("/v1/chat/completions", *spoofed))[0] == 200
        await front.daemon.logged("path=/v1/chat/completions status=200")
        assert "203.0.113.9" not in front.daemon.log.read_text()
        front.daemon.signal()
        await front.daemon.process.wait()
        status, said = await front.curl("/health")
        assert (status, msgspec.json.decode(said)["error"]["code"]) == (502, "codexd_down")


async def test_a_websocket_goes_through(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with nginx(tmp_path, logs, upstream) as front:
        status, _ = await front.curl(
            "/v1/responses", "--http1.1", "-H", "connection: upgrade", "-H", "upgrade: websocket",
            "-H", "sec-websocket-version: 13", "-H", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", "--max-time", "2",
        )  # fmt: skip
        assert status == 101


async def test_instances_by_path(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    instances = (PACKAGING / "nginx" / "instances.conf").read_text()
    assert "/run/codexd/$person/" in instances
    instances = instances.replace("/run/codexd/$person/", f"{tmp_path}/$person/")
    (tmp_path / "alice").mkdir()
    (tmp_path / "alice" / "api.sock").symlink_to(tmp_path / "api.sock")

    def edit(site: str) -> str:
        return site.replace("    location / {", f"{instances}\n    location / {{", 1)

    async with nginx(tmp_path, logs, upstream, edit=edit) as front:
        status, models = await front.curl("/alice/v1/models?x=1")
        assert (status, '"gpt-5.5"' in models) == (200, True)
        body = msgspec.json.encode(hello()).decode()
        assert (await front.curl("/alice/v1/chat/completions", "-d", body))[0] == 200
        assert (await front.curl("/bob/v1/models"))[0] == 502
        for closed in ("/alice/auth/login", "/alice/../alice/auth/login", "/Alice/v1/models"):
            assert (await front.curl(closed, "--path-as-is"))[0] != 200


async def test_caddy(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    if shutil.which("caddy") is None:
        pytest.skip("caddy is not installed")
    gate = Gate()
    upstream.plays = [gate.play]
    certificate(tmp_path)

    def command(api: str, port: int) -> list[str]:
        shipped = (PACKAGING / "caddy" / "Caddyfile").read_text()
        tls = f"tls {tmp_path}/codexd.pem {tmp_path}/codexd.key"
        shipped = shipped.replace("unix//run/codexd/api.sock", api.replace("unix:", "unix/"))
        shipped = shipped.replace("codexd.example.com {", f"https://localhost:{port} {{\n\t{tls}", 1)
        options = f"{{\n\tadmin off\n\tauto_https off\n\tstorage file_system {tmp_path}/caddy\n}}\n"
        (tmp_path / "Caddyfile").write_text(options + shipped)
        home = f"HOME={tmp_path}"
        return ["env", home, f"XDG_CONFIG_HOME={tmp_path}", "caddy", "run", "--config", str(tmp_path / "Caddyfile"),
                "--adapter", "caddyfile"]  # fmt: skip

    async with fronted(tmp_path, logs, upstream, command) as front, front.streaming() as process:
        with trio.fail_after(10):
            await until(process, b'"Hel"')
            gate.open.set()
            await until(process, b"[DONE]")
        for path in INSIDE:
            assert (await front.curl(path, "--path-as-is", "-H", "x-forwarded-for;"))[0] == 404


async def test_haproxy(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    """It adds a field of its own behind what the client sent, which here is an empty one."""
    if shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed")
    certificate(tmp_path)
    (tmp_path / "both.pem").write_text((tmp_path / "codexd.pem").read_text() + (tmp_path / "codexd.key").read_text())

    def command(api: str, port: int) -> list[str]:
        conf = tmp_path / "haproxy.cfg"
        conf.write_text(
            "defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n option forwardfor\n"
            f"frontend f\n bind 127.0.0.1:{port} ssl crt {tmp_path}/both.pem\n default_backend b\n"
            f"backend b\n server s {api.replace('unix:', 'unix@')}\n"
        )
        return ["haproxy", "-f", str(conf)]

    async with fronted(tmp_path, logs, upstream, command) as front:
        for path in ("/metrics", "/metrics/", "//metrics"):
            for words in ((), ("-H", "x-forwarded-for;"), ("-H", "x-forwarded-for: 127.0.0.1")):
                status, said = await front.curl(path, "--path-as-is", *words)
                assert (status, msgspec.json.decode(said)["error"]["code"]) == (403, "only_local")
        body = ("-H", "x-forwarded-for: 203.0.113.9", "-d", msgspec.json.encode(hello()).decode())
        assert (await front.curl("/v1/chat/completions", *body))[0] == 200
        await front.daemon.logged("path=/v1/chat/completions status=200")
        assert "203.0.113.9" not in front.daemon.log.read_text()
