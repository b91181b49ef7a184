"""Edits of other programs' configuration files, which can be undone. Pure but for ``read`` and ``write``.

Members of JSON files are merged, and what they replaced is remembered beside the file. Text goes between marks.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from codexd.config.clients import ConfigFile, as_json
from codexd.protocol import decoding
from codexd.state.files import write_durably

BEGIN, END = "# >>> codexd (codexctl setup; do not edit)", "# <<< codexd"

_BLOCK = re.compile(rf"\n*^{re.escape(BEGIN)}$.*?^{re.escape(END)}$\n?", re.MULTILINE | re.DOTALL)


class CannotEdit(Exception):
    """A file in which nothing can be put without a person; the message says what to do."""


def read(path: Path) -> str:
    """Returns the text of a file, empty if it does not exist. Raises CannotEdit."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise CannotEdit(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error


def write(path: Path, text: str, *, private: bool = False) -> None:
    """Replaces a file, also behind a link; a new one has mode 0600. Without text removes it. Raises CannotEdit.

    ``private``: nobody else may read it from now on.
    """
    path = path.resolve()
    try:
        if not text.strip():
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        write_durably(path, text.encode())
        path.chmod(mode & 0o700 if private else mode)
    except OSError as error:
        raise CannotEdit(f"Cannot write {path}: {error.strerror}.") from error


def added(file: ConfigFile, before: str, where: str) -> str:
    """Returns the file's text with the setup in it. Raises CannotEdit with ``where`` in it."""
    if file.kind == "json":
        members = _members(before, where)
        return f"{as_json(_merged(members, file.members))}\n"
    rest = without_block(before)
    if file.kind == "toml":
        _check_toml(rest, f"{where} is not")
    head = file.head
    if taken := [name for name in file.own if _sets(rest, name, file.kind)]:
        if file.kind == "yaml":
            raise CannotEdit(f"{where} already sets {', '.join(taken)}. Remove that, then run this command again.")
        head = ""  # a table of our own can stand beside the user's choice
    made = "\n\n".join(part for part in (_block(head), rest.strip("\n"), _block(file.text)) if part)
    if file.kind == "toml":
        _check_toml(made, f"{where} would not be")
    return f"{made}\n"


class Remembered(msgspec.Struct):
    """What a setup wrote into a JSON file, and the file's text before the first one."""

    wrote: dict[str, Any]
    before: str


def remembered(file: ConfigFile, before: str) -> str:
    """Returns what to keep beside a JSON file for ``removed``. ``before`` is its text without a setup."""
    return msgspec.json.encode(Remembered(dict(file.members), before)).decode()


def removed(file: ConfigFile, before: str, known: str, where: str) -> str:
    """Returns the file's text without the setup. ``known`` is what was kept of it.

    What the user has changed since stays. Raises CannotEdit.
    """
    if file.kind != "json":
        return without_block(before)
    if not known or not before.strip():
        return before
    try:
        setup = decoding.decode(known, type=Remembered)
    except msgspec.DecodeError as error:
        raise CannotEdit(
            f"{where}: the backup that setup saved next to it cannot be read. Edit the file by hand."
        ) from error
    earlier = _members(setup.before, where)
    rest = _without(_members(before, where), setup.wrote, earlier)
    if rest == earlier:
        return setup.before  # byte for byte
    return f"{as_json(rest)}\n" if rest or setup.before.strip() else ""


def is_chosen(file: ConfigFile, text: str) -> bool:
    """Returns whether the setup's top-level choices are in the text; they are not where the user has made others."""
    return not file.head or _block(file.head) in text


def without_block(text: str) -> str:
    """Returns a text without what stands between the marks."""
    rest = _BLOCK.sub("\n", text).strip("\n")
    return f"{rest}\n" if rest else ""


def _block(text: str) -> str:
    return f"{BEGIN}\n{text}\n{END}" if text else ""


def _members(text: str, where: str) -> dict[str, Any]:
    """Decodes a JSON file. Raises CannotEdit, such as for one with comments."""
    try:
        return decoding.decode(text or "{}", type=dict[str, Any])
    except (ValueError, RecursionError) as error:
        message = (
            f"{where} is not valid JSON, or contains comments. Run this without --write to see what to add by hand."
        )
        raise CannotEdit(message) from error


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    whole = dict(old)
    for key, value in new.items():
        mine = whole.get(key)
        whole[key] = _merged(mine, value) if isinstance(mine, dict) and isinstance(value, Mapping) else value
    return whole


def _without(now: Mapping[str, Any], ours: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the members without ours, and with what ours had replaced."""
    rest = dict(now)
    for key, value in ours.items():
        if key not in rest:
            continue
        mine, before = rest[key], earlier.get(key)
        if isinstance(value, Mapping) and value and isinstance(mine, dict):
            inner = _without(mine, value, before if isinstance(before, dict) else {})
            if inner or isinstance(before, dict):
                rest[key] = inner
                continue
        elif mine != value:
            continue  # the user has changed it since
        if key in earlier:
            rest[key] = before
        else:
            del rest[key]
    return rest


def _sets(text: str, name: str, kind: str) -> bool:
    """Returns whether a file sets a top-level key."""
    if kind == "yaml":
        return re.search(rf"^{re.escape(name)}\s*:", text, re.MULTILINE) is not None
    return name in tomllib.loads(text)


def _check_toml(text: str, where: str) -> None:
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CannotEdit(
            f"{where} valid TOML ({error}). Run this without --write to see what to add by hand."
        ) from error
