"""The daemon as a process: how it starts, refuses to start, logs, drains and stops."""

import hashlib
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from codexd import __version__
from support.daemon import PATIENCE, connected, credentials, environment, hello, post, running
from support.files import written
from support.secrets import CLIENT_KEY, MARKER, leaks
from support.upstream import ADDED, COMPLETED, CREATED, Call, Upstream, done, text

pytestmark = pytest.mark.loopback


def codexd(tmp_path: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "codexd", *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment(tmp_path) | env,
        cwd=tmp_path,
        timeout=PATIENCE,
        check=False,
    )


def test_version(tmp_path: Path) -> None:
    assert codexd(tmp_path, "--version").stdout == f"codexd {__version__}\n"


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[server]\nprot = 1\n", "config.toml:2: server.prot: unknown key; did you mean port?"),
        ("[server]\nport = 'x'\n", "config.toml:2: server.port: must be a whole number, not text in quotes"),
        ("[server]\nbind = ['0.0.0.0:3000']\n", "server.allow_unauthenticated = true"),
        ("[server]\nbind = ['0.0.0.0:3000']\n", "[server.client_keys]"),
        (
            "[logging]\nlevel = 'loud'\n",
            'config.toml:2: logging.level: must be one of debug, info, warn, error, not "loud"',
        ),
        ("server = 3\n", "server is a section: put its keys below a [server] header"),
        ("[server\n", "not valid TOML"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_with_78(tmp_path: Path, toml: str, said: str) -> None:
    (tmp_path / "config.toml").write_text(toml)
    for extra in ([], ["--check-config"]):
        refused = codexd(tmp_path, "--config", str(tmp_path / "config.toml"), *extra)
        assert (refused.returncode, refused.stdout) == (78, "")
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_check_config_only_checks(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[server]\nport = 0\n")
    checked = codexd(tmp_path, "--check-config", CONFIG_PATH=str(tmp_path / "config.toml"))
    assert (checked.returncode, checked.stdout) == (0, f"{tmp_path}/config.toml: ok\n")
    assert codexd(tmp_path, "--check-config").stdout == "built-in defaults: ok\n"
    missing = codexd(tmp_path, "--check-config", "--config", "nowhere.toml")
    assert missing.returncode == 78
    assert "nowhere.toml: cannot be read: No such file or directory" in missing.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = codexd(tmp_path, PORT=port)
    assert refused.returncode == 1
    assert (
        f"cannot listen on 127.0.0.1:{port}: the address is already in use. Stop the other program, or"
        in refused.stderr
    )


async def test_it_drains_and_a_stream_ends_well(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    go_on = trio.Event()

    async def slow(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hel"))
        await go_on.wait()
        await call.events(text("lo"), done("Hello"), COMPLETED)
        await call.end()

    upstream.plays = [slow]
    async with running(tmp_path, logs, upstream) as daemon, connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello(stream=True)))
        await client.until(b'"Hel"')
        daemon.signal()
        await daemon.logged("stopping: requests in progress may finish")
        with pytest.raises(OSError), trio.fail_after(PATIENCE):
            while True:
                async with connected(daemon) as late:
                    await late.send(b"x")
        go_on.set()
        assert b"data: [DONE]" in await client.all()
        with trio.fail_after(PATIENCE):
            assert await daemon.process.wait() == 0


async def silent(call: Call) -> None:
    await call.start()
    await call.events(CREATED, ADDED, text("Hel"))
    await call.gone()


async def test_the_drain_has_an_end(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.plays = [silent]
    async with running(tmp_path, logs, upstream, server={"drain_seconds": 0.3}) as daemon, connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello(stream=True)))
        await client.until(b'"Hel"')
        daemon.signal()
        body = await client.all(seconds=5)
        assert b"[DONE]" not in body
        assert b'"code":"shutting_down"' in body
        assert body.endswith(b"0\r\n\r\n")  # ended with a word, and not cut
        with trio.fail_after(PATIENCE):
            assert await daemon.process.wait() == 0


async def test_a_second_signal_stops_at_once(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    upstream.plays = [silent]
    async with running(tmp_path, logs, upstream, server={"drain_seconds": 600}) as daemon, connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello(stream=True)))
        await client.until(b'"Hel"')
        daemon.signal(signal.SIGINT)
        await daemon.logged("stopping: requests in progress may finish")
        daemon.signal()
        with trio.fail_after(PATIENCE):
            assert await daemon.process.wait() == 0


