"""Real clients against the real daemon, over the simulated ChatGPT. ``make clients`` installs those that are not Python."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.daemon import environment

pytestmark = pytest.mark.loopback

HERE = Path(__file__).parent
CODEX = HERE / "node_modules" / ".bin" / "codex"
NODE = shutil.which("node")
MODELS = ("gpt-5.5", "gpt-6-sol")  # one of each shape


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    if NODE is None or not CODEX.exists():
        pytest.skip("make clients installs what is needed here")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[str]:
    home = tmp_path_factory.mktemp("clients")
    with (logs / "clients.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "codexd", "--demo"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(home) | {"PORT": "0"},
            cwd=home,
        )
        try:
            assert process.stdout is not None
            said = ""
            while "Ctrl-C" not in said:
                line = process.stdout.readline()
                assert line, said
                said += line
            found = re.search(r"Base URL +(\S+)", said)
            assert found is not None
            yield found[1]
        finally:
            process.terminate()
            process.communicate(timeout=30)


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


@pytest.mark.parametrize("model", MODELS)
def test_the_official_node_sdk(base: str, model: str, tmp_path: Path) -> None:
    found = node("openai.mjs", base, model, tmp_path)
    hello = found["whole"]
    assert hello.endswith("You wrote: Hello")
    assert [found[key] for key in ("streamed", "response", "streamedResponse")] == [hello] * 3
    assert found["final"] == "The tool returned: sunny in Paris"
    assert (found["first"], found["last"]) == ("response.created", "response.completed")
    assert model in found["listed"]


@pytest.mark.parametrize("model", MODELS)
def test_the_ai_sdk(base: str, model: str, tmp_path: Path) -> None:
    found = node("ai-sdk.mjs", base, model, tmp_path)
    assert found["whole"].endswith("You wrote: Hello")
    assert found["streamed"] == found["whole"]
    assert (found["steps"], found["looped"]) == (2, "The tool returned: sunny in Paris")
    assert set(found["object"]) == {"city"}
    assert (found["finish"], found["tokens"]) == ("stop", True)


@pytest.mark.parametrize(
    ("model", "prompt", "said"),
    [
        ("gpt-5.5", "Hello there", "You wrote: Hello there"),
        ("gpt-6-sol", "Hello there", "You wrote: Hello there"),
        ("gpt-5.5", "exec command now", "The tool returned:"),
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
    done = subprocess.run(
        [str(CODEX), "exec", "--skip-git-repo-check", prompt],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment(tmp_path) | {"CODEX_HOME": str(home)},
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
