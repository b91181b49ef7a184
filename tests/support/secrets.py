"""Secrets that a log can be searched for: all of them hold one marker."""

import base64
from collections.abc import Iterator
from pathlib import Path

import msgspec

MARKER = "sEcReT"
CLIENT_KEY = f"sk-codexd-{MARKER}-0123456789"
ACCOUNT = "acct-test"


def access_token(expires_at: float, number: int = 1) -> str:
    claims = {"exp": expires_at, "n": number, "https://api.openai.com/auth": {"chatgpt_account_id": ACCOUNT}}
    parts = [msgspec.json.encode({"alg": "none"}), msgspec.json.encode(claims), MARKER.encode()]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts[:2]) + f".{MARKER}{number}"


def refresh_token(number: int = 1) -> str:
    return f"rt_{MARKER}_{number}_0123456789"


def leaks(folder: Path) -> Iterator[str]:
    """The lines of all files below the folder that hold a secret."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                if MARKER in line:
                    yield f"{path.name}: {line[:300]}"
