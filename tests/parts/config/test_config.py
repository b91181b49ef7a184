from pathlib import Path
from typing import Any

import msgspec
import pytest

from codexd.config.load import load, passed_over, search_path, table
from codexd.config.model import Config, Storage
from codexd.config.paths import resolve_bind, state_dir
from codexd.errors import ConfigError


def loaded(tmp_path: Path, text: str = "", name: str = "config.toml", **environ: str) -> Config:
    path = tmp_path / name
    path.write_text(text)
    return load(path, environ)[0]


def refusal(tmp_path: Path, text: str = "", name: str = "config.toml", **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, name, **environ)
    return str(caught.value).removeprefix(f"{tmp_path}/")


def test_without_a_file_it_listens_on_loopback(tmp_path: Path) -> None:
    settings, origin = load(None, {"HOME": str(tmp_path)})
    assert (settings, origin) == (Config(), None)
    assert settings.listen() == ["127.0.0.1:3000"]


JSON = """{"server": {"port": 3000, "host": "127.0.0.1"},
 "oauth": {"clientId": "app_x", "redirectUri": "http://localhost:1455/auth/callback", "localServerPort": 1455},
 "backend": {"url": "https://chatgpt.com/backend-api", "timeout": 120000},
 "logging": {"level": "info", "dir": "logs", "enableRequestLogging": false},
 "codex": {"mode": true, "defaultReasoningEffort": "medium", "defaultTextVerbosity": "medium"}}"""


def test_the_camel_case_json_form_is_read(tmp_path: Path) -> None:
    settings = loaded(tmp_path, JSON, "config.json")
    assert settings.listen() == ["127.0.0.1:3000"]
    assert (settings.backend.first_event_timeout, settings.backend.idle_timeout) == (120.0, 120.0)
    assert (settings.oauth.client_id, settings.oauth.local_server_port) == ("app_x", 1455)
    assert settings.codex.default_reasoning_effort == "medium"


def test_all_of_toml(tmp_path: Path) -> None:
    text = """
    [server]
    bind = ["127.0.0.1:1", "[::1]:2", "unix:/run/x.sock"]
    drain_seconds = 5
    client_keys = { laptop = "0123456789abcdef" }
    [models.aliases]
    fast = "gpt-6-luna-low"
    [storage]
    dir = "~/x"
    """
    settings = loaded(tmp_path, text)
    assert settings.listen() == ["127.0.0.1:1", "[::1]:2", "unix:/run/x.sock"]
    assert settings.models.aliases == {"fast": "gpt-6-luna-low"}


