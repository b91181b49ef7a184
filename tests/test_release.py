"""What a release is called, and that it is the same twice."""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support.daemon import ROOT

spec = importlib.util.spec_from_file_location("release", ROOT / "packaging" / "release.py")
assert spec is not None
assert spec.loader is not None
release = importlib.util.module_from_spec(spec)
spec.loader.exec_module(release)

CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.1.0] - 2027-01-02\n\n### Added\n\n- New.\n\n## [1.0.0] - 2026-11-25\n\n- Old.\n"


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.delenv("CODEXD_VERSION", raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)

    def run(*words: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x@localhost")
        subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, timeout=60)

    return run


def test_the_version(tmp_path: Path, git: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    assert release.version(tmp_path) == "1.1.0", "without git it is the changelog's"
    git("init", "-q")
    assert release.version(tmp_path) == "1.1.0"
    git("add", "-A")
    git("commit", "-qm", "x")
    assert release.version(tmp_path).startswith("1.1.0.dev1+g")
    git("tag", "other")
    git("tag", "v1.1.0")
    assert release.version(tmp_path) == "1.1.0"
    git("commit", "-qm", "y", "--allow-empty")
    assert release.version(tmp_path).startswith("1.1.0.post1+g")
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: codexd\nVersion: 1.0.7\n")
    assert release.version(tmp_path) == "1.0.7"
    monkeypatch.setenv("CODEXD_VERSION", "3.2.1")
    assert release.version(tmp_path) == "3.2.1"


def test_the_notes(tmp_path: Path, git: Callable[..., None]) -> None:
    assert release.notes("1.1.0", tmp_path) == release.notes("1.1.0.post3+gabc", tmp_path) == "### Added\n\n- New.\n"
    assert release.notes("1.0.0", tmp_path) == "- Old.\n"
    with pytest.raises(SystemExit, match=r"no section for 2\.0\.0"):
        release.notes("2.0.0", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("nothing")
    with pytest.raises(SystemExit, match="no version"):
        release.newest_in_changelog(tmp_path)


def test_each_change_has_a_kind_and_is_an_item() -> None:
    fragments = [
        path for path in (ROOT / "packaging" / "news").iterdir() if path.name not in ("README.md", "template.md.jinja")
    ]
    for path in fragments:
        assert re.fullmatch(r"[\w-]+\.(added|changed|fixed|removed|security)\.md", path.name), path.name
        items = path.read_text().split("\n")
        assert items[0].startswith("- ") and all(line[:2] in ("- ", "  ", "") for line in items), path.name


def test_the_changes_become_a_section_of_the_changelog(tmp_path: Path) -> None:
    for name in ("CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "packaging" / "news", tmp_path / "packaging" / "news")
    (tmp_path / "packaging" / "news" / "mine.fixed.md").write_text("- Mine.\n")
    towncrier = Path(sys.executable).with_name("towncrier")
    words = [towncrier, "build", "--keep", "--version", "9.8.7", "--date", "2030-01-02"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / "CHANGELOG.md").read_text()
    assert text.index("## [9.8.7] - 2030-01-02") < text.index("## [1.0.0]")
    assert "\n- Mine.\n" in release.notes("9.8.7", tmp_path)


def test_nobody_meets_version_0() -> None:
    assert release.newest_in_changelog() >= "1"
    done = subprocess.run(
        [sys.executable, "-m", "codexd", "--version"], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    assert done.stdout.startswith("codexd ")
    assert not done.stdout.startswith("codexd 0")


def test_a_source_distribution_is_the_same_twice_and_builds_without_git(tmp_path: Path) -> None:
    env = os.environ | {"SOURCE_DATE_EPOCH": "1790000000", "CODEXD_VERSION": "7.6.5"}
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir"]
    sums = []
    for name in ("one", "two"):
        subprocess.run(
            [*build, tmp_path / name, "--sdist", ROOT], env=env, check=True, capture_output=True, timeout=120
        )
        sums.append(hashlib.sha256((tmp_path / name / "codexd-7.6.5.tar.gz").read_bytes()).hexdigest())
    assert sums[0] == sums[1]
    with tarfile.open(tmp_path / "one" / "codexd-7.6.5.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    tree = tmp_path / "codexd-7.6.5"
    del env["CODEXD_VERSION"]
    subprocess.run([*build, tmp_path / "wheel", "--wheel", tree], env=env, check=True, capture_output=True, timeout=120)
    assert [path.name for path in (tmp_path / "wheel").iterdir()] == ["codexd-7.6.5-py3-none-any.whl"]
    # What a clone needs to make and test it is there too.
    assert (tree / "Makefile").exists()
    assert (tree / "requirements.lock").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is needed here")
def test_a_release_needs_a_tag(tmp_path: Path, git: Callable[..., None]) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    shutil.copytree(ROOT / "packaging", tmp_path / "packaging", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (".venv/.dev", "build/audit/.done"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / ".gitignore").write_text(".venv/\nbuild/\n__pycache__/\n")
    git("init", "-q")
    make = ["make", "-C", tmp_path, "release", "--assume-old=.venv/.dev", "--assume-old=build/audit/.done"]
    dirty = subprocess.run(make, capture_output=True, text=True, check=False, timeout=60)
    assert (dirty.returncode, "Commit or stash your changes first" in dirty.stdout) == (2, True), dirty
    git("add", "-A")
    git("commit", "-qm", "x")
    untagged = subprocess.run(make, capture_output=True, text=True, check=False, timeout=60)
    assert (untagged.returncode, "git tag v1.1.0" in untagged.stdout) == (2, True), untagged
