"""``codexctl prompts``: the prompts that requests go up with."""

import re
from pathlib import Path

import msgspec
import pytest

from support.codexctl import Make, Setup
from support.control import codexctl, in_terminal
from support.daemon import running

pytestmark = pytest.mark.loopback


async def instructions(it: Setup, model: str = "gpt-5.5") -> str:
    """Makes a request, and returns the instructions that it went up with."""
    assert (await it.ask("asked", model=model)).status_code == 200
    (found, _) = (await it.ctl("explain", "asked", "--json")).json
    return str(msgspec.json.decode(found["request"]["sent"])["instructions"])


async def test_the_texts_in_force_are_listed(shared: Setup) -> None:
    listed = await shared.ctl("prompts", "list")
    assert re.search(r"gpt-5-2 +\d+ +built in", listed.out), listed.out


async def test_a_text_is_set_for_a_family_and_for_a_model(setup: Make, tmp_path: Path) -> None:
    async with setup() as it:
        built_in = (await it.ctl("prompts", "show", "gpt-5-2")).out
        assert await instructions(it) == built_in.strip()
        file = tmp_path / "mine.md"
        file.write_text("Answer in rhymes.\n")
        said = await it.ctl("prompts", "set", "gpt-5-2", str(file))
        assert said.out.startswith("Set for gpt-5-2, used from the next request")
        assert await instructions(it) == "Answer in rhymes."
        assert (await it.ctl("prompts", "set", "gpt-5.5", "-", stdin=b"Answer in prose.")).code == 0
        assert await instructions(it) == "Answer in prose."
        shown = await it.ctl("prompts", "show", "gpt-5.5")
        assert (shown.out, "the standard input" in shown.err) == ("Answer in prose.\n", True)
        listed = await it.ctl("prompts", "list")
        assert str(file) in listed.out and re.search(r"gpt-5\.5 +16 +the standard input", listed.out)
        assert (await it.ctl("prompts", "reset", "gpt-5.5")).out == "Restored the built-in prompt for gpt-5.5.\n"
        assert await instructions(it) == "Answer in rhymes."


async def test_a_text_outlives_the_daemon_until_it_is_reset(setup: Make, tmp_path: Path, logs: Path) -> None:
    async with setup() as it:
        built_in = (await it.ctl("prompts", "show", "gpt-5-2")).out
        assert (await it.ctl("prompts", "set", "gpt-5-2", "-", stdin=b"Answer in rhymes.")).code == 0
        it.daemon.signal()
        await it.daemon.process.wait()
        async with running(tmp_path, logs, it.chatgpt, signed_in=False) as again:
            assert (await codexctl(again, "prompts", "show", "gpt-5-2")).out == "Answer in rhymes.\n"
            assert (await codexctl(again, "prompts", "reset")).out == "Restored the built-in prompt for gpt-5-2.\n"
            assert (await codexctl(again, "prompts", "reset")).out == "Nothing to reset.\n"
            assert (await codexctl(again, "prompts", "show", "gpt-5-2")).out == built_in


@pytest.mark.parametrize(
    ("words", "text", "code", "why"),
    [
        ("set gpt-5-2 /nowhere", b"", 2, "Cannot read /nowhere: No such file"),
        ("set gpt-9 -", b"x", 5, "neither a family of prompts"),
        ("show gpt-9", b"", 5, "neither a family of prompts"),
        ("set gpt-5-2 -", b" \n", 5, "The prompt is empty"),
        ("set gpt-5-2 -", b"\xff", 2, "not UTF-8 text"),
    ],
)
async def test_a_text_that_cannot_be_set_is_refused(
    shared: Setup, words: str, text: bytes, code: int, why: str
) -> None:
    refused = await shared.ctl("prompts", *words.split(), stdin=text)
    assert (refused.code, why in refused.err) == (code, True), refused


async def test_official_texts_are_shown_before_they_are_used(setup: Make) -> None:
    async with setup() as it:
        before = await instructions(it)
        summary = await it.ctl("prompts", "update")
        assert summary.code == 0
        assert re.search(r"gpt-5\.5 +\+1 +-\d+ +26", summary.out) and "simulated" not in summary.out
        shown = await it.ctl("prompts", "update", "gpt-5.5", "--diff")
        assert "--- gpt-5.5 in use" in shown.out and "+You are a simulated model." in shown.out
        assert "gpt-5.2" not in shown.out
        none = await it.ctl("prompts", "update", "gpt-9")
        assert (none.code, "Nothing to update for gpt-9" in none.err, "gpt-5.5" in none.err) == (5, True, True)
        assert "Nothing was changed" in shown.err
        assert await instructions(it) == before
        async with in_terminal(it.daemon, "prompts", "update") as terminal:
            await terminal.until("[y/N]")
            await terminal.type("n\r")
            assert await terminal.process.wait() == 0
        assert await instructions(it) == before


async def test_official_texts_are_used_after_a_yes(setup: Make) -> None:
    async with setup() as it:
        said = await it.ctl("prompts", "update", "--yes")
        assert "Set for gpt-5.5; `codexctl prompts reset gpt-5.5` undoes it." in said.err
        assert await instructions(it) == "You are a simulated model."
        (listed, _) = (await it.ctl("prompts", "list", "--json")).json
        (entry,) = [entry for entry in listed["prompts"] if entry["name"] == "gpt-5.5"]
        assert entry["source"].endswith("/codex/models") and entry["set_at"] and len(entry["sha256"]) == 64
        assert "The prompts in use are the official ones." in (await it.ctl("prompts", "update")).err


@pytest.mark.parametrize(
    "spoiled", [b"", b'{"version": 2}', b'{"texts": [{"name": "gpt-5-2", "text": "x", "sha256": "y"}]}']
)
async def test_texts_that_cannot_be_read_are_kept_aside(setup: Make, tmp_path: Path, spoiled: bytes) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "prompts.json").write_bytes(spoiled)
    async with setup() as it:
        assert await instructions(it) == (await it.ctl("prompts", "show", "gpt-5-2")).out.strip()
        assert "the saved prompts cannot be used" in it.daemon.log.read_text()
    assert spoiled in [path.read_bytes() for path in state.iterdir() if path.is_file()]
