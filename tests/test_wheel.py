"""The wheel holds what the daemon needs at run time, the prompts included."""

import re
import shutil
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

from codexd.api import docs_pages
from codexd.state import instructions
from support.daemon import ROOT, environment


def tagged(folder: Path, version: str) -> Path:
    """A checkout of what is here now, its commit tagged as that version."""
    tree = folder / "tree"
    run = partial(subprocess.run, check=True, capture_output=True, timeout=120)
    names = run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@localhost"]
    run(["git", "init", "-q", str(tree)])
    run([*git, "add", "-A"])
    run([*git, "commit", "-qm", "x"])
    run([*git, "tag", f"v{version}"])
    return tree


def test_the_wheel_runs_without_the_checkout_and_knows_its_tag(tmp_path: Path) -> None:
    tree = tagged(tmp_path, "9.8.7")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(tree)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    wheel = tmp_path / "codexd-9.8.7-py3-none-any.whl"
    first = wheel.read_bytes()
    (tree / "README.md").touch()
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert wheel.read_bytes() == first, "two builds of one commit differ"
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    assert {path.stem for path in (unpacked / "codexd" / "prompts_data").iterdir()} == set(instructions.FAMILIES)
    assert (unpacked / "codexd" / "py.typed").exists()
    docs = unpacked / "codexd" / "docs_data"
    assert (docs / "clients" / "aider.md").exists() and (docs / "diagrams" / "folders.svg").exists()
    assert {page for page in docs_pages.ORDER if not (docs / page).exists()} == set()
    for page in docs.rglob("*.md"):
        for image in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / image).exists(), (page.name, image)
    assert not (unpacked / "tests").exists()
    pages = {path.name for path in unpacked.glob("*.data/data/share/man/man*/*")}
    assert pages == {"codexctl.1", "codexd.8", "codexd.toml.5"}
    (scripts,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "codexctl = codexd.ctl.__main__:cli" in scripts.read_text()
    code = "from codexd import __version__; from codexd.state import instructions; print(__version__, len(instructions.built_in('gpt-5.1-codex')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path) | {"PYTHONPATH": str(unpacked)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    version, length = done.stdout.split()
    assert (version, int(length)) == ("9.8.7", len(instructions.built_in("gpt-5.1-codex")))
