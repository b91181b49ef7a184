"""``codexctl keys``: what a client key is for, and what it may do."""

import contextlib
import re
from pathlib import Path

import pytest
import trio

from support.codexctl import Setup
from support.control import codexctl, command
from support.daemon import connected, environment, hello, post, running
from support.upstream import ADDED, COMPLETED, CREATED, Call, Upstream, done, text

pytestmark = pytest.mark.loopback


async def test_a_key_alone_is_on_the_standard_output(shared: Setup) -> None:
    made = await shared.ctl("keys", "add", "alone")
    await shared.ctl("keys", "revoke", "alone")
    assert made.out.startswith("sk-codexd-")
    assert made.out.strip() not in made.err
    assert "every client must send a key" in made.err and "codexctl setup CLIENT --key" in made.err


async def test_a_second_key_changes_nothing_for_clients(shared: Setup) -> None:
    async with shared.key("one"):
        assert "every client" not in (await shared.ctl("keys", "new", "two")).err
        assert (await shared.ctl("keys", "rm", "two")).code == 0


async def test_where_there_is_a_key_clients_must_present_it(shared: Setup) -> None:
    async with shared.client() as client:
        assert (await client.get("/v1/models")).status_code == 200
        async with shared.key("laptop") as made:
            refused = await client.get("/v1/models")
            assert (refused.status_code, "codexctl keys add" in refused.json()["error"]["message"]) == (401, True)
            for headers, status in (
                ({"authorization": f"Bearer {made}x"}, 401),
                ({"authorization": f"Bearer {made}"}, 200),
                ({"x-api-key": made}, 200),
            ):
                assert (await client.get("/v1/models", headers=headers)).status_code == status
            assert await shared.daemon.logged("request finished.*key=laptop")
            assert made not in shared.daemon.log.read_text()
            assert re.search(r"laptop .*just now +codexctl", (await shared.ctl("keys", "list")).out)


async def test_the_last_key_that_is_revoked_leaves_the_api_open(shared: Setup) -> None:
    await shared.ctl("keys", "add", "last")
    said = await shared.ctl("keys", "revoke", "last")
    assert (said.code, "last key" in said.err) == (0, True)
    async with shared.client() as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_a_key_that_cannot_be_shown_is_revoked(shared: Setup) -> None:
    done = await trio.run_process(
        ["bash", "-c", f"{' '.join(command('keys', 'add', 'unseen'))} > /dev/full"],
        check=False, capture_stderr=True,
        env=environment(shared.daemon.state.parent) | {"CODEXCTL_SOCKET": str(shared.daemon.control)},
    )  # fmt: skip
    said = done.stderr
    assert (done.returncode, b"so it was revoked" in said, b"No space left" in said) == (5, True, True)
    assert "unseen" not in (await shared.ctl("keys", "list")).out


async def test_a_name_must_be_text(shared: Setup) -> None:
    odd = await shared.ctl("keys", "add", "\udcff")
    assert (odd.code, "UTF-8" in odd.err) == (2, True)


async def test_a_strict_key_refuses_what_would_be_dropped(shared: Setup) -> None:
    async with shared.client() as client, shared.key("picky", "--strict") as made:
        body = hello(temperature=1)
        refused = await client.post("/v1/chat/completions", json=body, headers={"x-api-key": made})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temperature")
        assert re.search(r"picky .*codexctl +strict", (await shared.ctl("keys", "list")).out)


async def test_a_key_has_limits(shared: Setup) -> None:
    terms = ("--models", "gpt-5.5, gpt-6-*", "--rpm", "30", "--concurrent", "2", "--expires", "30d")
    async with shared.client() as client, shared.key("phone", *terms) as made:
        body = hello(model="gpt-5.1")
        refused = await client.post("/v1/chat/completions", json=body, headers={"x-api-key": made})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
        listed = (await shared.ctl("keys", "list")).out
        assert re.search(r"phone .*gpt-5.5 gpt-6-\*, 30 per minute, 2 at once, expires ", listed)


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (("--until", "0%"), 'invalid value "0%": use a percentage'),
        (("--until", "half"), 'invalid value "half"'),
        (("--tokens-per-day", "lots"), "such as 500000, 500k or 2M"),
    ],
)
async def test_a_budget_that_is_none(shared: Setup, terms: tuple[str, ...], said: str) -> None:
    refused = await shared.ctl("keys", "add", "x", *terms)
    assert (refused.code, said in refused.err) == (2, True)


async def test_a_key_has_a_budget(shared: Setup) -> None:
    async with shared.client() as client, shared.key("batch", "--until", "12%", "--tokens-per-day", "2k") as made:
        listed = (await shared.ctl("keys", "list")).out
        assert re.search(r"batch .*up to 12 % of the account, 2 000 tokens a day", listed)
        headers = {"x-api-key": made}
        # The simulated account has used 12 % of one window and 34 % of the other.
        await client.post("/v1/chat/completions", json=hello(), headers=headers)
        refused = await client.post("/v1/chat/completions", json=hello(), headers=headers)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (429, "key_budget_spent")
        assert re.search(r"weekly window is 34 % used. Try again in \d+ [dh]", error["message"])
        said = (await shared.ctl("usage", "--by", "key")).out
        assert re.search(r"of the weekly window", said) and re.search(r"\(elsewhere\) +12.0 % +34.0 %", said)


async def test_a_key_of_the_configuration_is_not_said_to_be_revoked(
    tmp_path: Path, logs: Path, upstream: Upstream
) -> None:
    async def play(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hel"))
        await trio.sleep_forever()

    upstream.plays = [play]
    key = "sk-of-the-configuration"
    configured = {"client_keys": {"own": key}}
    async with running(tmp_path, logs, upstream, server=configured) as daemon, connected(daemon) as client:
        await client.send(post("/v1/chat/completions", hello(stream=True), f"authorization: Bearer {key}"))
        await client.until(b"Hel")
        said = await codexctl(daemon, "keys", "revoke", "own", "--now")
        assert (said.code, "is set in [server.client_keys]" in said.err, said.out) == (5, True, "")


@pytest.mark.parametrize("how", ["finish", "end", "end later"])
async def test_a_revoked_keys_answers_finish_or_end(tmp_path: Path, logs: Path, upstream: Upstream, how: str) -> None:
    go_on = trio.Event()

    async def play(call: Call) -> None:
        await call.start()
        await call.events(CREATED, ADDED, text("Hel"))
        await go_on.wait()
        with contextlib.suppress(trio.BrokenResourceError):
            await call.events(text("lo"), done("Hello"), COMPLETED)
            await call.end()

    upstream.plays = [play]
    async with running(tmp_path, logs, upstream) as daemon:
        key = (await codexctl(daemon, "keys", "add", "lent")).out.strip()
        async with connected(daemon) as client:
            await client.send(post("/v1/chat/completions", hello(stream=True), f"authorization: Bearer {key}"))
            await client.until(b"Hel")
            for now in {"finish": [False], "end": [True], "end later": [False, True]}[how]:
                said = await codexctl(daemon, "keys", "revoke", "lent", *(["--now"] if now else []))
                assert (said.code, ("Ended 1 request" if now else "Not ended: 1 request") in said.err) == (0, True)
            go_on.set()
            answer = await client.until(b"[DONE]" if how == "finish" else b"was revoked")
            assert (b"[DONE]" in answer) is (how == "finish")
        async with connected(daemon) as client:
            await client.send(post("/v1/chat/completions", hello(), f"authorization: Bearer {key}"))
            assert b"200" in (await client.until(b"\r\n"))[:20]  # it was the last key: none is asked for
