"""A plain install, without locks, on every Python that codexd says it runs on: it starts, answers and is controlled."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from support.daemon import PATIENCE, ROOT, environment
from support.demo import base_url, curl_of, demo

pytestmark = pytest.mark.system

PYTHONS = ROOT / "build" / "pythons"
VERSIONS = ("3.11", "3.12", "3.13", "3.14", "3.15")


def command(version: str, name: str) -> list[str]:
    """How it is started there; ``make pythons`` installed it."""
    here, newer = PYTHONS / version / "bin" / name, PYTHONS / "newer" / version
    if here.exists():
        return [str(here)]
    if newer.exists() and os.geteuid() == 0:
        return ["chroot", str(newer.resolve()), f"/{version}/bin/{name}"]
    pytest.skip(f"make pythons has no Python {version} here")


@pytest.mark.needs("curl")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_plain_install_answers(version: str, tmp_path: Path) -> None:
    run = {"capture_output": True, "text": True, "timeout": PATIENCE, "check": True, "cwd": "/"}
    env = {name: value for name, value in environment(tmp_path).items() if name != "PYTHONPATH"}
    python = subprocess.run([*command(version, "python"), "--version"], **run, env=env)  # type: ignore[call-overload]
    assert f"Python {version}." in python.stdout
    subprocess.run([*command(version, "pip"), "check", "--disable-pip-version-check"], **run, env=env)  # type: ignore[call-overload]
    with demo(tmp_path, tmp_path / "log", command=[*command(version, "codexd"), "--demo"], PYTHONPATH="") as said:
        streamed = subprocess.run(["bash", "-c", curl_of(said)], **run, env=env)  # type: ignore[call-overload]
        assert streamed.stdout.rstrip().endswith("[DONE]")
        assert base_url(said).startswith("http://127.0.0.1:")
        control = re.search(r"CODEXCTL_SOCKET=(\S+)", said)
        assert control is not None
        ctl = [*command(version, "codexctl"), "--socket", control[1]]
        status = subprocess.run([*ctl, "status"], **run, env=env)  # type: ignore[call-overload]
        assert "signed in" in status.stdout.lower()
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "not those that codexd was tested with" not in log


def test_the_classifiers_are_what_is_tried() -> None:
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    prefix = "Programming Language :: Python :: 3."
    assert [f"3.{each.removeprefix(prefix)}" for each in classifiers if each.startswith(prefix)] == list(VERSIONS)
