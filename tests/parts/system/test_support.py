"""Where codexd runs, and what stands in for what only Linux has."""

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from codexd.lowlevel import reactor
from codexd.system import peer, support
from support.daemon import ROOT, environment
from support.demo import base_url, curl_of, demo

WINDOWS = """
import sys
for name in ("pwd", "grp", "resource", "fcntl", "termios", "pty", "tty"):
    sys.modules[name] = None
sys.platform = "win32"
from codexd.{module} import cli
sys.argv = ["{name}", "--version"]
cli()
"""


@pytest.mark.parametrize(("name", "module"), [("codexd", "__main__"), ("codexctl", "ctl.__main__")])
def test_on_windows_it_says_one_sentence(tmp_path: Path, name: str, module: str) -> None:
    script = WINDOWS.format(name=name, module=module)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"{name}: codexd does not run natively on Windows. Install WSL with `wsl --install`, and codexd inside it.\n"
    )


def test_what_differs_elsewhere_is_said() -> None:
    assert support.untested_system("linux") is None
    assert support.unsupported("darwin") is None
    assert "codexd is not tested on macOS. The API, codexctl and sign-ins work" in str(
        support.untested_system("darwin")
    )
    assert "on freebsd14" in str(support.untested_system("freebsd14"))


def bounds() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for line in project["dependencies"]:
        name, bound = re.fullmatch(r"([a-z0-9-]+)(.*)", line).groups()  # type: ignore[union-attr]
        found[name] = bound
    return found


@pytest.mark.parametrize("name", support.TESTED)
def test_a_plain_install_can_only_choose_what_was_tested(name: str) -> None:
    series = support.TESTED[name]
    major, minor = map(int, series.split("."))
    assert bounds()[name] in (f">={series},<{major}.{minor + 1}", f"=={series}.0")
    assert metadata.version(name).startswith(f"{series}.")
    assert re.search(rf"^{name}(\[[a-z,]+\])?=={re.escape(series)}\.", (ROOT / "requirements.lock").read_text(), re.M)


def test_another_version_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert support.untested_versions() == []
    monkeypatch.setitem(support.TESTED, "quart", "0.2")
    monkeypatch.setitem(support.TESTED, "nothing-of-that-name", "1.0")
    assert support.untested_versions() == [
        f"quart {metadata.version('quart')} (tested with 0.2)",
        "nothing-of-that-name is missing (tested with 1.0)",
    ]


def test_a_package_that_does_not_fit_is_named(tmp_path: Path) -> None:
    """As a plain install once chose it: quart 0.23 beside quart-trio 0.12."""
    package = tmp_path / "site" / "quart-0.23.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: quart\nVersion: 0.23.0\n")
    (tmp_path / "site" / "quart_trio.py").write_text("from quart.ctx import RequestContext\n")
    (tmp_path / "site" / "quart").mkdir()
    for name in ("__init__", "ctx"):
        (tmp_path / "site" / "quart" / f"{name}.py").write_text("")
    env = environment(tmp_path)
    env |= {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "codexd", "--demo"], capture_output=True, text=True, env=env, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("codexd: incompatible package: quart 0.23.0 (tested with 0.22). Reinstall")
    assert "Traceback" not in done.stderr


# --- without what only Linux has


async def test_without_epoll_a_stream_is_watched_by_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reactor, "select", SimpleNamespace(**{k: v for k, v in vars(select).items() if k != "epoll"}))
    ours, theirs = socket.socketpair()
    found: list[bytes] = []
    with ours, theirs:
        ours.setblocking(False)

        def step() -> bool:
            data = ours.recv(10)
            if data == b"fail":
                raise ValueError(data)
            found.append(data)
            return data != b"end"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reactor.watch, ours.fileno(), step)
            for word in (b"one", b"two", b"end"):
                await trio.testing.wait_all_tasks_blocked()
                theirs.send(word)
        assert found == [b"one", b"two", b"end"]
        theirs.send(b"fail")
        with pytest.raises(ValueError, match="fail"):
            await reactor.watch(ours.fileno(), step)


PEER = """
import ctypes, os, socket
del socket.SO_PEERCRED
from codexd.system.peer import peer_of
a, b = socket.socketpair()
found = peer_of(a)
assert found.pid is None and found.uid == os.getuid() and os.getgid() in found.gids, found
"""
SHIM = """
#define _GNU_SOURCE
#include <sys/socket.h>
int getpeereid(int fd, uid_t *uid, gid_t *gid) {
    struct ucred found; socklen_t size = sizeof found;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &found, &size)) return -1;
    *uid = found.uid; *gid = found.gid; return 0;
}
"""


@pytest.fixture
def shim(tmp_path: Path) -> str:
    """A library with getpeereid(3), which the C library of macOS and the BSDs has."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("a C compiler on Linux is needed here")
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "shim.so", "shim.c"], cwd=tmp_path, check=True, timeout=60)
    return str(tmp_path / "shim.so")


def test_without_so_peercred_getpeereid_tells(tmp_path: Path, shim: str) -> None:
    env = environment(tmp_path) | {"LD_PRELOAD": shim}
    subprocess.run([sys.executable, "-c", PEER], env=env, check=True, timeout=60)


def test_where_nobody_tells_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer.peer_of(ours).uid == os.getuid()
        monkeypatch.setattr(peer, "socket", SimpleNamespace())
        monkeypatch.setattr(peer.ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
        with pytest.raises(OSError, match="does not report"):
            peer.peer_of(ours)


HIDDEN = """
import select, socket, sys, types
import codexd.lowlevel.reactor
codexd.lowlevel.reactor.select = types.SimpleNamespace()
for name in ("SO_PEERCRED", "TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"):
    delattr(socket, name)
from codexd.__main__ import cli
sys.argv[0] = "codexd"
cli()
"""


@pytest.mark.needs("curl")
def test_the_demo_runs_without_the_linux_parts(tmp_path: Path, shim: str) -> None:
    """Streams, and codexctl by getpeereid."""
    command = [sys.executable, "-c", HIDDEN, "--demo"]
    with demo(tmp_path, tmp_path / "log", command=command, LD_PRELOAD=shim) as said:
        socket_path = re.search(r"CODEXCTL_SOCKET=(\S+)", said)
        assert socket_path is not None
        assert base_url(said).startswith("http://127.0.0.1:")
        streamed = subprocess.run(["bash", "-c", curl_of(said)], capture_output=True, text=True, timeout=60, check=True)
        assert streamed.stdout.rstrip().endswith("[DONE]")
        status = subprocess.run(
            [sys.executable, "-m", "codexd.ctl", "status"], capture_output=True, text=True, timeout=60, check=False,
            env=environment(tmp_path) | {"CODEXCTL_SOCKET": socket_path[1]},
        )  # fmt: skip
        assert status.returncode == 0, status.stderr
