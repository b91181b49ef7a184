"""codexd: an OpenAI- and Anthropic-compatible API for one person's own tools, over that person's ChatGPT account."""

try:
    # Written by the build (packaging/version.py), which takes it from the git tag.
    from codexd._version import __version__ as __version__
except ImportError:
    from pathlib import Path as _Path

    def _in_changelog() -> str:
        """The newest version of the changelog beside this checkout."""
        for line in (_Path(__file__).parent.parent / "CHANGELOG.md").read_text().splitlines():
            if line.startswith("## [") and line[4].isdecimal():
                return line[4 : line.index("]")]
        return "0"

    __version__ = f"{_in_changelog()}+checkout"