async def test_client_keys_are_asked_for_and_named_in_the_log(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    keys = {"laptop": f"sha256:{hashlib.sha256(CLIENT_KEY.encode()).hexdigest()}", "phone": f"{CLIENT_KEY}-2"}
    async with (
        running(tmp_path, logs, upstream, server={"client_keys": keys}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        refused = await http.get("/v1/models")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await http.get("/v1/models", headers={"authorization": f"Bearer {CLIENT_KEY}-3"})).status_code == 401
        assert (await http.get("/nope")).status_code in (401, 404)
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/v1/models", headers={"authorization": f"Bearer {CLIENT_KEY}"})).status_code == 200
        assert "key=laptop" in await daemon.logged("request finished .*models.* status=200")
        assert (await http.get("/v1/models", headers={"x-api-key": f"{CLIENT_KEY}-2"})).status_code == 200
        await daemon.logged("key=phone")


@pytest.mark.parametrize("form", ["console", "journal", "logfmt", "json"])
async def test_no_secret_reaches_a_log_in_any_form(form: str, tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    keys = {"laptop": CLIENT_KEY}
    logging = {"format": form, "dir": "logs"}
    body = hello(user=f"Bearer {CLIENT_KEY}", metadata={"authorization": CLIENT_KEY, "access_token": CLIENT_KEY})
    async with running(tmp_path, logs, upstream, server={"client_keys": keys}, logging=logging) as daemon:
        async with httpx.AsyncClient(
            base_url=daemon.base, headers={"authorization": f"Bearer {CLIENT_KEY}"}, timeout=PATIENCE
        ) as http:
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
            # A broken credentials file is quoted by nobody either.
            (daemon.state / "tokens.json").write_text(f'{{"access_token": "{CLIENT_KEY}", "refresh_token": 7}}')
            assert (await http.post("/v1/chat/completions", json=body)).status_code == 401
            # Nor is a token that cannot be sent: the HTTP library would quote it in its complaint.
            credentials(daemon.state, access_token=f"{CLIENT_KEY}\n")
            refused = await http.post("/v1/chat/completions", json=body)
            assert (refused.status_code, MARKER in refused.text) == (401, False)
        files = sorted(path.name.split("-", 3)[3] for path in (daemon.state / "logs").iterdir())
        assert files == ["debug.log", "error.log", "info.log"]
        assert list(leaks(daemon.state / "logs")) == []
        assert list(leaks(logs)) == []
        assert "request after conversion" in daemon.log.read_text()


async def test_no_secret_reaches_a_core_dump_or_the_arguments(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with running(tmp_path, logs, upstream) as daemon:
        process = Path(f"/proc/{daemon.process.pid}")
        core = next(line for line in (process / "limits").read_text().splitlines() if line.startswith("Max core file"))
        assert core.split()[4:6] == ["0", "0"]
        assert MARKER.encode() not in (process / "cmdline").read_bytes()


async def test_systemd_is_told(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(PATIENCE)
        async with running(tmp_path, logs, upstream, env={"NOTIFY_SOCKET": str(path)}) as daemon:
            assert await trio.to_thread.run_sync(notify.recv, 4096) == b"READY=1\nSTATUS=signed in, 0 in progress"
            daemon.signal()
            assert await trio.to_thread.run_sync(notify.recv, 4096) == b"STOPPING=1\nSTATUS=draining"
            assert await daemon.process.wait() == 0


async def test_systemd_is_told_who_signs_in_and_out(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(PATIENCE)
        environment = {"NOTIFY_SOCKET": str(path)}
        async with running(tmp_path, logs, upstream, signed_in=False, env=environment) as daemon:
            ready = b"READY=1\nSTATUS=signed out: run `codexctl login`"
            assert await trio.to_thread.run_sync(notify.recv, 4096) == ready
            credentials(daemon.state)
            async with httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http:
                await http.get("/health")
                assert await trio.to_thread.run_sync(notify.recv, 4096) == b"STATUS=signed in, 0 in progress"
                (daemon.state / "tokens.json").unlink()
                await http.get("/health")
                told = await trio.to_thread.run_sync(notify.recv, 4096)
                assert told == b"STATUS=signed out: run `codexctl login`"


async def test_signing_in_later_needs_no_restart(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with (
        running(tmp_path, logs, upstream, signed_in=False) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        refused = await http.post("/v1/chat/completions", json=hello())
        assert refused.status_code == 401
        assert "codexctl login" in refused.json()["error"]["message"]
        assert (await http.get("/health?ready=1")).status_code == 503
        credentials(daemon.state)
        assert (await http.post("/v1/chat/completions", json=hello())).status_code == 200


async def test_stored_responses_outlive_a_restart(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    for turn in (1, 2):
        async with (
            running(tmp_path, logs, upstream, storage={"responses": True}) as daemon,
            httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
        ):
            if turn == 1:
                made = await http.post("/v1/responses", json={"model": "gpt-5.5", "input": "one"})
            else:
                again = await http.get(f"/v1/responses/{made.json()['id']}")
                assert again.json() == made.json()
                body = {"model": "gpt-5.5", "input": "two", "previous_response_id": made.json()["id"]}
                assert (await http.post("/v1/responses", json=body)).status_code == 200
            daemon.signal()
            assert await daemon.process.wait() == 0
    texts = [part["text"] for item in upstream.calls[-1].json["input"] for part in item["content"]]
    assert texts == ["one", "Hello", "two"]


async def test_a_body_that_is_too_large_is_a_413_with_the_key_to_raise(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async with (
        running(tmp_path, logs, upstream, server={"max_body_bytes": 2000}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        refused = await http.post("/v1/chat/completions", content=b"x" * 3000)
        assert refused.status_code == 413
        assert "server.max_body_bytes" in refused.json()["error"]["message"]
        assert (await http.get("/health")).status_code == 200


async def test_the_models_survive_a_restart_without_a_network(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with running(tmp_path, logs, upstream) as daemon:
        await daemon.logged("model catalogue refreshed")
        with trio.fail_after(PATIENCE):
            await written(daemon.state, (daemon.state / "models.json").exists)
    copy = msgspec.json.decode((tmp_path / "state" / "models.json").read_bytes())
    copy["answer"]["models"].append({"slug": "gpt-only-on-disk"})
    (tmp_path / "state" / "models.json").write_bytes(msgspec.json.encode(copy))
    nowhere = {"url": "http://127.0.0.1:1/backend-api"}
    async with (
        running(tmp_path, logs, upstream, backend=nowhere) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        names = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
        assert "gpt-only-on-disk" in names


def test_the_default_is_loopback(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 3000))
        except OSError:
            pytest.skip("port 3000 is in use on this machine")
        taken.listen()
        assert "cannot listen on 127.0.0.1:3000" in codexd(tmp_path).stderr


def test_the_state_directory_follows_the_specification(tmp_path: Path) -> None:
    refused = codexd(tmp_path, PORT="0", CODEXD_LOGGING__DIR="/proc/nowhere")
    assert refused.returncode == 1
    assert "logging.dir: /proc/nowhere" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_state_directory_of_others_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o777)
    refused = codexd(tmp_path, STATE_DIRECTORY=str(state), PORT="0")
    assert (refused.returncode, "everyone can write to the state directory" in refused.stderr) == (1, True)
    assert "chmod 0700" in refused.stderr
    state.chmod(0o700)
    (state / "daemon.lock").symlink_to(tmp_path / "precious")
    refused = codexd(tmp_path, STATE_DIRECTORY=str(state), PORT="0")
    assert (refused.returncode, "is a symbolic link" in refused.stderr) == (1, True)
    assert not (tmp_path / "precious").exists()
