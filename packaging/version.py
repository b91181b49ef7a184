"""A build hook of hatchling: the version that comes from the git tag, as a module of the built package.

Asking importlib.metadata instead would double the time that ``codexctl --version`` takes.
"""

import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class VersionHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """``version`` is the kind of build; the project's own version is in the metadata."""
        self._directory = tempfile.TemporaryDirectory()
        module = Path(self._directory.name) / "_version.py"
        module.write_text(f'__version__ = "{self.metadata.version}"\n')
        build_data["force_include"][str(module)] = "codexd/_version.py"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._directory.cleanup()
