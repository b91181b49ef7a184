"""The import contracts, each seen to fail on a file that nobody has listed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.daemon import ROOT

PLANTED = {
    "Arrows point down": [
        ("state/new.py", "from codexd.api import record"),
        ("errors_new.py", "import os"),  # in no wing at all
        ("telemetry/new.py", "from codexd.state import keys"),
    ],
    "Dialects do not know each other, nor the backend them": [
        ("protocol/codex/new.py", "from codexd.protocol.chat import wire"),
        ("protocol/responses/new.py", "from codexd.protocol.chat import wire"),
    ],
    "The protocol is sans-IO": [("protocol/chat/new.py", "import trio"), ("protocol/new.py", "import socket")],
    "Quart is websockets alone, and Werkzeug forms": [("api/new.py", "import quart"), ("state/new.py", "import quart")],
    "Hypercorn stays in the server": [("api/new.py", "import hypercorn.config")],
    "httpx stays in the rooms that speak to ChatGPT": [
        ("state/new.py", "import httpx"),
        ("auth/new.py", "import httpx"),
    ],
    "h11 stays in the server": [("upstream/new.py", "import h11")],
    "Each of these libraries has one owner": [("state/new.py", "import sdnotify"), ("api/new.py", "import rich")],
    "codexctl is small": [("ctl/verbs/new.py", "import trio"), ("ctl/verbs/new.py", "from codexd.state import keys")],
    "codexctl's arrows point down": [("ctl/new.py", "import os")],
    "A verb of codexctl is one file": [("ctl/verbs/new.py", "from codexd.ctl.verbs import login")],
    "There is no circle": [
        ("api/new_a.py", "from codexd.api import new_b"),
    ],
}


def broken(package: Path) -> set[str]:
    environ = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--no-logo",
        "--no-cache",
        "--config",
        str(ROOT / "pyproject.toml"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, cwd=package.parent, env=environ, check=False).stdout
    return {name for line in said.splitlines() for name, found, _ in [line.partition(" BROKEN")] if found}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = tmp_path_factory.mktemp("contracts") / "codexd"
    shutil.copytree(ROOT / "codexd", package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def test_they_are_kept(package: Path) -> None:
    assert broken(package) == set()


@pytest.mark.parametrize(
    ("contract", "file", "line"), [(name, *each) for name, all_ in PLANTED.items() for each in all_]
)
def test_a_new_file_falls_under_them(package: Path, contract: str, file: str, line: str) -> None:
    planted = [package / file]
    planted[0].write_text(line + "\n")
    if contract == "There is no circle":
        planted.append(planted[0].with_name("new_b.py"))
        planted[1].write_text("from codexd.api import new_a\n")
    try:
        assert contract in broken(package)
    finally:
        for each in planted:
            each.unlink()
