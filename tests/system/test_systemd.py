"""The units under a real systemd: a server's life from the first start to the last stop."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trustme

from support.box import Box, booted, why_not
from support.daemon import ROOT

UNITS = ROOT / "systemd"
INSTALLED = ROOT / "build" / "system"
"""``make system`` installs codexd there."""

pytestmark = pytest.mark.system
ASK = '{"model": "gpt-5.5", "stream": true, "messages": [{"role": "user", "content": "one two three four five six"}]}'
DEFAULTS = """
CODEXD_OAUTH__ISSUER=http://127.0.0.1:9000
CODEXD_BACKEND__URL=http://127.0.0.1:9000/backend-api
"""


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", ["codexd.service", "codexd@.service"])
def test_the_sandbox_is_as_tight_as_promised(unit: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=12", "--no-pager", str(UNITS / unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.needs("make")
def test_uninstall_removes_what_install_put_there_and_keeps_the_configuration(tmp_path: Path) -> None:
    if not (INSTALLED / ".done").exists():
        pytest.skip("make system installs codexd here")
    shutil.copytree(INSTALLED, tmp_path, dirs_exist_ok=True, symlinks=True, ignore=shutil.ignore_patterns(".done"))
    subprocess.run(["make", "-s", "-C", ROOT, "uninstall", f"DESTDIR={tmp_path}"], check=True, timeout=60)
    left = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if not path.is_dir()]
    assert sorted(left) == ["etc/codexd/config.toml", "etc/default/codexd"]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    if (why := why_not()) is not None:
        pytest.skip(why)
    if not (INSTALLED / ".done").exists():
        pytest.skip("make system installs codexd for the box")
    with booted(tmp_path_factory.mktemp("box"), {ROOT: "/src"}) as made:
        made.run("cp", "-a", "/src/build/system/.", "/")
        made.run("systemd-sysusers", "codexd.conf")
        made.run("systemd-tmpfiles", "--create", "codexd.conf")
        made.write("/etc/default/codexd", DEFAULTS)
        made.run("systemctl", "daemon-reload")
        made.run("systemd-run", "--unit=chatgpt", "--collect", "--setenv=PYTHONPATH=/usr/lib/codexd", "/usr/bin/python3",
                 "/src/tests/system/chatgpt.py", "127.0.0.1:9000", "0.15", "/tmp/tokens.json")  # fmt: skip
        made.until("access_token", "cat", "/tmp/tokens.json")
        yield made


@pytest.fixture(autouse=True)
def _the_journal_on_failure(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    report = getattr(request.node, "report", None)
    if report is not None and report.failed and "box" in request.fixturenames:
        box: Box = request.getfixturevalue("box")
        print(box.run("journalctl", "--no-pager", "-n", "60", check=False))


def curl(box: Box, path: str, *words: str, socket: str = "/run/codexd/api.sock") -> str:
    return box.run("curl", "-sS", "--max-time", "30", "--unix-socket", socket, *words, f"http://codexd{path}")


def show(box: Box, what: str, unit: str = "codexd") -> str:
    return box.run("systemctl", "show", "-P", what, unit)


def test_every_unit_is_understood(box: Box) -> None:
    names = sorted(path.name for path in UNITS.glob("codexd*.s*") if path.suffix in (".service", ".socket"))
    assert box.run("systemd-analyze", "verify", *(f"/usr/lib/systemd/system/{name}" for name in names)) == ""


def test_the_first_request_starts_it(box: Box) -> None:
    box.run("systemctl", "enable", "--now", "codexd.socket", "codexd-control.socket")
    assert show(box, "ActiveState") == "inactive"
    assert box.run("stat", "-c", "%a %U %G", "/run/codexd/api.sock") == "660 codexd codexd-clients"
    assert box.run("stat", "-c", "%a %U %G", "/run/codexd/control.sock") == "660 codexd codexd"
    health = msgspec.json.decode(curl(box, "/health"))
    assert (health["status"], show(box, "ActiveState")) == ("signed out", "active")
    assert show(box, "StatusText") == "signed out: run `codexctl login`"
    assert box.run("stat", "-c", "%a %U", "/var/lib/codexd") == "700 codexd"


def test_a_sign_in_shows_in_the_status(box: Box) -> None:
    said = box.run("codexctl", "login", "--device")
    assert "Signed in as" in said
    assert "You wrote: one two three" in curl(box, "/v1/chat/completions", "-d", ASK.replace("true", "false"))
    said = box.until("week 34%, 0 in progress", "systemctl", "show", "-P", "StatusText", "codexd")
    assert said.startswith("signed in as ")
    assert "5h 12%, week 34%, 0 in progress" in said
    assert '"signed_in":true' in box.run("codexctl", "status", "--json").replace(" ", "")


def streaming(box: Box) -> subprocess.Popen[str]:
    """A stream that takes seconds, with its first bytes come."""
    words = ("curl", "-sSN", "--unix-socket", "/run/codexd/api.sock", "-d", ASK, "http://codexd/v1/chat/completions")
    process = subprocess.Popen(box.command(*words), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("data:")
    return process


def rest(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out


def test_a_reload_keeps_a_stream(box: Box) -> None:
    pid = show(box, "MainPID")
    stream = streaming(box)
    box.write("/etc/codexd/config.toml", "[models.aliases]\nmine = 'gpt-5.5'\n")
    box.run("systemctl", "reload", "codexd")
    assert '"mine"' in curl(box, "/v1/models")
    assert "[DONE]" in rest(stream)
    assert show(box, "MainPID") == pid


def test_a_restart_loses_no_connection_and_no_stream(box: Box) -> None:
    pid = show(box, "MainPID")
    stream = streaming(box)
    restart = subprocess.Popen(box.command("systemctl", "restart", "codexd"))
    box.until("deactivating", "systemctl", "show", "-P", "ActiveState", "codexd")
    queued = [subprocess.Popen(box.command("curl", "-sS", "--unix-socket", "/run/codexd/api.sock",
              "http://codexd/health"), stdout=subprocess.PIPE, text=True) for _ in range(5)]  # fmt: skip
    assert "[DONE]" in rest(stream)
    assert all('"version"' in rest(each) for each in queued)
    assert restart.wait(timeout=60) == 0
    assert show(box, "MainPID") != pid
    assert show(box, "Result") == "success"


def test_a_wedged_daemon_is_killed_and_comes_back(box: Box) -> None:
    box.write("/etc/systemd/system/codexd.service.d/fast.conf", "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n")
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "restart", "codexd")
    restarts, pid = int(show(box, "NRestarts")), show(box, "MainPID")
    box.run("kill", "-STOP", pid)
    box.until(str(restarts + 1), "systemctl", "show", "-P", "NRestarts", "codexd")
    assert '"version"' in curl(box, "/health")
    assert show(box, "MainPID") != pid
    journal = box.run("journalctl", "-u", "codexd", "-o", "cat", "--no-pager")
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal  # and where it hung
    box.run("rm", "/etc/systemd/system/codexd.service.d/fast.conf")
    box.run("systemctl", "daemon-reload")


def test_an_idle_daemon_goes_and_the_next_request_brings_it_back(box: Box) -> None:
    box.write("/etc/default/codexd", f"{DEFAULTS}CODEXD_SERVER__EXIT_IDLE_SECONDS=1\n")
    box.run("systemctl", "restart", "codexd")
    stream = streaming(box)
    assert "[DONE]" in rest(stream)
    box.until("inactive", "systemctl", "show", "-P", "ActiveState", "codexd")
    assert show(box, "Result") == "success"
    assert '"mine"' in curl(box, "/v1/models")
    box.write("/etc/default/codexd", DEFAULTS)
    box.run("systemctl", "restart", "codexd")


def test_tcp_beside_the_unix_socket(box: Box) -> None:
    """As the README has it, on a running codexd; a restart of the daemon keeps both."""
    command = re.search(r"sudo (systemctl enable codexd-tcp[^`]*)", (ROOT / "docs" / "server.md").read_text())
    assert command is not None
    box.run("bash", "-c", command[1].replace("sudo ", ""))
    for _ in range(2):
        assert '"version"' in box.run("curl", "-sS", "http://127.0.0.1:3000/health")
        assert '"version"' in curl(box, "/health")
        box.run("systemctl", "restart", "codexd")
    box.run("systemctl", "stop", "codexd")
    assert '"version"' in box.run("curl", "-sS", "http://127.0.0.1:3000/health")
    assert show(box, "ActiveState") == "active"


def test_an_instance_for_each_person(box: Box) -> None:
    box.run("install", "-m", "600", "-D", "/tmp/tokens.json", "/etc/codexd/alice-tokens.json")
    box.write("/etc/codexd/alice.toml", "[models.aliases]\nalices = 'gpt-5.5'\n", "600")
    box.write(
        "/etc/systemd/system/codexd@alice.service.d/sign-in.conf",
        "[Service]\nLoadCredential=tokens.json:/etc/codexd/alice-tokens.json\n",
    )
    box.run("systemctl", "daemon-reload")
    for name in ("alice", "bob"):
        box.run("systemctl", "enable", "--now", f"codexd@{name}.socket", f"codexd-control@{name}.socket")
    socket = "/run/codexd/alice/api.sock"
    assert msgspec.json.decode(curl(box, "/health", socket=socket))["signed_in"] is True
    assert '"alices"' in curl(box, "/v1/models", socket=socket)
    bob = "/run/codexd/bob/api.sock"
    assert msgspec.json.decode(curl(box, "/health", socket=bob))["signed_in"] is False
    assert "signed in" in box.run("codexctl", "--socket", "/run/codexd/alice/control.sock", "status")
    assert show(box, "StatusText", "codexd@bob") == "signed out: run `codexctl login`"


def test_a_sign_in_that_is_kept_encrypted(box: Box) -> None:
    box.run("systemd-creds", "setup")
    box.run(
        "systemd-creds",
        "encrypt",
        "--with-key=host",
        "--name=tokens.json",
        "/tmp/tokens.json",
        "/etc/codexd/carol.cred",
    )
    box.write(
        "/etc/systemd/system/codexd@carol.service.d/sign-in.conf",
        "[Service]\nLoadCredentialEncrypted=tokens.json:/etc/codexd/carol.cred\n",
    )
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "enable", "--now", "codexd@carol.socket", "codexd-control@carol.socket")
    carol = "/run/codexd/carol/api.sock"
    assert msgspec.json.decode(curl(box, "/health", socket=carol))["signed_in"] is True


TLS_SERVER = """
import http.server, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/chatgpt.test.pem")
server = http.server.HTTPServer(("127.0.0.1", 9443), http.server.SimpleHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


def test_a_company_ca_that_the_system_trusts_is_trusted(box: Box) -> None:
    """In the sandbox of the unit, whose files are the system's: by update-ca-certificates, and by a file of its own."""
    if box.run("sh", "-c", "command -v update-ca-certificates", check=False) == "":
        pytest.skip("ca-certificates is needed here")
    authority = trustme.CA()
    made = authority.issue_cert("chatgpt.test")
    box.write("/tmp/chatgpt.test.pem", made.private_key_and_cert_chain_pem.bytes(), "644")
    box.write("/tmp/tls.py", TLS_SERVER)
    box.run("sh", "-c", "echo 127.0.0.1 chatgpt.test >> /etc/hosts")
    box.run("systemd-run", "--unit=tls", "--collect", "/usr/bin/python3", "/tmp/tls.py")
    config = "[backend]\nurl = 'https://chatgpt.test:9443/backend-api'\n[oauth]\nissuer = 'https://chatgpt.test:9443'\n"
    box.write("/etc/codexd/erin.toml", config)
    # Without the addresses of the other tests, which are in the environment of all instances.
    box.write("/etc/systemd/system/codexd@erin.service.d/own.conf", "[Service]\nEnvironmentFile=\n")
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "enable", "--now", "codexd@erin.socket", "codexd-control@erin.socket")
    doctor = ("codexctl", "--socket", "/run/codexd/erin/control.sock", "doctor")
    box.until("is not trusted", *doctor)

    ca = authority.cert_pem.bytes()
    box.write("/etc/codexd/corp.pem", ca)
    box.write("/etc/codexd/erin.toml", config.replace("[backend]\n", "[backend]\nca_file = '/etc/codexd/corp.pem'\n"))
    box.run("systemctl", "restart", "codexd@erin")  # an instance gets its configuration at its start
    box.until("chatgpt.test answers over TLS", *doctor)
    box.write("/etc/codexd/erin.toml", config)
    box.run("systemctl", "restart", "codexd@erin")  # an instance gets its configuration at its start
    box.until("is not trusted", *doctor)

    box.write("/usr/local/share/ca-certificates/corp.crt", ca)
    box.run("update-ca-certificates")
    box.until("chatgpt.test answers over TLS", *doctor)
    box.run("systemctl", "stop", "codexd@erin.socket", "codexd-control@erin.socket", "codexd@erin", "tls")


