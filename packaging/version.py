"""A build hook of hatchling: adds to the built package its version, as a module, and the documentation that it serves.

The version comes from the git tag. Asking importlib.metadata instead would double the time that ``codexctl --version``
takes.
"""

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SERVED = ("*.md", "clients/*.md", "diagrams/*.svg", "performance/*.svg")
"""Pages and images of ``docs/``. The pictures of the README are left out."""


class VersionHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """``version`` is the kind of build; the project's own version is in the metadata."""
        self._directory = tempfile.TemporaryDirectory()
        module = Path(self._directory.name) / "_version.py"
        module.write_text(f'__version__ = "{self.metadata.version}"\n')
        build_data["force_include"][str(module)] = "codexd/_version.py"
        docs = Path(self.root) / "docs"
        for pattern in SERVED:
            for page in docs.glob(pattern):
                build_data["force_include"][str(page)] = f"codexd/docs_data/{page.relative_to(docs)}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._directory.cleanup()
