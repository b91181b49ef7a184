"""What the daemon carries along from its first second on."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.daemon import PATIENCE, environment

pytestmark = pytest.mark.loopback


def imported(tmp_path: Path, code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        env=environment(tmp_path), capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_the_daemon_imports_nothing_that_it_never_uses(tmp_path: Path) -> None:
    code = "from codexd.system import memory\nwith memory.lean_imports():\n    import codexd.daemon\nimport structlog, httpx"
    found = imported(tmp_path, code)
    assert "hypercorn.trio.run" in found
    assert {
        "rich",
        "pygments",
        "httpx._main",
        "h2.connection",
        "hpack",
        "segno",
        "codexd.ctl",
        "codexd.demo",
    } & found == set()


def test_what_was_left_out_can_be_imported_afterwards(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        "from codexd.system import memory\nwith memory.lean_imports():\n    import structlog\nimport rich.table",
    )
    assert "rich.table" in found


def test_codexctl_and_the_version_of_codexd_need_no_runtime(tmp_path: Path) -> None:
    for module in ("codexd.ctl.__main__", "codexd.__main__"):
        assert {"trio", "httpx", "quart", "structlog", "rich"} & imported(tmp_path, f"import {module}") == set()
