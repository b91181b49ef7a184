"""``kill -9`` at every step of a write that must not be lost: the file is the old one or the new one, and whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from codexd.auth import store
from codexd.auth.store import Credentials
from codexd.state import files
from support.daemon import ROOT

OLD = Credentials(access_token="old", refresh_token="rt-old", account_id="a", expires_at=1.0, updated_at=1.0)
NEW = Credentials(access_token="new", refresh_token="rt-new", account_id="a", expires_at=2.0, updated_at=2.0)

# Every call that the write makes into the kernel is counted, by name, and the process kills itself just before the
# one that the test names: nothing can be cleaned up after that, as when the power goes.
CHILD = """
import builtins, os, pathlib, signal, sys
step, path = int(sys.argv[1]), pathlib.Path(sys.argv[2])
from codexd.auth import store
from codexd.state import files
from codexd.auth.store import Credentials
calls = 0
def counted(real):
    def call(*arguments, **options):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call
def halves(real):
    # A write that the kernel took half of.
    def write(self, data):
        global calls
        calls += 1
        if calls == step:
            real(self, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, data)
    return write
import io
class File(io.FileIO):
    write = halves(io.FileIO.write)
real_fdopen = os.fdopen
os.fdopen = lambda descriptor, mode: io.BufferedWriter(File(descriptor, mode))
for name in ("open", "fchmod", "fsync", "close"):
    setattr(os, name, counted(getattr(os, name)))
pathlib.Path.replace = counted(pathlib.Path.replace)
store.save(path, Credentials(access_token="new", refresh_token="rt-new", account_id="a", expires_at=2.0, updated_at=2.0))
print(calls)
"""


def save(path: Path, step: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(step), str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many steps a save has."""
    done = save(tmp_path_factory.mktemp("steps") / "tokens.json", 0)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_killed_save_leaves_the_old_file_or_the_new_one(tmp_path: Path, steps: int) -> None:
    assert steps >= 8  # open, fchmod, write, fsync, rename, open, fsync, close
    path = tmp_path / "tokens.json"
    found = []
    for step in range(1, steps + 1):
        store.save(path, OLD)
        killed = save(path, step)
        assert killed.returncode == -signal.SIGKILL, killed
        left = store.load(path)
        assert left in (OLD, NEW), step
        assert path.stat().st_mode & 0o777 == 0o600
        found.append(left == NEW)
        # What lies about does not disturb the next save, nor a sign-out.
        store.save(path, NEW)
        assert store.load(path) == NEW
    assert found == sorted(found)
    assert set(found) == {False, True}
    files.delete(path)
    assert list(tmp_path.iterdir()) == []
