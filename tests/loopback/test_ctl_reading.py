"""``codexctl``: the verbs that show what the account and the daemon have, and the form of ``--json``."""

import re
import signal
from pathlib import Path

import httpx
import pytest

from codexd import __version__
from codexd.auth import store
from codexd.demo.issuer import EMAIL
from support.codexctl import Make, Setup
from support.control import codexctl, in_terminal
from support.daemon import PATIENCE, hello, running
from support.upstream import Upstream

pytestmark = pytest.mark.loopback


async def test_status_shows_the_sign_in_the_limits_and_the_daemon(shared: Setup) -> None:
    said = await shared.ctl("status")
    assert (said.code, said.err) == (0, "")
    daemon = (shared.daemon.base, f"codexd {__version__}")
    for text in (EMAIL, "(plus)", "acct-simulated", *daemon, "5 h", "weekly", "34 %"):
        assert text in said.out
    assert "\x1b" not in said.out


async def test_usage_shows_the_windows(shared: Setup) -> None:
    said = await shared.ctl("usage")
    assert said.code == 0
    assert re.search(r"5 h .*12 %  resets .*, in 1 h", said.out)


async def test_models_show_their_efforts_and_aliases(shared: Setup) -> None:
    said = await shared.ctl("models", "--refresh")
    assert re.search(r"gpt-6-sol +low–ultra +medium +272k +lite +mine", said.out)


async def test_refresh_renews_the_access_token(shared: Setup) -> None:
    before = shared.tokens.read_bytes()
    said = await shared.ctl("refresh")
    assert (said.code, EMAIL in said.out) == (0, True)
    assert shared.tokens.read_bytes() != before
    assert shared.issuer.posts[-1][1]["refresh_reason"] == "scheduled"


async def test_metrics_come_without_the_listener(shared: Setup) -> None:
    await shared.ask("counted")
    said = await shared.ctl("metrics")
    assert said.code == 0
    assert re.search(r'codexd_requests_total\{endpoint="/chat/completions",.*status="200"\} \d', said.out)
    (reply, _) = (await shared.ctl("metrics", "--json")).json
    assert "codexd_requests_total" in reply["text"]


@pytest.mark.parametrize(
    ("words", "reply"),
    [
        ("status", "status"),
        ("refresh", "account"),
        ("usage", "usage"),
        ("usage --by day", "history"),
        ("models", "models"),
        ("reload", "reloaded"),
        ("keys list", "keys"),
        ("doctor", "check"),
        ("health", "health"),
        ("health --ready", "health"),
        ("level", "level"),
        ("top", "top"),
        ("prompts list", "prompts"),
    ],
)
async def test_a_verb_speaks_json(shared: Setup, words: str, reply: str) -> None:
    said = await shared.ctl(*words.split(), "--json")
    assert (said.code, said.err) == (0, "")
    lines = said.json
    assert {line["version"] for line in lines} == {1}
    assert {line["reply"] for line in lines[:-1]} == {reply}
    assert lines[-1] == {"reply": "done", "version": 1}


async def test_keys_that_come_and_go_speak_json(shared: Setup) -> None:
    added, done = (await shared.ctl("keys", "add", "json", "--json")).json
    revoked, _ = (await shared.ctl("keys", "revoke", "json", "--json")).json
    assert (added["reply"], revoked["reply"], done) == ("key_added", "key_revoked", {"reply": "done", "version": 1})


async def test_failures_speak_json(setup: Make) -> None:
    async with setup() as it:
        said = await it.ctl("logout", "--json")
        assert [line["reply"] for line in said.json] == ["signed_out", "done"]
        refused = await it.ctl("--json", "refresh")
        assert (refused.code, refused.json[0]["reply"], refused.json[0]["kind"]) == (3, "refused", "signed_out")


async def test_health_is_an_exit_code(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        said = await it.ctl("health")
        text = f"codexd {__version__} is responding; signed out: run `codexctl login`.\n"
        assert (said.code, said.err, said.out) == (0, "", text)
        ready = await it.ctl("health", "--ready")
        assert (ready.code, "codexctl login" in ready.err) == (3, True)
        store.save(it.tokens, it.issuer.sign_in())
        assert (await it.ctl("health", "--ready")).out == f"codexd {__version__} is responding; signed in.\n"
    assert (await it.ctl("health")).code == 4


async def test_usage_comes_from_the_last_answer_when_its_page_does_not(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async with (
        running(tmp_path, logs, upstream) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as client,
    ):
        assert (await client.post("/v1/chat/completions", json=hello())).status_code == 200
        said = await codexctl(daemon, "usage", "--json")
        assert said.code == 0
        report = said.json[0]
        assert (report["source"], "usage data cannot be read" in report["why"]) == ("headers", True)
        assert [window["used_percent"] for window in report["windows"]] == [12.5, 60]
        shown = await codexctl(daemon, "usage")
        assert "because the current ones could not be fetched" in shown.err


# --- what was used


async def test_what_was_used_is_counted_by_column(setup: Make) -> None:
    async with setup() as it:
        assert (await it.ctl("usage", "--by", "model")).out == "No requests yet.\n"
        for number in range(3):
            await it.ask(f"r{number}")
        said = await it.ctl("usage", "--by", "model,key", "--since", "7d")
        assert re.search(r"gpt-5\.5 +\(no key\) +3 +0 +\d+ +0 +\d+ +0", said.out), said.out
        rows = (await it.ctl("usage", "--csv", "--by", "day,model")).out.splitlines()
        assert rows[0] == "day,model,requests,failed,input,cached,output,reasoning"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d,gpt-5\.5,3,0,\d+,0,\d+,0", rows[1])


async def test_nothing_was_used_since_a_day_to_come(shared: Setup) -> None:
    (report, _) = (await shared.ctl("usage", "--since", "2030-12-31", "--json")).json
    assert (report["reply"], report["rows"]) == ("history", [])


async def test_the_limits_are_watched(shared: Setup) -> None:
    refused = await shared.ctl("usage", "--watch", "--csv")
    assert (refused.code, "Leave out --by" in refused.err) == (2, True)
    async with in_terminal(shared.daemon, "usage", "--watch") as terminal:
        await terminal.until("resets")
        terminal.process.send_signal(signal.SIGINT)
        assert await terminal.process.wait() == 130
