"""The wheel holds what the daemon needs at run time, the instruction texts included."""

import subprocess
import sys
import zipfile
from pathlib import Path

from codexd import __version__, prompts
from support.daemon import ROOT, environment


def test_the_wheel_runs_without_the_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    assert {path.stem for path in (unpacked / "codexd" / "prompts_data").iterdir()} == set(prompts.FAMILIES)
    assert (unpacked / "codexd" / "py.typed").exists()
    assert not (unpacked / "tests").exists()
    pages = {path.name for path in unpacked.glob("*.data/data/share/man/man*/*")}
    assert pages == {"codexctl.1", "codexd.8", "codexd.toml.5"}
    (scripts,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "codexctl = codexd.ctl.__main__:cli" in scripts.read_text()
    code = "from codexd import prompts, __version__; print(__version__, len(prompts.for_model('gpt-5.1-codex')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path) | {"PYTHONPATH": str(unpacked)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    version, length = done.stdout.split()
    assert (version, int(length)) == (__version__, len(prompts.for_model("gpt-5.1-codex")))