def test_in_a_persons_own_session(box: Box) -> None:
    box.run("useradd", "--create-home", "dave")
    uid = box.run("id", "-u", "dave")
    box.run("install", "-d", "-m", "700", "-o", "dave", f"/run/user/{uid}")
    box.write(
        f"/run/systemd/system/user-runtime-dir@{uid}.service.d/box.conf", "[Service]\nExecStart=\nExecStart=true\n"
    )
    box.write("/home/dave/.config/codexd/config.toml", "[server]\nport = 3333\n")
    box.run("chown", "-R", "dave:", "/home/dave")
    box.run("systemctl", "daemon-reload")
    box.run("systemctl", "start", f"user@{uid}")

    def as_dave(*words: str) -> str:
        return box.run("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "env", "HOME=/home/dave",
                       f"XDG_RUNTIME_DIR=/run/user/{uid}", *words)  # fmt: skip

    as_dave("systemctl", "--user", "enable", "--now", "codexd")
    assert as_dave("systemctl", "--user", "show", "-P", "StatusText", "codexd") == "signed out: run `codexctl login`"
    assert '"version"' in box.run("curl", "-sS", "http://127.0.0.1:3333/health")
    assert "signed out" in as_dave("codexctl", "health")
    as_dave("systemctl", "--user", "stop", "codexd")
    assert as_dave("systemctl", "--user", "show", "-P", "Result", "codexd") == "success"

    # The machine's own configuration is not his to read: what is his is used, and else the defaults are.
    box.run("chmod", "600", "/etc/codexd/config.toml")
    assert as_dave("codexd", "--check-config") == "/home/dave/.config/codexd/config.toml: ok"
    box.run("mv", "/home/dave/.config/codexd/config.toml", "/home/dave/config.toml")
    said = as_dave("codexd", "--check-config")
    assert "ignoring /etc/codexd/config.toml: permission denied" in said
    assert "built-in defaults: ok" in said
    box.run("mv", "/home/dave/config.toml", "/home/dave/.config/codexd/config.toml")
    box.run("chown", "root:codexd", "/etc/codexd/config.toml")
    box.run("chmod", "640", "/etc/codexd/config.toml")

    # Installed as pip and pipx do it, in a folder of his own, there is no unit yet.
    box.run("install", "-d", "-o", "dave", "/home/dave/app")
    box.run("ln", "-s", "/usr/bin/python3", "/home/dave/app/python3")
    for name in ("codexd", "codexctl"):
        text = box.run("cat", f"/usr/bin/{name}").replace("/usr/bin/python3", "/home/dave/app/python3", 1)
        box.write(f"/home/dave/app/{name}", text, "755")
    as_dave("systemctl", "--user", "disable", "codexd")
    codexctl = "/home/dave/app/codexctl"
    said = as_dave(codexctl, "service", "install")
    assert "Installed /home/dave/.config/systemd/user/codexd.service. codexd is running." in said
    assert "sudo loginctl enable-linger dave" in said
    assert "/home/dave/app/codexd" in as_dave("systemctl", "--user", "show", "-P", "ExecStart", "codexd")
    assert '"version"' in box.run("curl", "-sS", "http://127.0.0.1:3333/health")
    assert "codexd.service: active, enabled, stops at logout" in as_dave(codexctl, "service", "status")
    assert "signed out" in as_dave(codexctl, "health")
    assert '"outcome":"ok"' in as_dave(codexctl, "service", "status", "--json")
    as_dave(codexctl, "service", "install")  # again, as after an upgrade
    assert "Removed the service" in as_dave(codexctl, "service", "remove")
    box.run("test", "!", "-e", "/home/dave/.config/systemd/user/codexd.service")
    # With the system's command it is the system's unit.
    assert "user unit codexd.service from the installed package" in as_dave("codexctl", "service", "install")
    assert "Removed the service" in as_dave("codexctl", "service", "remove")


def test_a_stop_drains(box: Box) -> None:
    curl(box, "/health")
    stream = streaming(box)
    stop = subprocess.Popen(box.command("systemctl", "stop", "codexd.service"))
    assert "[DONE]" in rest(stream)
    assert stop.wait(timeout=60) == 0
    assert show(box, "Result") == "success"


def test_nothing_was_denied_or_unexpected(box: Box) -> None:
    lines = box.run(
        "journalctl", "-o", "cat", "--no-pager", "-p", "warning", "-u", "codexd", "-u", "codexd@alice"
    ).splitlines()
    # Python's printer of tracebacks may itself fall over a frame that the watchdog's signal met half made (1 in 1500 with
    # nothing but the standard library). A crash of ours would end in the result 'signal' or 'core-dump'.
    aborted = ("status=6/ABRT", "status=11/SEGV")
    expected = ("not signed in", "Watchdog timeout", "Failed with result 'watchdog'", *aborted)
    assert [line for line in lines if not any(each in line for each in expected)] == []
