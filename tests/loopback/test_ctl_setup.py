"""``codexctl setup``: the configuration of other programs, printed, written and removed."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from codexd.config.clients import CLIENTS
from support.codexctl import Make, Setup

pytestmark = pytest.mark.loopback


def home(path: Path) -> dict[str, str]:
    return {"HOME": str(path), "XDG_CONFIG_HOME": str(path / ".config")}


@pytest.mark.parametrize("client", CLIENTS)
async def test_it_is_printed(shared: Setup, client: str, tmp_path: Path) -> None:
    said = await shared.ctl("setup", client, "--model", "gpt-5.5", env=home(tmp_path))
    assert (said.code, said.err) == (0, "")
    assert shared.daemon.base in said.out
    assert list(tmp_path.iterdir()) == []


async def test_it_is_written_and_removed(shared: Setup, tmp_path: Path) -> None:
    settings = tmp_path / ".claude" / "settings.json"
    settings.parent.mkdir()
    mine: dict[str, Any] = {"env": {"ANTHROPIC_BASE_URL": "https://mine", "OTHER": "1"}, "theme": "dark"}
    settings.write_bytes(msgspec.json.encode(mine))
    said = await shared.ctl("setup", "claude-code", "--write", env=home(tmp_path))
    assert said.code == 0
    assert "https://mine" in said.out, "the difference"
    found = msgspec.json.decode(settings.read_bytes())
    assert found["env"] == {"ANTHROPIC_BASE_URL": shared.daemon.base, "ANTHROPIC_AUTH_TOKEN": "unused", "OTHER": "1"}
    again = await shared.ctl("setup", "claude-code", "--write", env=home(tmp_path))
    assert "is already up to date" in again.out
    removed = await shared.ctl("setup", "claude-code", "--remove", env=home(tmp_path))
    assert removed.code == 0 and settings.read_bytes() == msgspec.json.encode(mine), "byte for byte"
    assert [path.name for path in settings.parent.iterdir()] == ["settings.json"]
    assert "no codexd configuration" in (await shared.ctl("setup", "claude-code", "--remove", env=home(tmp_path))).out


async def test_a_file_that_was_not_there_goes_again(shared: Setup, tmp_path: Path) -> None:
    environ = home(tmp_path) | {"LLM_USER_PATH": str(tmp_path / "llm"), "CODEX_HOME": str(tmp_path / "codex")}
    for client, path in (
        ("llm", "llm/keys.json"),
        ("codex", "codex/config.toml"),
        ("opencode", ".config/opencode/opencode.json"),
    ):
        assert (await shared.ctl("setup", client, "--write", "--json", env=environ)).code == 0
        assert (tmp_path / path).exists()
        assert (await shared.ctl("setup", client, "--remove", env=environ)).code == 0
        assert not (tmp_path / path).exists()


async def test_what_is_left_to_a_person_is_said(setup: Make, tmp_path: Path) -> None:
    async with setup() as it, it.key("mine"):
        said = await it.ctl("setup", "zed", "--write", env=home(tmp_path))
        assert "export CODEXD_API_KEY=sk-codexd-" in said.out, "the file has no place for it"
        assert "Created the client key setup-zed." in said.err and "Start it with: zed" in said.err
        removed = await it.ctl("setup", "zed", "--remove", env=home(tmp_path))
        assert "Revoked the client key setup-zed." in removed.err
        shown = await it.ctl("setup", "claude-code", "--model", "gpt-5.5", env=home(tmp_path))
        assert '"ANTHROPIC_MODEL": "gpt-5.5"' in shown.out


async def test_a_key_is_made_and_revoked(setup: Make, tmp_path: Path) -> None:
    async with setup() as it, it.key("mine"):
        shown = await it.ctl("setup", "codex", env=home(tmp_path))
        assert "YOUR-KEY" in shown.out and "codexctl keys add setup-codex" in shown.err
        for _ in range(2):  # the second replaces the key of the first
            assert (await it.ctl("setup", "codex", "--write", env=home(tmp_path))).code == 0
        provider = tomllib.loads((tmp_path / ".codex" / "config.toml").read_text())["model_providers"]["codexd"]
        async with it.client(headers={"authorization": f"Bearer {provider['experimental_bearer_token']}"}) as client:
            assert (await client.get("/v1/models")).status_code == 200
            assert (await it.ctl("setup", "codex", "--remove", env=home(tmp_path))).code == 0
            assert (await client.get("/v1/models")).status_code == 401


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("cursor", "--write"), 2, "has no configuration file"),
        (("cursor", "--remove"), 2, "writes no file for cursor"),
        (("nobody",), 2, 'unknown client "nobody"; use claude-code'),
        (("codex", "--base-url", "foo"), 2, 'invalid value "foo"'),
        (("codex", "--write", "--remove"), 2, "not allowed"),
    ],
)
async def test_what_cannot_be_set_up(
    shared: Setup, words: tuple[str, ...], code: int, said: str, tmp_path: Path
) -> None:
    refused = await shared.ctl("setup", *words, env=home(tmp_path))
    assert (refused.code, said in refused.err) == (code, True), refused.err


async def test_a_file_of_the_users_is_not_broken(shared: Setup, tmp_path: Path) -> None:
    path = tmp_path / ".config" / "zed" / "settings.json"
    path.parent.mkdir(parents=True)
    path.write_text("// mine\n{}\n")
    refused = await shared.ctl("setup", "zed", "--write", env=home(tmp_path))
    assert (refused.code, "or contains comments" in refused.err, path.read_text()) == (5, True, "// mine\n{}\n")
    own = tmp_path / ".codex" / "config.toml"
    own.parent.mkdir()
    own.write_text('model = "mine"\n')
    for _ in range(2):
        words = ("setup", "codex", "--write", "--base-url", "https://proxy.example/v1/")
        said = await shared.ctl(*words, env=home(tmp_path))
        assert 'set in that file: model_provider = "codexd"' in " ".join(said.err.split())
        assert "Start it with" not in said.err
    found = tomllib.loads(own.read_text())
    assert (found["model"], found["model_providers"]["codexd"]["base_url"]) == ("mine", "https://proxy.example/v1")


async def test_a_client_needs_an_address(setup: Make, tmp_path: Path) -> None:
    socket = tmp_path / "api.sock"
    async with setup(server={"bind": [f"unix:{socket}"]}) as it:
        refused = await it.ctl("setup", "codex", env=home(tmp_path))
        assert (refused.code, "server.bind" in refused.err) == (5, True)
