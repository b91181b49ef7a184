"""Real clients against the real daemon, over the simulated ChatGPT. ``make clients`` installs them."""

import base64
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from codexd.demo.script import PAGES
from support.control import command
from support.daemon import environment
from support.demo import base_url, demo

pytestmark = pytest.mark.loopback

HERE = Path(__file__).parent
BIN = HERE / "node_modules" / ".bin"
CODEX = BIN / "codex"
OPENCODE = HERE / "node_modules" / "opencode-linux-x64-baseline" / "bin" / "opencode"
NODE = shutil.which("node")
PYTHON = HERE / "python" / ".venv" / "bin" / "python"
MODELS = ("gpt-5.5", "gpt-6-sol")  # one of each shape
NOWHERE = {"HTTPS_PROXY": "http://127.0.0.1:9", "NO_PROXY": "127.0.0.1"}
"""Some clients have servers of their own that they call beside ours: nothing of that leaves the machine."""

needs_node = pytest.mark.skipif(NODE is None or not CODEX.exists(), reason="make clients installs what is needed")
needs_python = pytest.mark.skipif(not PYTHON.exists(), reason="make clients installs what is needed")


@pytest.fixture(scope="module", params=["auto", "http"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[str]:
    """The daemon, which speaks to the backend over websockets, or over HTTP."""
    log, lane = logs / f"clients-{request.param}.log", request.param
    with demo(tmp_path_factory.mktemp("clients"), log, CODEXD_BACKEND__TRANSPORT=lane) as said:
        yield base_url(said)
    finished = Counter(re.findall(r"request finished.* lane=(\w+)", log.read_text()))
    # The standard tests begin more conversations in a second than websockets may be opened.
    busy = len(re.findall(r"fallback=busy", log.read_text()))
    assert finished - Counter(http=busy) == Counter(
        {"websocket" if lane == "auto" else "http": finished.total() - busy}
    )


def node(script: str, base: str, model: str, home: Path) -> Any:
    done = subprocess.run(
        [str(NODE), str(HERE / script), base, model],
        capture_output=True,
        text=True,
        env=environment(home),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return msgspec.json.decode(done.stdout)


@needs_node
@pytest.mark.parametrize("model", MODELS)
def test_the_official_node_sdk(base: str, model: str, tmp_path: Path) -> None:
    found = node("openai.mjs", base, model, tmp_path)
    hello = found["whole"]
    assert hello.endswith("You wrote: Hello")
    assert [found[key] for key in ("streamed", "response", "streamedResponse")] == [hello] * 3
    assert found["final"] == "The tool returned: sunny in Paris"
    assert (found["first"], found["last"]) == ("response.created", "response.completed")
    assert model in found["listed"]
    assert found["images"] == [True, True]
    assert "web_search_call" in found["found"] and found["found"][-1] == "message"


@needs_node
@pytest.mark.parametrize("model", MODELS)
def test_ollamas_node_client(base: str, model: str, tmp_path: Path) -> None:
    found = node("ollama.mjs", base.removesuffix("/v1"), model, tmp_path)
    assert f"{model}:latest" in found["listed"] and "tools" in found["capabilities"]
    assert found["whole"].endswith("You wrote: Hello") and found["streamed"] == found["whole"]
    assert found["looped"] == "The tool returned: sunny in Paris"


@needs_python
@pytest.mark.parametrize("model", MODELS)
def test_ollamas_python_client(base: str, model: str, tmp_path: Path) -> None:
    script = str(HERE / "python" / "ollama_client.py")
    found = msgspec.json.decode(run(tmp_path, str(PYTHON), script, base.removesuffix("/v1"), model))
    assert f"{model}:latest" in found["listed"] and found["running"] == len(found["listed"])
    assert (found["pulled"], found["failed"]) == ("success", 404)
    assert {"completion", "tools", "vision"} <= set(found["capabilities"])
    assert found["whole"].endswith("You wrote: Hello")
    assert found["streamed"] == found["generated"] == found["whole"]
    assert found["thought"] and set(found["object"]) == {"city"}
    assert found["looped"] == "The tool returned: sunny in Paris"


@needs_node
@pytest.mark.parametrize("model", MODELS)
def test_the_ai_sdk(base: str, model: str, tmp_path: Path) -> None:
    found = node("ai-sdk.mjs", base, model, tmp_path)
    assert found["whole"].endswith("You wrote: Hello")
    assert found["streamed"] == found["whole"]
    assert (found["steps"], found["looped"]) == (2, "The tool returned: sunny in Paris")
    assert set(found["object"]) == {"city"}
    assert (found["finish"], found["tokens"]) == ("stop", True)


@needs_node
@pytest.mark.parametrize(
    ("model", "prompt", "said"),
    [
        ("gpt-5.5", "Hello there", "You wrote: Hello there"),
        ("gpt-6-sol", "Hello there", "You wrote: Hello there"),
        ("gpt-5.5", "exec command now", "The tool returned:"),
        ("gpt-6-sol", "exec command now", "The tool returned:"),  # a custom tool in a namespace
    ],
)
@pytest.mark.parametrize("websockets", ["false", "true"])
def test_the_codex_cli(base: str, websockets: str, model: str, prompt: str, said: str, tmp_path: Path) -> None:
    home = tmp_path / "codex"
    home.mkdir()
    (home / "config.toml").write_text(
        f'model = "{model}"\nmodel_provider = "codexd"\n'
        f'[model_providers.codexd]\nname = "codexd"\nbase_url = "{base}"\nwire_api = "responses"\n'
        f"supports_websockets = {websockets}\n"
    )
    assert said in codex(tmp_path, "exec", "--skip-git-repo-check", prompt)


def codex(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [str(CODEX), *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment(folder) | NOWHERE | {"CODEX_HOME": str(folder / "codex")},
        cwd=folder,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def part(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


@needs_node
@pytest.mark.parametrize("websockets", [True, False])
def test_the_codex_cli_with_a_sign_in_of_its_own(tmp_path: Path, websockets: bool) -> None:
    """As its built-in provider, which compresses its requests and wants the catalogue in its own shape."""
    claims = {"chatgpt_account_id": "account", "chatgpt_plan_type": "plus", "chatgpt_user_id": "user"}
    jwt = ".".join(
        (part({"alg": "none"}), part({"exp": 4e9, "email": "a@b", "https://api.openai.com/auth": claims}), "x")
    )
    tokens = {"id_token": jwt, "access_token": jwt, "refresh_token": "none", "account_id": "account"}
    home, log = tmp_path / "codex", tmp_path / "log"
    home.mkdir()
    signed_in = {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": now()}
    (home / "auth.json").write_bytes(msgspec.json.encode(signed_in))
    settings = {"CODEXD_SERVER__WEBSOCKET": str(websockets).lower(), "CODEXD_LOGGING__LEVEL": "debug"}
    with demo(tmp_path, log, **settings) as said:
        base = base_url(said)
        root = base.removesuffix("/v1")
        (home / "config.toml").write_text(
            f'model = "gpt-6-sol"\nopenai_base_url = "{base}"\nchatgpt_base_url = "{root}"\n'
        )
        assert "The tool returned:" in codex(tmp_path, "exec", "--skip-git-repo-check", "exec command now")
        listed = msgspec.json.decode(codex(tmp_path, "debug", "models"))["models"]
    assert ("gpt-6-sol", "Simulated") in [(model["slug"], model["description"]) for model in listed]
    kinds = re.findall(r"request finished method=(\w+) path=/v1/responses status=200", log.read_text())
    assert set(kinds) == {"WS" if websockets else "POST"}
    assert ("body_encoding=zstd" in log.read_text()) is not websockets


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


@needs_node
@pytest.mark.parametrize("model", MODELS)
def test_the_ai_sdk_over_responses(base: str, model: str, tmp_path: Path) -> None:
    """Its default for OpenAI: the answer's items are stored, and later turns name them by ``item_reference``."""
    found = node("ai-sdk-responses.mjs", base, model, tmp_path)
    assert [each.rpartition(": ")[2] for each in found["said"]] == ["Hello", "sunny in Paris", "And then?"]
    assert found["streamed"].endswith("You wrote: Bye")


def run(folder: Path, *command: str, **environ: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment(folder) | NOWHERE | environ,
        cwd=folder,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


QUIET = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "ANTHROPIC_AUTH_TOKEN": "any"}


@needs_node
def test_claude_code(base: str, tmp_path: Path) -> None:
    """With nothing but its base URL; it calls a tool, and the next turn goes on from there."""
    command = [str(BIN / "claude"), "-p", 'bash "pwd"', "--output-format", "stream-json", "--verbose"]
    said = run(tmp_path, *command, "--allowedTools", "Bash", ANTHROPIC_BASE_URL=base.removesuffix("/v1"), **QUIET)
    events = [msgspec.json.decode(line) for line in said.splitlines()]
    used = [block["name"] for event in events if event["type"] == "assistant" for block in event["message"]["content"]
            if block["type"] == "tool_use"]  # fmt: skip
    assert used[:1] == ["Bash"]
    assert (events[-1]["type"], events[-1]["is_error"]) == ("result", False)


@needs_node
def test_claude_codes_search(base: str, tmp_path: Path) -> None:
    """Its WebSearch is a request of its own with Anthropic's search tool."""
    command = [str(BIN / "claude"), "-p", 'websearch "weather"', "--output-format", "stream-json", "--verbose"]
    said = run(
        tmp_path,
        *command,
        "--allowedTools",
        "WebSearch",
        ENABLE_TOOL_SEARCH="false",
        ANTHROPIC_BASE_URL=base.removesuffix("/v1"),
        **QUIET,
    )
    events = [msgspec.json.decode(line) for line in said.splitlines()]
    results = [block for event in events if event["type"] == "user" for block in event["message"]["content"]
               if block["type"] == "tool_result"]  # fmt: skip
    assert PAGES[0][0] in str(results[0]["content"]), said
    assert (events[-1]["type"], events[-1]["is_error"]) == ("result", False)


@needs_node
@pytest.mark.parametrize("api", ["openai-completions", "openai-responses", "anthropic-messages"])
def test_pi(base: str, api: str, tmp_path: Path) -> None:
    folder = tmp_path / ".pi" / "agent"
    folder.mkdir(parents=True)
    url = base.removesuffix("/v1") if api == "anthropic-messages" else base
    provider = {"baseUrl": url, "apiKey": "any", "api": api, "models": [{"id": "gpt-5.5"}]}
    (folder / "models.json").write_bytes(msgspec.json.encode({"providers": {"codexd": provider}}))
    said = run(tmp_path, str(BIN / "pi"), "--provider", "codexd", "--model", "gpt-5.5", "-p", 'bash "pwd"')
    assert f"The tool returned: {tmp_path}" in said


@pytest.mark.skipif(not OPENCODE.exists(), reason="opencode is installed on x86-64 Linux alone")
def test_opencode(base: str, tmp_path: Path) -> None:
    options = {"baseURL": base, "apiKey": "any"}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {"gpt-5.5": {}}}
    config = {"provider": {"codexd": provider}, "autoupdate": False, "share": "disabled"}
    (tmp_path / "opencode.json").write_bytes(msgspec.json.encode(config))
    off = {f"OPENCODE_DISABLE_{name}": "1" for name in ("MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS")}
    said = run(tmp_path, str(OPENCODE), "run", "-m", "codexd/gpt-5.5", "Hello there", **off)
    assert "This is a simulated answer." in said and "Hello there" in said


@needs_python
def test_llm(base: str, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: codexd\n  model_name: gpt-5.5\n  api_base: {base}\n  can_stream: true\n"
    )
    command = [str(PYTHON.parent / "llm"), "-m", "codexd", "--key", "any"]
    assert "You wrote: Hello there" in run(tmp_path, *command, "Hello there", LLM_USER_PATH=str(tmp_path))
    again = run(tmp_path, *command, "-c", "And now?", LLM_USER_PATH=str(tmp_path))
    assert "You wrote: And now?" in again


@needs_python
@pytest.mark.parametrize("model", MODELS)
def test_openai_agents(base: str, model: str, tmp_path: Path) -> None:
    """With its own defaults, a session of its own, and one that compacts."""
    found = msgspec.json.decode(run(tmp_path, str(PYTHON), str(HERE / "python" / "agents_client.py"), base, model))
    assert [each.rpartition(": ")[2] for each in found["said"]] == ["Hello", "sunny in Paris"]
    assert found["streamed"].endswith("You wrote: Hello again")
    assert (found["kinds"], found["after"].rpartition(": ")[2]) == (["message", "compaction"], "And you?")


@needs_python
@pytest.mark.parametrize("model", [*MODELS, "claude-sonnet-4-5"])
def test_anthropics_tool_runner(base: str, model: str, tmp_path: Path) -> None:
    """It begins a thread, and sends the whole conversation when that is refused."""
    script = str(HERE / "python" / "anthropic_client.py")
    found = msgspec.json.decode(run(tmp_path, str(PYTHON), script, base.removesuffix("/v1"), model))
    assert (found["turns"], found["last"]) == (["tool_use", "end_turn"], "The tool returned: sunny in Paris")
    assert found["streamed"].endswith("You wrote: Hello")
    assert "gpt-5.5" in found["listed"]


@needs_python
@pytest.mark.parametrize("model", MODELS)
def test_litellm_as_a_client(base: str, model: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(PYTHON), str(HERE / "python" / "litellm_client.py"), base, model],
        capture_output=True,
        text=True,
        env=environment(tmp_path) | NOWHERE | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout)
    hello = found["whole"]
    assert hello.endswith("You wrote: Hello")
    assert [found[key] for key in ("streamed", "response", "message", "streamed_message")] == [hello] * 4
    assert found["looped"] == "The tool returned: sunny in Paris"
    assert found["tokens"] > 0


@needs_python
@pytest.mark.parametrize("base", ["auto"], indirect=True)  # they take a minute, and no lane makes a difference to them
def test_the_standard_tests_of_langchain(base: str, tmp_path: Path) -> None:
    """langchain-openai over chat and over responses, langchain-anthropic over messages; a model of each shape."""
    done = subprocess.run(
        [str(PYTHON), "-m", "pytest", "-q", "-n", "4", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-c", "/dev/null",
         "--rootdir", str(HERE / "python"), "--noconftest",
         str(HERE / "python" / "langchain_standard.py")],
        capture_output=True,
        text=True,
        env=environment(tmp_path) | NOWHERE | {"BASE_URL": base},
        cwd=HERE / "python",
        timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 130, done.stdout


@needs_python
def test_the_counts_of_tokens_are_those_of_the_real_tokenizer() -> None:
    """litellm brings o200k_base along; ``test_stops.py`` holds the estimate against these counts."""
    script = (
        "import json, os, pathlib, sys, litellm\n"
        "os.environ['TIKTOKEN_CACHE_DIR'] = str(pathlib.Path(litellm.__file__).parent / 'litellm_core_utils/tokenizers')\n"
        "import tiktoken\n"
        "encode = tiktoken.get_encoding('o200k_base').encode\n"
        "print(json.dumps({kind: len(encode(it['text'])) for kind, it in json.load(sys.stdin).items()}))\n"
    )
    kinds = (HERE.parent / "protocol" / "tokens" / "o200k.json").read_bytes()
    done = subprocess.run([str(PYTHON), "-c", script], input=kinds, capture_output=True, timeout=120, check=True)
    expected = {kind: it["tokens"] for kind, it in msgspec.json.decode(kinds).items()}
    assert msgspec.json.decode(done.stdout.splitlines()[-1]) == expected


# --- with what codexctl setup writes


@pytest.fixture(scope="module")
def demo_socket(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[str]:
    """The control socket of a daemon."""
    with demo(tmp_path_factory.mktemp("setup"), logs / "clients-setup.log") as said:
        found = re.search(r"CODEXCTL_SOCKET=(\S+)", said)
        assert found is not None
        yield found[1]


def written(client: str, home: Path, socket: str) -> None:
    """Writes the client's configuration with ``codexctl setup``."""
    run(home, *command("setup", client, "--write", "--model", "gpt-5.5"), CODEXCTL_SOCKET=socket, HOME=str(home))


@needs_node
def test_claude_code_as_set_up(demo_socket: str, tmp_path: Path) -> None:
    written("claude-code", tmp_path, demo_socket)
    quiet = {name: value for name, value in QUIET.items() if "TOKEN" not in name}
    said = run(tmp_path, str(BIN / "claude"), "-p", "Hello there", HOME=str(tmp_path), **quiet)
    assert "This is a simulated answer." in said


@needs_node
def test_the_codex_cli_as_set_up(demo_socket: str, tmp_path: Path) -> None:
    (tmp_path / "codex").mkdir()
    (tmp_path / "codex" / "config.toml").write_text('[history]\npersistence = "none"\n')
    environ = {"CODEX_HOME": str(tmp_path / "codex"), "CODEXCTL_SOCKET": demo_socket}
    run(tmp_path, *command("setup", "codex", "--write", "--model", "gpt-5.5", "--key", "sk-of-somebody"), **environ)
    assert "You wrote: Hello there" in codex(tmp_path, "exec", "--skip-git-repo-check", "Hello there")


@pytest.mark.skipif(not OPENCODE.exists(), reason="opencode is installed on x86-64 Linux alone")
def test_opencode_as_set_up(demo_socket: str, tmp_path: Path) -> None:
    written("opencode", tmp_path, demo_socket)
    off = {
        f"OPENCODE_DISABLE_{name}": "1" for name in ("MODELS_FETCH", "LSP_DOWNLOAD", "DEFAULT_PLUGINS", "AUTOUPDATE")
    }
    said = run(tmp_path, str(OPENCODE), "run", "-m", "codexd/gpt-5.5", "Hello there", HOME=str(tmp_path), **off)
    assert "This is a simulated answer." in said


@needs_python
def test_llm_as_set_up(demo_socket: str, tmp_path: Path) -> None:
    written("llm", tmp_path, demo_socket)
    said = run(tmp_path, str(PYTHON.parent / "llm"), "-m", "codexd/gpt-5.5", "Hello there", HOME=str(tmp_path))
    assert "You wrote: Hello there" in said
