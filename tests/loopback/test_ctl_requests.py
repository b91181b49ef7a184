"""``codexctl``: what codexd does and did, by ``explain``, ``log``, ``level`` and ``top``."""

import re
import signal
import subprocess
from functools import partial

import pytest
import trio

from support.codexctl import Make, Setup
from support.control import command, in_terminal
from support.daemon import PATIENCE, environment, hello

pytestmark = pytest.mark.loopback


# --- explain


async def test_a_request_is_explained(shared: Setup) -> None:
    assert (await shared.ask("explain-1")).status_code == 200
    said = await shared.ctl("explain", "explain-1")
    assert (said.code, said.err) == (0, "")
    for line in (
        r"request +explain-1\n", r"received .*POST /chat/completions", r"status +200", r"tokens +\d+ in \(0 cached, 0%\), \d+ out",
        r"adjusted +seed dropped: the backend does not support it", r"backend +HTTP 200", r"sent by +(the websocket of its|a new websocket), \d+\.\d KiB, (only what is new|the whole conversation)",
        r"read, checked, converted +\d+ ms", r"connection \(reused\) +\d+ ms", r"last byte +\d+ ms +at",
        r"Request bodies are logged only if logging.enable_request_logging is on",
    ):  # fmt: skip
        assert re.search(line, said.out), (line, said.out)


async def test_a_failed_request_is_explained(shared: Setup) -> None:
    assert (await shared.ask("explain-failed", model="gpt-nix")).status_code == 404
    failed = await shared.ctl("explain", "explain-failed")
    assert re.search("status +404", failed.out) and 'model_not_found: The model "gpt-nix" does not exist' in failed.out


async def test_the_times_of_a_request_rise_and_its_bodies_are_not_kept(shared: Setup) -> None:
    await shared.ask("explain-json")
    (found, _) = (await shared.ctl("explain", "explain-json", "--json")).json
    trace = found["request"]
    spans = list(trace["spans"].values())
    assert spans == sorted(spans) and len(spans) == 6
    assert "body" not in {name for name, value in trace.items() if value is not None}


async def test_a_request_that_there_is_not_cannot_be_explained(shared: Setup) -> None:
    nobody = await shared.ctl("explain", "nobody")
    assert (nobody.code, 'No request whose id begins with "nobody"' in nobody.err) == (5, True)


async def test_bodies_are_shown_where_they_are_wanted_and_without_secrets(setup: Make) -> None:
    async with setup(logging={"enable_request_logging": True}) as it:
        secret = "sk-" + "a1B2" * 8
        await it.ask("mine", messages=[{"role": "user", "content": f"My key is {secret}."}])
        said = await it.ctl("explain", "mine")
        assert "My key is" in said.out
        assert "input_text" in said.out
        assert secret not in said.out
        assert "[redacted]" in said.out


# --- log and level


async def test_the_log_is_filtered(shared: Setup) -> None:
    await shared.ask("log-first")
    said = await shared.ctl("log", "--request", "log-first")
    assert [line.count("[log-first]") for line in said.out.splitlines()] == [1]
    assert "[log-first]" not in (await shared.ctl("log", "--level", "error")).out
    assert len((await shared.ctl("log", "-n", "2", "--json")).json) == 3


async def test_the_log_is_followed(setup: Make) -> None:
    async with setup() as it, trio.open_nursery() as nursery:
        environ = environment(it.daemon.state.parent) | {"CODEXCTL_SOCKET": str(it.daemon.control)}
        words = command("log", "-f", "-n", "1", "--request", "sec", "--level", "info")
        run = partial(trio.run_process, words, stdout=subprocess.PIPE, check=False, env=environ)
        process = await nursery.start(run)
        await it.daemon.logged("verb=log .*")
        await it.ask("second")
        with trio.fail_after(PATIENCE):
            assert b"[second] request finished" in await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130


async def test_the_level_changes_for_a_while(shared: Setup) -> None:
    assert (await shared.ctl("level")).out == "Log level: info\n"
    await shared.ask("level-quiet")
    said = await shared.ctl("level", "debug", "--for", "5")
    assert re.search(r"Log level: debug until \d\d:\d\d, then info", said.out)
    await shared.ask("level-loud")
    log = shared.daemon.log.read_text()
    assert "[level-loud] request started" in log
    assert "[level-quiet] request started" not in log
    # A reload does not end it.
    await shared.ctl("reload")
    assert "Log level: debug until" in (await shared.ctl("level")).out
    assert (await shared.ctl("level", "reset")).out == "Log level: info\n"
    await shared.ask("level-calm")
    assert "[level-calm] request started" not in shared.daemon.log.read_text()


async def test_the_level_as_json_has_the_configured_one_too(shared: Setup) -> None:
    (level, _) = (await shared.ctl("level", "warn", "--json")).json
    assert (level["level"], level["configured"]) == ("warn", "info")
    assert (await shared.ctl("level", "reset")).code == 0


# --- top


async def test_top_without_a_terminal_shows_one_screen(shared: Setup) -> None:
    await shared.ask("top-failed", model="gpt-nix")
    once = await shared.ctl("top")
    assert "No requests in progress." in once.out
    assert re.search(r"top-failed +just now +404 +model_not_found: The model", once.out)


async def test_the_keys_of_top_choose_what_it_shows(shared: Setup) -> None:
    await shared.ask("keys-one", model="gpt-nix")
    await shared.ask("keys-two", model="gpt-nix")
    async with in_terminal(shared.daemon, "top", columns=80, rows=24) as terminal:
        await terminal.until("keys-two")
        await terminal.until("sort: age")
        await terminal.type("s")
        await terminal.until("sort: tokens")
        before = len(terminal.screen)
        await terminal.type("/-ONE\r")
        await terminal.until("filter: -ONE")
        await terminal.until(re.compile(r"q quit  s sort: tokens  / filter: -ONE"))
        assert "keys-two" not in terminal.screen[before:].rpartition("codexd ")[2]
        await terminal.type("q")
        assert await terminal.end() == 0
    once = await shared.ctl("top", "--filter", "two")
    assert "keys-two" in once.out and "keys-one" not in once.out


@pytest.mark.parametrize("columns", [60, 80, 100])
async def test_top_shows_ids_on_every_terminal(shared: Setup, columns: int) -> None:
    await shared.ask("abcdefgh-ijklmno", model="gpt-nix")
    async with in_terminal(shared.daemon, "top", "--once", columns=columns, rows=24) as terminal:
        assert await terminal.end() == 0
        assert "abcdefgh-ijklmno" in terminal.screen


async def test_top_shows_what_is_in_progress(setup: Make) -> None:
    async with setup() as it, it.client() as client, in_terminal(it.daemon, "top") as terminal:
        await terminal.until("No requests in progress")
        it.chatgpt.chatgpt.pace = 0.1
        body, name = hello(stream=True), {"x-request-id": "running"}
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=name) as answer:
            lines = answer.aiter_lines()
            assert await anext(lines)
            it.chatgpt.chatgpt.pace = 3600
            await terminal.until("running")
            (report, _) = (await it.ctl("top", "--json")).json
            assert [trace["id"] for trace in report["requests"]] == ["running"]
            assert report["requests"][0]["status"] is None
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.process.wait() == 130
        await it.daemon.logged("running. request finished")
        (report, _) = (await it.ctl("top", "--json")).json
        assert report["requests"] == []
