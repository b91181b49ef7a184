"""What the daemon carries along from its first second on."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import trio

from support.daemon import PATIENCE, environment, running
from support.upstream import Upstream

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
        "h2",
        "hpack",
        "segno",
        "quart",
        "werkzeug",
        "jinja2",
        "html.entities",
        "difflib",
        "prometheus_client",
        "codexd.ctl",
        "codexd.demo",
        "codexd.api.status_page",
    } & found == set()


MEMORY = 48
"""MiB at rest. It is 43 with Python 3.11; another interpreter has other objects."""

GROWN = """
import builtins, sys
from codexd.system import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4

def grown(*args, **kwargs):
    before, below[:] = resident(), [*below, 0]
    try:
        return load(*args, **kwargs)
    finally:
        more, inside = resident() - before, below.pop()
        if below:
            below[-1] += more
        found[args[0]] = found.get(args[0], 0) + more - inside

load, below, found = builtins.__import__, [], {}
builtins.__import__ = grown
with memory.lean_imports():
    import trio, codexd.daemon
print(*(f"{size} KiB {name}" for name, size in sorted(found.items(), key=lambda each: -each[1])[:20]), sep="\\n")
"""
"""Prints what each module takes by itself."""


async def test_at_rest_it_takes_little_memory(tmp_path: Path, logs: Path, upstream: Upstream) -> None:
    async with (
        running(tmp_path, logs, upstream, logging={"level": "info", "enable_request_logging": False}) as daemon,
        httpx.AsyncClient(base_url=daemon.base, timeout=PATIENCE) as http,
    ):
        for _ in range(40):
            asked = {"model": "gpt-5.5", "messages": [{"role": "user", "content": "x"}], "stream": True}
            assert (await http.post("/v1/chat/completions", json=asked)).status_code == 200
        found = Path(f"/proc/{daemon.process.pid}/smaps_rollup").read_text()
    sizes = {line.split()[0]: int(line.split()[1]) // 1024 for line in found.splitlines() if line.endswith("kB")}
    if sizes["Rss:"] > MEMORY:
        grown = await trio.run_process([sys.executable, "-c", GROWN], capture_stdout=True)
        pytest.fail(f"{sizes['Rss:']} MiB at rest. What the imports take, each by itself:\n{grown.stdout.decode()}")


def test_what_was_left_out_can_be_imported_afterwards(tmp_path: Path) -> None:
    found = imported(
        tmp_path,
        "from codexd.system import memory\nwith memory.lean_imports():\n    import structlog\nimport rich.table",
    )
    assert "rich.table" in found


def test_codexctl_and_the_version_of_codexd_need_no_runtime(tmp_path: Path) -> None:
    for module in ("codexd.ctl.__main__", "codexd.__main__"):
        assert {"trio", "httpx", "quart", "structlog", "rich"} & imported(tmp_path, f"import {module}") == set()
