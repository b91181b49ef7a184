"""The container image and what starts it: read by their own linters, and run by a real podman and docker-compose.

Where no image could be built (``make container``) the files are only linted, and the summary of the run says so.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from support.box import Box, booted, why_not
from support.daemon import ROOT

pytestmark = pytest.mark.system

DOCKER = ROOT / "packaging" / "docker"
MADE = ROOT / "build" / "container"
LINTERS = MADE / "linters" / "bin"
KEY = "a-key-of-the-test-0123456789"
COMPOSE = ("env", "DOCKER_HOST=unix:///run/podman.sock", "/src/build/container/linters/bin/docker-compose",
           "--project-directory", "/compose", "-f", "/compose/docker-compose.yml", "-f", "/compose/test.yml")  # fmt: skip

ENGINE = {
    # The box has no cgroups to give away.
    "/etc/containers/containers.conf": '[containers]\ncgroups = "disabled"\n[engine]\nruntime = "crun"\n',
    # On a tmpfs, because an overlay cannot lie on an overlay.
    "/etc/containers/storage.conf": '[storage]\ndriver = "overlay"\ngraphroot = "/run/store"\nrunroot = "/run/ctr"\n',
}
TEST = """
services:
  codexd:
    ulimits: {nofile: 1024, nproc: 4096}
    healthcheck: {interval: 1s}
    environment:
      CODEXD_OAUTH__ISSUER: http://10.89.77.1:9000
      CODEXD_BACKEND__URL: http://10.89.77.1:9000/backend-api
networks:
  default: {ipam: {config: [{subnet: 10.89.77.0/24, gateway: 10.89.77.1}]}}
"""


def lint(*words: str, **env: str) -> "subprocess.CompletedProcess[str]":
    if not LINTERS.exists():
        pytest.skip("make container installs the linters")
    command = [str(LINTERS / words[0]), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=DOCKER, env=env)


def test_the_dockerfile_is_written_as_it_should_be() -> None:
    done = lint("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_compose_file_is_understood_and_wants_a_key() -> None:
    done = lint("docker-compose", "config", "--quiet", CODEXD_KEY=KEY)
    assert done.returncode == 0, done.stderr
    without = lint("docker-compose", "config", "--quiet")
    assert without.returncode != 0
    assert "echo CODEXD_KEY=$(openssl rand -hex 24) > .env" in without.stderr


def test_the_kubernetes_example_fits_the_schemas() -> None:
    done = lint("kubernetes-validate", str(ROOT / "packaging" / "kubernetes" / "codexd.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "statefulset/codexd" in done.stdout + done.stderr


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    if (why := why_not()) is not None:
        pytest.skip(f"only linted: {why}")
    if not (MADE / "codexd.tar").exists():
        pytest.skip("only linted: make container builds the image")
    if not Path("/usr/bin/podman").exists():
        pytest.skip("only linted: podman is not installed")
    with booted(tmp_path_factory.mktemp("box"), {ROOT: "/src", DOCKER: "/docker"}) as made:
        for path, text in ENGINE.items():
            made.write(path, text)
        made.run("cp", "-r", "/docker", "/compose")
        made.write("/compose/test.yml", TEST)
        made.run("podman", "load", "-q", "-i", "/src/build/container/codexd.tar", timeout=300)
        made.run(
            "systemd-run", "--unit=podman-api", "podman", "system", "service", "--time=0", "unix:///run/podman.sock"
        )
        made.until("podman.sock", "ls", "/run")
        yield made
        made.run(*COMPOSE, "down", "--timeout", "1", timeout=120)
        made.run("systemctl", "stop", "podman-api", "chatgpt")


def compose(box: Box, *words: str) -> str:
    return box.run(*COMPOSE, *words, timeout=120)


def curl(box: Box, path: str, *words: str) -> str:
    return box.run("curl", "-sS", "--max-time", "30", *words, f"http://127.0.0.1:3000{path}")


def inspect(box: Box) -> dict[str, Any]:
    (found,) = msgspec.json.decode(box.run("podman", "inspect", "codexd-codexd-1"))
    return cast("dict[str, Any]", found)


def test_it_starts_as_the_compose_file_says(box: Box) -> None:
    box.write("/compose/.env", f"CODEXD_KEY={KEY}\n")
    compose(box, "up", "--detach", "--wait", "--no-build")
    # The bridge is there now, and the simulated ChatGPT on its gateway.
    box.run("systemd-run", "--unit=chatgpt", "--setenv=PYTHONPATH=/src", "/src/.venv/bin/python",
            "/src/tests/system/chatgpt.py", "10.89.77.1:9000", "0.05", "/tmp/tokens.json")  # fmt: skip
    box.until("access_token", "cat", "/tmp/tokens.json")
    assert '"signed_in":false' in curl(box, "/health")
    inside = compose(box, "exec", "-T", "codexd", "sh", "-c", "id -u; grep CapEff /proc/self/status; touch /x || true")
    assert inside.splitlines()[:2] == ["10001", "CapEff:\t0000000000000000"]
    assert "Read-only file system" in inside


def test_a_person_signs_in_and_a_client_needs_its_key(box: Box) -> None:
    said = compose(box, "exec", "-T", "codexd", "codexctl", "login")
    assert "Signed in as" in said
    body = '{"model": "gpt-5.5", "messages": [{"role": "user", "content": "one two three"}]}'
    assert "invalid_api_key" in curl(box, "/v1/chat/completions", "-d", body)
    answer = curl(box, "/v1/chat/completions", "-d", body, "-H", f"authorization: Bearer {KEY}")
    assert "You wrote: one two three" in answer
    assert "signed in." in compose(box, "exec", "-T", "codexd", "codexctl", "health", "--ready")


def test_its_health_is_codexctls(box: Box) -> None:
    box.run("podman", "healthcheck", "run", "codexd-codexd-1")
    config = inspect(box)["Config"]
    assert config["Healthcheck"]["Test"] == ["CMD", "codexctl", "health"]
    assert config["StopSignal"] in ("SIGTERM", 15)


def test_it_stops_in_peace_and_the_sign_in_stays(box: Box) -> None:
    compose(box, "stop")
    state = inspect(box)["State"]
    assert (state["Status"], state["ExitCode"]) == ("exited", 0)
    compose(box, "down")
    compose(box, "up", "--detach", "--wait", "--no-build")
    assert '"signed_in":true' in curl(box, "/health")


def test_without_a_key_it_says_what_is_missing(box: Box) -> None:
    said = box.run("podman", "run", "--rm", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--network",
                   "none", "codexd", check=False)  # fmt: skip
    assert "client_keys" in said
