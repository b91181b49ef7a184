"""What a release is called and what it says: the version for the build, and the notes from the changelog.

    release.py version     1.2.0 at the tag v1.2.0; 1.2.0.post3+g1a2b3c4 three commits later; before the tag of the
                           changelog's newest version exists, 1.2.0.dev120+g1a2b3c4
    release.py notes       the changelog's section for the version that is being released
    release.py epoch       the commit's time, for builds that are the same twice

Where there is no git, $CODEXD_VERSION says it, else the metadata of a source distribution, else the changelog.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\]", re.MULTILINE)


def version(root: Path = ROOT) -> str:
    if told := os.environ.get("CODEXD_VERSION"):
        return told
    if (root / "PKG-INFO").exists():
        found = re.search(r"^Version: (\S+)$", (root / "PKG-INFO").read_text(), re.MULTILINE)
        if found is not None:
            return found[1]
    newest = newest_in_changelog(root)
    if not (root / ".git").exists():
        return newest
    if described := _git(root, "describe", "--tags", "--long", "--match", "v[0-9]*"):
        tag, since, commit = described.removeprefix("v").rsplit("-", 2)
        return tag if since == "0" else f"{tag}.post{since}+{commit}"
    count, commit = _git(root, "rev-list", "--count", "HEAD"), _git(root, "rev-parse", "--short", "HEAD")
    return f"{newest}.dev{count}+g{commit}" if commit else newest


def newest_in_changelog(root: Path = ROOT) -> str:
    found = _HEADING.search((root / "CHANGELOG.md").read_text())
    if found is None:
        raise SystemExit("CHANGELOG.md has no version. Add a heading such as: ## [1.0.0] - 2026-11-25")
    return found[1]


def notes(wanted: str, root: Path = ROOT) -> str:
    """The section of that version, without its heading. Exits where there is none."""
    text = (root / "CHANGELOG.md").read_text()
    base = re.split(r"\.(?:post|dev)|\+", wanted)[0]
    for heading in _HEADING.finditer(text):
        if heading[1] == base:
            body = text[text.index("\n", heading.start()) :].strip()
            return re.split(r"^## \[", body, maxsplit=1, flags=re.MULTILINE)[0].strip() + "\n"
    raise SystemExit(f"CHANGELOG.md has no section for {base}. Write it with: make news VERSION={base}")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["version"]:
            print(version())  # noqa: T201
        case ["notes"]:
            print(notes(version()), end="")  # noqa: T201
        case ["epoch"]:
            print(_git(ROOT, "log", "-1", "--format=%ct"))  # noqa: T201
        case _:
            raise SystemExit(__doc__)
