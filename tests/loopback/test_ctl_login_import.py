"""``codexctl login --import`` and ``codexctl logout``."""

from pathlib import Path

import msgspec
import pytest

from codexd.auth import store
from codexd.demo.issuer import EMAIL
from support.codexctl import Make, Setup
from support.control import in_terminal
from support.secrets import access_token

pytestmark = pytest.mark.loopback


def auth_json(it: Setup) -> Path:
    """Writes a login of the Codex CLI into the home of the user, and returns its path."""
    made = it.issuer.sign_in()
    tokens = {key: getattr(made, key) for key in ("id_token", "access_token", "refresh_token", "account_id")}
    document = {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2026-11-22T05:14:39.912036035Z"}  # fmt: skip
    path = it.daemon.state.parent / ".codex" / "auth.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document)))
    return path


async def test_the_login_of_the_official_client_is_taken_over(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        path = auth_json(it)
        async with in_terminal(it.daemon, "login", "--import", str(path)) as terminal:
            await terminal.until("[y/N]")
            await terminal.type("y\n")
            assert await terminal.end() == 0
            assert "Sign in to the Codex CLI again" in " ".join(terminal.screen.split())
        assert (await it.ctl("refresh")).code == 0
        # Again, over the sign-in that there is now; the end of the input is a no.
        async with in_terminal(it.daemon, "login", "--import", str(path)) as terminal:
            await terminal.until("[y/N]")
            assert f"replacing the sign-in as {EMAIL}" in " ".join(terminal.screen.split())
            await terminal.type("\x04")
            assert await terminal.end() == 5
            assert "Traceback" not in terminal.screen
        assert (await it.ctl("status")).code == 0


async def test_nothing_is_imported_without_a_yes(setup: Make) -> None:
    async with setup(signed_in=False) as it:
        auth_json(it)
        unasked = await it.ctl("login", "--import")
        assert (unasked.code, "--yes" in unasked.err, "single-use" in unasked.err) == (2, True, True)
        async with in_terminal(it.daemon, "login", "--import") as terminal:
            await terminal.until("[y/N]")
            await terminal.type("n\n")
            assert await terminal.end() == 5
        assert not it.tokens.exists()


async def test_a_login_that_there_is_not_cannot_be_imported(shared: Setup) -> None:
    missing = await shared.ctl("login", "--import", "--yes")
    path = shared.daemon.state.parent / ".codex" / "auth.json"
    assert (missing.code, f"There is no {path}" in missing.err, "keyring" in missing.err) == (2, True, True)


@pytest.mark.parametrize(
    ("text", "code", "why"),
    [
        ("garbage", 2, "it is not JSON"),
        ('{"tokens": {"access_token": "x"}}', 5, "was not issued by ChatGPT"),
        (f'{{"tokens": {{"access_token": "{access_token(1)}"}}}}', 5, "has expired"),
        ('{"OPENAI_API_KEY": "sk-x"}', 5, "no ChatGPT sign-in"),
    ],
    ids=["no JSON", "no token of ChatGPT", "expired", "an API key"],
)
async def test_a_login_that_is_none_changes_nothing(
    shared: Setup, tmp_path: Path, text: str, code: int, why: str
) -> None:
    before = shared.tokens.read_bytes()
    path = tmp_path / "auth.json"
    path.write_text(text)
    refused = await shared.ctl("login", "--import", str(path), "--yes")
    assert (refused.code, why in refused.err) == (code, True), refused
    assert shared.tokens.read_bytes() == before


async def test_logging_out(setup: Make) -> None:
    async with setup() as it:
        stored = store.load(it.tokens)
        assert stored is not None
        said = await it.ctl("logout")
        assert (said.code, "was revoked" in said.out) == (0, True)
        assert it.issuer.revoked == [stored.refresh_token]
        assert not it.tokens.exists()
        store.save(it.tokens, it.issuer.sign_in())
        it.issuer.revokes = False
        said = await it.ctl("logout")
        assert (said.code, "Internal error" in said.err, "end its session in ChatGPT" in said.err) == (0, True, True)
        assert not it.tokens.exists()
        assert (await it.ctl("logout")).code == 3
