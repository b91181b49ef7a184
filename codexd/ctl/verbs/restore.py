"""``codexctl restore``: restores what ``codexctl backup`` saved. codexd must be stopped."""

import argparse
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from codexd.ctl.session import Output, failed
from codexd.ctl.state import FILES, FOLDER, add_arguments, as_owner, directory
from codexd.protocol import decoding
from codexd.state.lock import InUse, lock_directory

MAX_BYTES = 4 << 30
"""Bytes of all files together; no state directory grows so large."""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)


def run(options: argparse.Namespace, out: Output) -> int:
    state = directory(options.state)
    count = _restore(Path(options.file), state)
    out.report("restore", f"Restored {count} files to {state}. The sign-in was not touched.")
    if not (state / "tokens.json").exists():
        out.note("Start codexd, then sign in with `codexctl login`.")
    return 0


def _restore(source: Path, state: Path) -> int:
    """Writes the files of a backup and returns how many. Raises VerbFailed."""
    found = dict(_contents(source))
    if not found:
        raise failed("usage", "not_a_backup", f"{source} contains no codexd state.")
    if not os.access(state, os.W_OK):
        raise failed(
            "refused", "not_writable", f"Cannot write to {state}: permission denied. Run the command with sudo."
        )
    try:
        with as_owner(state), lock_directory(state):
            for name, data in found.items():
                _put(state, name, data)
    except InUse as error:
        message = f"codexd is using {state} ({error.holder}). Stop it first; `codexctl stop` shows how."
        raise failed("refused", "running", message) from error
    except OSError as error:
        raise failed("refused", "not_written", f"Cannot write to {state}: {error.strerror}.") from error
    return len(found)


def _contents(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yields names below the state directory and contents; ignores other members. Raises VerbFailed."""
    left = MAX_BYTES
    try:
        with tarfile.open(source, "r:gz") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                if not member.isfile() or not (member.name in FILES or (folder == FOLDER and name.endswith(".json"))):
                    continue
                left -= member.size
                file = archive.extractfile(member)
                if left < 0 or file is None:
                    raise failed("usage", "not_a_backup", f"{source} is too large to be codexd state.")
                data = file.read()
                decoding.decode(data)
                yield member.name, data
    except FileNotFoundError as error:
        raise failed("usage", "no_file", f"There is no file {source}.") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error, msgspec.DecodeError) as error:
        raise failed(
            "usage", "not_a_backup", f"{source} is not a backup, or is damaged. Nothing was changed."
        ) from error


def _put(state: Path, name: str, data: bytes) -> None:
    """Replaces one file as a whole."""
    target = state / name
    target.parent.mkdir(mode=0o700, exist_ok=True)
    part = target.with_name(f"{target.name}.restored")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:  # noqa: PTH123
        file.write(data)
    part.replace(target)
