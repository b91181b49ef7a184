"""The state directory: read by newer versions, saved, and put back."""

import datetime
import os
import re
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from codexd.auth import store
from support.control import codexctl, command
from support.daemon import PATIENCE, Daemon, environment, running
from support.secrets import access_token
from support.simulated import simulated

pytestmark = pytest.mark.loopback

STATES = Path(__file__).parent.parent / "states"
"""A state directory as each release left it, by its version. `pytest --accept` makes the one for RELEASE."""

RELEASE = "1.0.0"
KEEP = {"responses": True, "response_seconds": 366 * 86400}


async def fill(daemon: Daemon) -> None:
    """Use what leaves something behind."""
    key = (await codexctl(daemon, "keys", "add", "laptop", "--models", "gpt-5.5", "--rpm", "30")).out.strip()
    (daemon.state.parent / "text.md").write_text("Be kind.\n")
    assert (await codexctl(daemon, "prompts", "set", "gpt-5-1", str(daemon.state.parent / "text.md"))).code == 0
    assert (await codexctl(daemon, "models", "--refresh")).code == 0
    async with httpx.AsyncClient(base_url=daemon.base, trust_env=False, timeout=PATIENCE) as client:
        body = {"model": "gpt-5.5", "input": "Remember this"}
        answer = await client.post("/v1/responses", json=body, headers={"x-api-key": key})
        assert answer.status_code == 200
    (daemon.state / "id").write_text(answer.json()["id"])
    (daemon.state / "key").write_text(key)


