"""``codexctl keys``: what a client key is for, and what it may do."""

import re

import pytest
import trio

from support.codexctl import Setup
from support.control import command
from support.daemon import environment, hello

pytestmark = pytest.mark.loopback


async def test_a_key_alone_is_on_the_standard_output(shared: Setup) -> None:
    made = await shared.ctl("keys", "add", "alone")
    await shared.ctl("keys", "revoke", "alone")
    assert made.out.startswith("sk-codexd-")
    assert made.out.strip() not in made.err


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
        assert re.search(r"phone .*gpt-5.5 gpt-6-\*, 30 per minute, 2 at once, until ", listed)
