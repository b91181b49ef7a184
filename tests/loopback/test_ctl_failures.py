"""``codexctl``: exit codes and hints where there is no sign-in, no daemon, or no permission."""

import os
import tempfile
from pathlib import Path

import pytest
import trio

from support.codexctl import Make, Setup
from support.control import Said, codexctl, command
from support.daemon import environment

pytestmark = pytest.mark.loopback


async def test_without_a_sign_in_the_hint_is_to_sign_in(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        for words in ("status", "refresh", "usage", "logout", "try x"):
            said = await it.ctl(*words.split())
            assert (said.code, "codexctl login" in said.out + said.err) == (3, True), said


async def test_a_key_that_there_is_not_is_refused(shared: Setup) -> None:
    said = await shared.ctl("keys", "revoke", "nobody")
    assert (said.code, 'Unknown key "nobody"' in said.err) == (5, True)


async def test_a_socket_that_there_is_not_is_named(shared: Setup, tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere")
    said = await shared.ctl("--socket", path, "status")
    assert (said.code, said.out) == (4, "")
    assert "codexctl start" in said.err
    assert path in said.err
    json = await shared.ctl("status", "--json", "--socket", path)
    assert (json.code, json.json[0]["kind"]) == (4, "unreachable")


async def test_a_daemon_whose_listener_is_gone_is_not_healthy(setup: Make, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with setup(server={"bind": [f"unix:{path}"]}) as it:
        path.unlink()
        deaf = await it.ctl("health")
        assert (deaf.code, "did not answer" in deaf.err) == (5, True)
    assert (await codexctl(it.daemon, "status")).code == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
async def test_who_may_not_is_told_the_group(setup: Make) -> None:
    # Not below pytest's own directory, which only root may enter.
    with tempfile.TemporaryDirectory(prefix="codexd-test-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "control.sock"
        async with setup(control={"socket": str(path)}) as it:
            denied = await _as_nobody(it, path)
            assert denied.code == 4, denied.err
            assert "permission denied" in denied.err
            assert "usermod" not in denied.err
            assert "Use `sudo codexctl`" in denied.err
            # With the file's mode open, the daemon itself checks who it is.
            path.chmod(0o666)
            refused = await _as_nobody(it, path)
            assert refused.code == 5, refused.err
            assert "members of the group root may control codexd. Use `sudo codexctl`." in refused.err
            assert "uid=65534" in await it.daemon.logged("control request refused")


async def _as_nobody(it: Setup, path: Path) -> Said:
    # Only root may read the interpreter and the checkout: what is needed is imported before the user changes.
    script = (
        "import contextlib, grp, io, locale, os, pwd, sys; from codexd.ctl.__main__ import main\n"
        "with contextlib.redirect_stderr(io.StringIO()): main(['--socket', '/nowhere', 'status'])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.exit(main(['status']))"
    )
    environ = environment(it.daemon.state) | {"CODEXCTL_SOCKET": str(path)}
    done = await trio.run_process(
        [command()[0], "-c", script], capture_stdout=True, capture_stderr=True, check=False, env=environ
    )
    return Said(done.returncode, done.stdout.decode(), " ".join(done.stderr.decode().split()))
