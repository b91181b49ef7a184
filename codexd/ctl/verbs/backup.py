"""``codexctl backup``: saves the state directory as one file, without the sign-in.

A refresh token can be used only once. A copy of it would be useless when it is restored, or would end the sign-in of
the codexd that it was copied from. A codexd that is restored elsewhere has to sign in again.
"""

import argparse
import contextlib
import io
import os
import tarfile
import time
from pathlib import Path

from codexd.ctl.session import Output, failed
from codexd.ctl.state import FILES, FOLDER, add_arguments, as_owner, directory
from codexd.reasons import quoted


def arguments(parser: argparse.ArgumentParser) -> None:
    add_arguments(parser)


def run(options: argparse.Namespace, out: Output) -> int:
    state = directory(options.state)
    count = _save(state, Path(options.file))
    out.report("backup", f"Saved {count} files from {state} to {options.file}. The sign-in is not included.")
    return 0


def _save(state: Path, target: Path) -> int:
    """Saves the files and returns how many. codexd may run: it replaces each file as a whole. Raises VerbFailed."""
    found: dict[str, bytes] = {}
    try:
        with as_owner(state):
            for path in [state / name for name in FILES] + sorted((state / FOLDER).glob("*.json")):
                with contextlib.suppress(FileNotFoundError):
                    found[str(path.relative_to(state))] = path.read_bytes()
    except OSError as error:
        raise failed("refused", "not_readable", f"Cannot read {state}: {error.strerror}.") from error
    if not target.name:
        raise failed("usage", "no_file", f"{quoted(str(target))} is not a file name.")
    part = target.with_name(f"{target.name}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:  # noqa: PTH123
            for name, data in found.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())  # noqa: TID251
                archive.addfile(member, io.BytesIO(data))
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise failed("refused", "not_written", f"Cannot save to {target}: {error.strerror}.") from error
    return len(found)
