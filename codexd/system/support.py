"""Tested environments: systems, and versions of packages whose internals codexd uses.

Imported before anything else, so it imports nothing that a system may lack.
"""

import sys

TESTED = {
    "trio": "0.35",
    "quart-trio": "0.12",
    "quart": "0.22",
    "flask": "3.1",
    "werkzeug": "3.1",
    "hypercorn": "0.18",
    "h11": "0.16",
    "wsproto": "1.3",
    "httpx": "0.28",
    "msgspec": "0.22",
}
"""Release series of each package whose private names or exact behaviour codexd uses; same bounds as pyproject.toml."""


def unsupported(platform: str = sys.platform) -> str | None:
    """Returns why codexd cannot run on this system; None where it can."""
    if platform in ("win32", "cygwin"):
        return "codexd does not run natively on Windows. Install WSL with `wsl --install`, and codexd inside it."
    if platform in ("emscripten", "wasi"):
        return "codexd does not run in WebAssembly. Run it on Linux."
    return None


def untested_system(platform: str = sys.platform) -> str | None:
    """Returns what does not work on a system on which codexd is not tested; None on Linux."""
    if platform == "linux":
        return None
    name = "macOS" if platform == "darwin" else platform
    return (
        f"codexd is not tested on {name}. The API, codexctl and sign-ins work there; systemd's units, the watchdog and "
        "limits for dead client connections do not."
    )


def untested_versions() -> list[str]:
    """Returns ``quart 0.23.0 (tested with 0.22)`` for each package that is missing or of another series."""
    from importlib import metadata  # here: it takes as long to import as all of codexctl

    found = []
    for name, series in TESTED.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(f"{name} is missing (tested with {series})")
            continue
        if not f"{version}.".startswith(f"{series}."):
            found.append(f"{name} {version} (tested with {series})")
    return found