def test_places_are_searched_in_order(tmp_path: Path) -> None:
    home, etc = tmp_path / "home", tmp_path / "etc"
    last = home / ".chatgpt-codex-router" / "config.json"
    xdg = home / ".config" / "codexd" / "config.toml"
    first = etc / "config.toml"
    environ = {"HOME": str(home), "CONFIGURATION_DIRECTORY": str(etc)}
    for path, text in ((last, "{}"), (xdg, ""), (first, "")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
        assert load(None, environ)[1] == path
    # A user's own goes before the machine's.
    assert search_path(environ)[-1] == Path("/etc/codexd/config.toml")
    assert load(None, environ | {"CONFIG_PATH": str(xdg)})[1] == xdg
    assert load(last, environ | {"CONFIG_PATH": str(xdg)})[1] == last


def test_a_file_that_may_not_be_read_is_passed_over_unless_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal is made; the kernel's own is in tests/system/test_systemd.py."""
    hidden, readable = tmp_path / "hidden" / "config.toml", tmp_path / "config.json"
    hidden.parent.mkdir()
    hidden.write_text("not even TOML")
    readable.write_text('{"models": {"aliases": {"mine": "x"}}}')
    opened = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == hidden:
            raise PermissionError(13, "Permission denied")
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr("codexd.config.load.search_path", lambda _: [hidden, readable])
    found, origin = load(None, {})
    assert (origin, found.models.aliases) == (readable, {"mine": "x"})
    assert passed_over(None, {}) == [hidden]
    assert passed_over(readable, {}) == []
    for path, environ in (
        (hidden, {}), (None, {"CONFIG_PATH": str(hidden)}), (None, {"CONFIGURATION_DIRECTORY": str(hidden.parent)}),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="Permission denied"):
            load(path, environ)


def test_the_environment_is_on_top(tmp_path: Path) -> None:
    environ = {
        "PORT": "81",
        "LOG_LEVEL": "DEBUG",
        "ENABLE_REQUEST_LOGGING": "yes",
        "CODEXD_SERVER__DRAIN_SECONDS": "2.5",
        "CODEXD_MODELS__ALIASES": "a=gpt-5.5, b=gpt-6-sol",
        "CODEXD_CODEX__DEFAULT_REASONING_EFFORT": "low",
        "CODEXD_SERVER__ALLOW_UNAUTHENTICATED": "true",
        "CODEXD_HOME": "ignored, it names no key",
    }
    settings = loaded(tmp_path, "[server]\nbind = ['127.0.0.1:1', 'unix:/x']\n", **environ)
    assert settings.listen() == ["127.0.0.1:81", "unix:/x"]
    assert (settings.logging.level, settings.logging.enable_request_logging) == ("debug", True)
    assert (settings.server.drain_seconds, settings.server.allow_unauthenticated) == (2.5, True)
    assert settings.models.aliases == {"a": "gpt-5.5", "b": "gpt-6-sol"}
    assert loaded(tmp_path, "", HOST="::1").listen() == ["[::1]:3000"]
    assert loaded(tmp_path, "", CODEXD_SERVER__BIND="unix:/a, 127.0.0.1:5").listen() == ["unix:/a", "127.0.0.1:5"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[serve]\n", "config.toml:1: [serve]: unknown section; did you mean server?"),
        ("[zzz]\n", "config.toml:1: [zzz]: unknown section; expected one of server, oauth"),
        ("[server]\nzzz = 1\n", "config.toml:2: server.zzz: unknown key; expected one of bind"),
        ("[server]\nport = 70000\n", "config.toml:2: server.port: must be 65535 or less"),
        ("[server]\nbind = [1]\n", "config.toml:2: server.bind[0]: must be text in quotes, not a whole number"),
        ("[server]\nbind = ['a']\nport = 1\n", "config.toml:2: server.bind: set either bind, or host and port"),
        ("[server]\nbind = []\n", "config.toml:2: server.bind: needs at least one address"),
        ("[server]\nbind = ['127.0.0.1:1', '127.0.0.1:1']\n", "server.bind: 127.0.0.1:1 is listed twice"),
        (
            "[backend]\noriginator = 'Café'\n",
            "config.toml:2: backend.originator: must be ASCII characters without spaces",
        ),
        (
            "[server]\nbind = ['localhost']\n",
            'config.toml:2: server.bind: use host:port or unix:/path, not "localhost"',
        ),
        (
            "[server]\nclient_keys = { a = 'short' }\n",
            "config.toml:2: server.client_keys.NAME: must have 16 or more characters",
        ),
        (
            "[server]\nclient_keys = { a = 'sha256:0123456789' }\n",
            "server.client_keys.a: must be the key itself, or sha256: followed by 64",
        ),
        (
            "[codex]\ndefault_reasoning_effort = 'x'\n",
            'must be one of none, minimal, low, medium, high, xhigh, max, ultra, not "x"',
        ),
        ("[backend]\nurl = 'ftp://x'\n", "config.toml:2: backend.url: must be an http or https address"),
        ("[backend]\nidle_timeout = 0\n", "config.toml:2: backend.idle_timeout: must be more than 0"),
    ],
)
def test_mistakes_are_named_with_file_key_and_expectation(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_mistakes_in_json_and_the_environment_are_named_too(tmp_path: Path) -> None:
    assert "not valid JSON" in refusal(tmp_path, "{", "config.json")
    assert "expected a JSON object" in refusal(tmp_path, "[]", "config.json")
    assert "must be a number of milliseconds above 0" in refusal(
        tmp_path, '{"backend": {"timeout": "x"}}', "config.json"
    )
    assert "server is a section" in refusal(tmp_path, '{"server": 1}', "config.json")
    assert refusal(tmp_path, PORT="x").startswith("$PORT: server.port: must be a whole number")
    assert refusal(tmp_path, CODEXD_X__Y="1").startswith('$CODEXD_X__Y: unknown section "x"')
    assert refusal(tmp_path, CODEXD_SERVER__Y="1").startswith("$CODEXD_SERVER__Y: unknown key")
    assert refusal(tmp_path, CODEXD_SERVER_PORT="1").endswith("did you mean $CODEXD_SERVER__PORT?")
    assert "must be NAME=VALUE" in refusal(tmp_path, CODEXD_MODELS__ALIASES="a")
    assert "must be true or false" in refusal(tmp_path, CODEXD_CODEX__MODE="maybe")


@pytest.mark.parametrize("bind", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "example.test:1"])
def test_beyond_loopback_needs_a_key_or_the_word(tmp_path: Path, bind: str) -> None:
    text = f"[server]\nbind = ['{bind}']\n"
    said = refusal(tmp_path, text)
    assert "[server.client_keys]" in said
    assert "server.allow_unauthenticated = true" in said
    loaded(tmp_path, f"{text}allow_unauthenticated = true\n")
    loaded(tmp_path, f"{text}client_keys = {{ a = '0123456789abcdef' }}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[backend]\nurl = 'http://127.0.0.1:abc/x'\n", "backend.url: must be an http or https address"),
        ("[backend]\nurl = 'http:///x'\n", "backend.url: must be an http or https address"),
        ("[backend]\nurl = 'http://h/a b'\n", "backend.url: must be an http or https address"),
        ("[oauth]\nissuer = 'https://ä.example'\n", "oauth.issuer: must be an http or https address"),
        ("[oauth]\nredirect_uri = 'http://127.0.0.1:99999/cb'\n", "oauth.redirect_uri: must be an http or https"),
        ("[server]\nstrict_keys = ['x']\n", 'server.strict_keys: "x" is not in server.client_keys'),
        ("[storage]\ndir = '~nobody-of-that-name/x'\n", "storage.dir: ~nobody-of-that-name/x: unknown user"),
        ("[logging]\ndir = '~nobody-of-that-name/x'\n", "logging.dir: ~nobody-of-that-name/x: unknown user"),
    ],
)
def test_addresses_and_directories_are_checked_at_start(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_keys_that_were_made_are_a_way_beyond_loopback(tmp_path: Path) -> None:
    text = f"[server]\nbind = ['0.0.0.0:1']\n[storage]\ndir = '{tmp_path}/state'\n"
    assert "codexctl keys add" in refusal(tmp_path, text)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "keys.json").write_text("{}")
    assert loaded(tmp_path, text).key_always