async def is_all_there(daemon: Daemon) -> None:
    key = {"x-api-key": (daemon.state / "key").read_text()}
    async with httpx.AsyncClient(base_url=daemon.base, trust_env=False, timeout=PATIENCE, headers=key) as client:
        kept = await client.get(f"/v1/responses/{(daemon.state / 'id').read_text()}")
        assert (kept.status_code, kept.json()["status"]) == (200, "completed")
        refused = await client.post("/v1/responses", json={"model": "gpt-5.1", "input": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_allowed")
    assert "laptop" in (await codexctl(daemon, "keys", "list")).out
    assert (await codexctl(daemon, "prompts", "show", "gpt-5-1")).out == "Be kind.\n"
    used = await codexctl(daemon, "usage", "--by", "key", "--since", "2020-01-01")
    assert "laptop" in used.out


@pytest.mark.parametrize("release", sorted({RELEASE, *(path.name for path in STATES.glob("*"))}))
async def test_the_state_of_an_older_version_is_read(tmp_path: Path, logs: Path, release: str, accept: bool) -> None:
    async with simulated() as chatgpt:
        state = tmp_path / "state"
        if accept and not (STATES / release).exists():
            state.mkdir()
            store.save(state / "tokens.json", chatgpt.issuer.sign_in())
            async with running(tmp_path, logs, chatgpt, signed_in=False, storage=KEEP) as daemon:
                await fill(daemon)
                daemon.signal()
                assert await daemon.process.wait() == 0
            made = shutil.ignore_patterns("*.lock", "*.sock")
            shutil.copytree(state, STATES / release, ignore=made)
            shutil.rmtree(state)
        shutil.copytree(STATES / release, state)
        # Its tokens and its times have ended since: the form is what is kept.
        tokens = msgspec.json.decode((state / "tokens.json").read_bytes())
        moment = int(time.time())
        fresh = {"access_token": access_token(moment + 864000), "expires_at": moment + 864000, "updated_at": moment}
        (state / "tokens.json").write_bytes(msgspec.json.encode(tokens | fresh))
        for path in (state / "responses").glob("*.json"):
            text = msgspec.json.decode(path.read_bytes())
            path.write_bytes(msgspec.json.encode(_renewed(text, moment)))
        used = (state / "usage.json").read_text()
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        (state / "usage.json").write_text(re.sub(r"\d{4}-\d\d-\d\d", today, used))
        async with running(tmp_path, logs, chatgpt, signed_in=False, storage=KEEP) as daemon:
            assert (await codexctl(daemon, "health", "--ready")).code == 0
            await is_all_there(daemon)
            log = daemon.log.read_text()
            assert "set aside" not in log
            assert "Traceback" not in log


def _renewed(stored: Any, moment: int) -> Any:
    return {**stored, "at": moment}


async def test_a_backup_is_put_back(tmp_path: Path, logs: Path) -> None:
    async with simulated() as chatgpt:
        state, saved = tmp_path / "state", tmp_path / "saved.tar.gz"
        state.mkdir()
        store.save(state / "tokens.json", chatgpt.issuer.sign_in())
        run = {"signed_in": False, "storage": KEEP}
        words = ("--state", str(state), str(saved))
        async with running(tmp_path, logs, chatgpt, **run) as daemon:
            await fill(daemon)
            keys = [(state / name).read_text() for name in ("key", "id")]
            assert "The sign-in is not included" in (await codexctl(daemon, "backup", *words)).out
            refused = await codexctl(daemon, "restore", *words)
            assert (refused.code, "codexd is using" in refused.err, "Stop it first" in refused.err) == (
                5,
                True,
                True,
            )
            daemon.signal()
            assert await daemon.process.wait() == 0
        await _again(daemon, *words)
        with tarfile.open(saved) as archive:
            names = archive.getnames()
        assert saved.stat().st_mode & 0o777 == 0o600
        assert "tokens.json" not in names
        assert {"keys.json", "prompts.json", "usage.json"} <= set(names)
        shutil.rmtree(state)
        state.mkdir(mode=0o700)
        said = await codexctl(daemon, "restore", *words)
        assert (said.code, "codexctl login" in said.err) == (0, True)
        assert not list(state.rglob("*.restored"))
        for name, text in zip(("key", "id"), keys, strict=True):
            (state / name).write_text(text)
        store.save(state / "tokens.json", chatgpt.issuer.sign_in())
        async with running(tmp_path, logs, chatgpt, **run) as daemon:
            await is_all_there(daemon)


async def _again(daemon: Daemon, *words: str) -> None:
    """What runs after the daemon's end is written at its end: the usage."""
    assert (await codexctl(daemon, "backup", *words)).code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, and a state that is somebody else's")
def test_root_works_as_the_owner_of_the_state(tmp_path: Path) -> None:
    """A link that the owner has put there leads root nowhere that the owner may not go."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    state, secret = tmp_path / "state", tmp_path / "secret"
    secret.write_text('{"of": "root"}')
    secret.chmod(0o600)
    state.mkdir(mode=0o700)
    (state / "keys.json").write_text("{}")
    os.chown(state, 65534, 65534)
    os.chown(state / "keys.json", 65534, 65534)
    saved = tmp_path / "saved.tar.gz"

    def run(verb: str) -> subprocess.CompletedProcess[str]:
        words = command(verb, "--state", str(state), str(saved))
        return subprocess.run(
            words, capture_output=True, text=True, env=environment(tmp_path), timeout=PATIENCE, check=False
        )

    assert run("backup").returncode == 0
    (state / "usage.json").symlink_to(secret)
    refused = run("backup")
    assert (refused.returncode, "Cannot read" in refused.stderr) == (5, True), refused
    (state / "usage.json").unlink()
    (state / "keys.json.restored").symlink_to(secret)
    assert run("restore").returncode == 0
    assert secret.read_text() == '{"of": "root"}'
    assert (secret.stat().st_uid, secret.stat().st_mode & 0o777) == (0, 0o600)
    for name in ("keys.json", "daemon.lock"):
        assert (state / name).stat().st_uid == 65534, name
        assert not (state / name).is_symlink()


def test_what_is_no_backup_changes_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "keys.json").write_text("{}")
    hostile = tmp_path / "hostile.tar.gz"
    (tmp_path / "evil").write_text("[]")
    with tarfile.open(hostile, "w:gz") as archive:
        for name in (
            "../evil.json",
            "/tmp/evil.json",
            "responses/../../evil.json",
            "tokens.json",
            "responses/a/b.json",
        ):
            archive.add(tmp_path / "evil", name)
    damaged = tmp_path / "damaged.tar.gz"
    with tarfile.open(damaged, "w:gz") as archive:
        archive.add(tmp_path / "evil", "keys.json")
        (tmp_path / "evil").write_text("[")
        archive.add(tmp_path / "evil", "usage.json")
    (tmp_path / "text").write_text("no archive")
    for name, said in (
        ("hostile.tar.gz", "contains no codexd state"),
        ("damaged.tar.gz", "Nothing was changed"),
        ("text", "is not a backup"),
        ("gone", "There is no file"),
    ):
        done = subprocess.run(
            command("restore", "--state", str(state), str(tmp_path / name)), capture_output=True, text=True,
            env=environment(tmp_path), timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (done.returncode, said in done.stderr) == (2, True), done
    assert [path.name for path in state.iterdir()] == ["keys.json"]
    assert (state / "keys.json").read_text() == "{}"
    done = subprocess.run(
        command("backup", "--state", str(tmp_path / "none"), "x"), capture_output=True, text=True,
        env=environment(tmp_path), timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, "No state directory at" in done.stderr) == (2, True)
