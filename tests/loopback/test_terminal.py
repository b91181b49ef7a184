"""What a person sees who types: the daemon at a terminal, the demonstration, completion in the shells."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
import trio

from codexd.demo.issuer import EMAIL
from support.codexctl import device_code
from support.control import command, terminal
from support.daemon import PATIENCE, environment
from support.simulated import simulated

pytestmark = pytest.mark.loopback

DAEMON = [sys.executable, "-m", "codexd"]


async def test_a_daemon_at_a_terminal_signs_in_by_itself(tmp_path: Path) -> None:
    async with simulated() as chatgpt:
        config = {
            "server": {"port": 0},
            "oauth": {"issuer": chatgpt.url},
            "backend": {"url": f"{chatgpt.url}/backend-api"},
            "storage": {"dir": str(tmp_path / "state")},
        }
        (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
        words = [*DAEMON, "--config", str(tmp_path / "config.json")]
        async with terminal(words, environment(tmp_path)) as screen:
            code = await device_code(screen)
            assert "█▀" in screen.screen
            base = re.search(r"http://127.0.0.1:\d+(?=\s)", screen.screen.partition("listening")[2])
            assert base is not None
            async with httpx.AsyncClient(base_url=base[0], trust_env=False, timeout=PATIENCE) as client:
                assert (await client.get("/health?ready=1")).status_code == 503
                assert chatgpt.issuer.decide(code, "granted")
                await screen.until(f"Signed in as {EMAIL}.")
                assert (await client.get("/health?ready=1")).status_code == 200
            screen.process.send_signal(signal.SIGTERM)
            assert await screen.end() == 0
        # The next start has what it needs.
        async with terminal(words, environment(tmp_path)) as screen:
            await screen.until("listening")
            screen.process.send_signal(signal.SIGTERM)
            assert await screen.end() == 0
            assert "To sign in" not in screen.screen


async def test_a_daemon_at_a_terminal_whose_issuer_is_away_says_so_and_serves(tmp_path: Path) -> None:
    config = {
        "server": {"port": 0},
        "oauth": {"issuer": "http://127.0.0.1:9"},
        "backend": {"url": "http://127.0.0.1:9"},
    }
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    async with terminal([*DAEMON, "--config", str(tmp_path / "config.json")], environment(tmp_path)) as screen:
        await screen.until("The sign-in could not be started")
        assert "codexctl doctor" in screen.screen
        assert screen.screen.count("connection refused") == screen.screen.count("could not be started") == 1
        screen.process.send_signal(signal.SIGTERM)
        assert await screen.end() == 0


async def test_closing_the_terminal_of_a_daemon_stops_it_well(tmp_path: Path) -> None:
    async with simulated() as chatgpt:
        config = {"server": {"port": 0}, "oauth": {"issuer": chatgpt.url}, "backend": {"url": chatgpt.url}}
        (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
        async with terminal([*DAEMON, "--config", str(tmp_path / "config.json")], environment(tmp_path)) as screen:
            await device_code(screen)
            screen.process.send_signal(signal.SIGHUP)
            await screen.until("configuration reloaded")
            await screen.close()
            with trio.fail_after(PATIENCE):
                assert await screen.process.wait() == 0


async def test_the_demonstration_and_codexctl_as_it_says(tmp_path: Path) -> None:
    environ = environment(tmp_path) | {"PORT": "0"}
    async with terminal([*DAEMON, "--demo"], environ, columns=200) as demo:
        await demo.until("Press Ctrl-C to stop it.")
        found = re.search(r"export CODEXCTL_SOCKET=(\S+)\r?\n +(\S.*) status", demo.screen)
        assert found is not None, demo.screen
        environ["CODEXCTL_SOCKET"] = found[1]
        for words, said in ((["status"], EMAIL), (["logout"], "Signed out"), (["login"], "Signed in as")):
            async with terminal(command(*words), environ) as screen:
                assert await screen.end() == 0, screen.screen
                assert said in screen.screen
        demo.process.send_signal(signal.SIGINT)
        assert await demo.end() == 0
        assert "ERROR" not in demo.screen


def test_the_version_needs_next_to_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "codexd.ctl", "--version"],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        check=True,
    )
    assert done.stdout.startswith("codexctl ")
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "argparse" in imported
    heavy = {"trio", "httpx", "quart", "quart_trio", "hypercorn", "rich", "segno", "msgspec", "argcomplete", "ssl"}
    assert imported & heavy == set()


def test_status_needs_no_runtime_of_the_daemon(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "codexd.ctl", "status"],
        capture_output=True,
        text=True,
        env=environment(tmp_path),
        check=False,
    )
    assert done.returncode == 4
    imported = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert imported & {"trio", "httpx", "quart", "quart_trio", "hypercorn", "h11", "structlog", "segno"} == set()


def test_a_reader_that_has_enough_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "codexctl").write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
    (tmp_path / "codexctl").chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", "set -o pipefail; ./codexctl completion bash | true"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path),
        check=False,
    )
    assert done.stderr == ""


# --- completion

SHELLS = {
    "bash": (
        "source <(codexctl completion bash); COMP_LINE='codexctl {}'; COMP_POINT=${{#COMP_LINE}}; COMP_TYPE=9;"
        "COMP_WORDS=($COMP_LINE); [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=(''); COMP_CWORD=$((${{#COMP_WORDS[@]}}-1));"
        "f=$(complete -p codexctl | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f codexctl;"
        'printf "%s\\n" "${{COMPREPLY[@]}}"'
    ),
    "fish": "codexctl completion fish | source; complete -C 'codexctl {}'",
}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "wanted"),
    [("log", {"login", "logout"}), ("keys ", {"add", "list", "revoke"}), ("login --de", {"--device"})],
)
def test_completion(shell: str, line: str, wanted: set[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    assert wanted <= completed([shell, "-c", SHELLS[shell].format(line)], tmp_path)


def completed(words: list[str], folder: Path) -> set[str]:
    (folder / "codexctl").write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
    (folder / "codexctl").chmod(0o755)
    environ = environment(folder)
    environ["PATH"] = f"{folder}{os.pathsep}{environ['PATH']}"
    done = subprocess.run(words, capture_output=True, text=True, env=environ, timeout=PATIENCE, check=False)
    return {line.split("\t")[0].strip() for line in done.stdout.splitlines()}


async def test_completion_in_zsh(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not here")
    (tmp_path / "codexctl").write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
    (tmp_path / "codexctl").chmod(0o755)
    environ = environment(tmp_path)
    environ["PATH"] = f"{tmp_path}{os.pathsep}{environ['PATH']}"
    async with terminal(["zsh", "-f"], environ) as shell:
        await shell.type("PS1='ready> '; autoload -U compinit && compinit -u; source <(codexctl completion zsh)\n")
        await shell.type("echo set-$((1+1))\n")
        await shell.until("set-2")
        # What half a word would be: a wrong verb. The whole one looks for a daemon.
        await shell.type("codexctl reloa\t\n")
        await shell.until("cannot be reached")
        await shell.type("exit\n")
        await shell.end()


async def test_a_person_who_stops_it_sees_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C while a verb waits for a daemon that says nothing."""
    path = tmp_path / "silent.sock"
    from codexd.server import sockets

    with sockets.listen(f"unix:{path}") as silent:
        async with terminal(command("--socket", str(path), "status"), environment(tmp_path)) as screen:
            await screen.until("Asking codexd")
            await trio.lowlevel.wait_readable(silent)
            await screen.type("\x03")
            assert await screen.end() == 130
            assert "Traceback" not in screen.screen