def test_where_state_lives() -> None:
    stored = msgspec.structs.replace(Config(), storage=Storage(dir="/s"))
    assert state_dir(stored, {"STATE_DIRECTORY": "/a:/b"}) == Path("/a")
    assert state_dir(stored, {}) == Path("/s")
    assert state_dir(Config(), {"XDG_STATE_HOME": "/x"}) == Path("/x/codexd")
    assert state_dir(Config(), {"HOME": "/h"}) == Path("/h/.local/state/codexd")


def test_every_key_is_described() -> None:
    assert all(row.rpartition(" | ")[2].removesuffix(" |") for row in table().splitlines()[2:])


def test_a_socket_by_name_lies_in_the_runtime_directory(tmp_path: Path) -> None:
    assert resolve_bind("unix:a.sock", {"RUNTIME_DIRECTORY": "/r:/s"}) == "unix:/r/a.sock"
    assert resolve_bind("unix:a.sock", {"XDG_RUNTIME_DIR": str(tmp_path)}) == f"unix:{tmp_path}/codexd/a.sock"
    assert resolve_bind("unix:/a", {}) == "unix:/a"
    assert resolve_bind("127.0.0.1:1", {}) == "127.0.0.1:1"
    with pytest.raises(ConfigError, match="RUNTIME_DIRECTORY"):
        resolve_bind("unix:a.sock", {})


def test_a_directory_that_cannot_be_looked_into_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load(None, {"HOME": str(tmp_path), "CONFIGURATION_DIRECTORY": str(tmp_path)})
