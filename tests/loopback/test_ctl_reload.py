"""``codexctl reload``, and the same by signal."""

import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.codexctl import Make
from support.daemon import hello

pytestmark = pytest.mark.loopback


class ConfigFile:
    """The configuration file of the daemon of a test."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        self.document: dict[str, Any] = msgspec.json.decode(self.path.read_bytes())

    def change(self, **sections: dict[str, Any]) -> None:
        for name, keys in sections.items():
            self.document[name] = self.document.get(name, {}) | keys
        self.path.write_bytes(msgspec.json.encode(self.document))


async def test_a_reload_changes_what_it_can_and_keeps_streams(setup: Make, tmp_path: Path) -> None:
    async with setup() as it, it.client() as client:
        it.chatgpt.chatgpt.pace = 0.1
        async with client.stream("POST", "/v1/chat/completions", json=hello(stream=True)) as response:
            lines = response.aiter_lines()
            assert await anext(lines)
            ConfigFile(tmp_path).change(
                models={"aliases": {"mine": "gpt-6-sol"}},
                server={"bind": ["127.0.0.1:1"], "max_body_bytes": 1024},
                logging={"level": "info"},
            )
            said = await it.ctl("reload")
            assert said.code == 0
            for key in ("models.aliases", "server.max_body_bytes", "logging.level"):
                assert key in said.out
            assert "server.bind" in said.err
            it.chatgpt.chatgpt.pace = 0
            assert [line async for line in lines][-2:] == ["data: [DONE]", ""]
        assert (await client.get("/v1/models/mine")).status_code == 200
        assert (await client.post("/v1/chat/completions", content=b"x" * 2000)).status_code == 413
        assert (await it.ctl("doctor")).out.count("changed since the start") == 1


async def test_a_file_with_a_mistake_changes_nothing(setup: Make, tmp_path: Path) -> None:
    async with setup(models={"aliases": {"mine": "gpt-6-sol"}}) as it, it.client() as client:
        (tmp_path / "config.json").write_text('{"server": {"prot": 1}}')
        refused = await it.ctl("reload")
        assert refused.code == 5
        assert "server.prot: unknown key; did you mean port?" in refused.err
        assert (await client.get("/v1/models/mine")).status_code == 200


async def test_a_signal_reloads_too(setup: Make, tmp_path: Path) -> None:
    async with setup() as it, it.client() as client:
        ConfigFile(tmp_path).change(models={"aliases": {"other": "gpt-6-sol"}})
        it.daemon.signal(signal.SIGHUP)
        await it.daemon.logged("configuration reloaded changed=models.aliases")
        assert (await client.get("/v1/models/other")).status_code == 200
        for text, said in (("{", "not valid JSON"), ('{"backend": {"url": "http://x:abc"}}', "backend.url")):
            (tmp_path / "config.json").write_text(text)
            it.daemon.signal(signal.SIGHUP)
            await it.daemon.logged(f"the old one stays in effect.*{said}")
        assert (await client.get("/v1/models/other")).status_code == 200


async def test_keys_of_the_configuration_come_and_go_with_a_reload(setup: Make, tmp_path: Path) -> None:
    async with setup() as it, it.client() as client:
        ConfigFile(tmp_path).change(server={"clientKeys": {"fixed": "0123456789abcdef"}})
        assert (await it.ctl("reload")).code == 0
        assert (await client.get("/v1/models")).status_code == 401
        assert (await client.get("/v1/models", headers={"x-api-key": "0123456789abcdef"})).status_code == 200
        assert "configuration" in (await it.ctl("keys", "list")).out
        ConfigFile(tmp_path).change(server={"clientKeys": {}})
        assert (await it.ctl("reload")).code == 0
        assert (await client.get("/v1/models")).status_code == 200
