"""``codexctl backup`` and ``restore``: the state directory as one file, without what must not be in two places.

The sign-in stays out: a refresh token is good once, so a copy of it is either spent when it is restored, or ends the
sign-in of the codexd that it was copied from. A codexd that is restored elsewhere signs in again.
"""

import argparse
import contextlib
import io
import os
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from codexd.config.load import load
from codexd.config.paths import state_dir
from codexd.control.wire import Check
from codexd.ctl.verbs import Output, failed
from codexd.errors import ConfigError
from codexd.state.lock import InUse, lock_directory

FILES = ("keys.json", "prompts.json", "usage.json", "models.json")
FOLDER = "responses"
"""Stored responses, one file each; the only folder of the state directory."""

SYSTEM = Path("/var/lib/codexd")
"""The state directory of the system service."""

MAX_BYTES = 4 << 30
"""Of what is restored; more than any state directory may grow to."""


def run(options: argparse.Namespace, out: Output) -> int:
    state = _state(options.state)
    if options.verb == "backup":
        count = _backup(state, Path(options.file))
        _say(out, f"Saved {count} files of {state} to {options.file}. The sign-in is not in it.")
        return 0
    count = _restore(Path(options.file), state)
    _say(out, f"Restored {count} files to {state}. The sign-in was not touched.")
    if not (state / "tokens.json").exists():
        out.note("Start codexd, then sign in with: codexctl login")
    return 0


def _say(out: Output, text: str) -> None:
    if out.json:
        out.reply(Check(name="backup", outcome="ok", message=text))
    else:
        print(text)  # noqa: T201


def _state(given: str | None) -> Path:
    """The named directory, else this user's own, else the system service's. Raises Failed."""
    if given is not None:
        places = [Path(given)]
    else:
        try:
            places = [state_dir(load(None, os.environ)[0], os.environ), SYSTEM]
        except ConfigError as error:
            raise failed("usage", "configuration", str(error)) from error
    for place in places:
        if place.is_dir():
            if not os.access(place, os.R_OK | os.X_OK):
                raise failed("refused", "not_readable", f"Cannot read {place}. Use sudo codexctl.")
            return place
    where = " and ".join(map(str, places))
    raise failed("usage", "no_state", f"There is no state directory at {where}. Name it with --state DIR.")


# --- backup


def _backup(state: Path, target: Path) -> int:
    """Each file is replaced as a whole by a running codexd, so what is read is whole too."""
    found: dict[str, bytes] = {}
    try:
        with _as_owner(state):
            for path in [state / name for name in FILES] + sorted((state / FOLDER).glob("*.json")):
                with contextlib.suppress(FileNotFoundError):
                    found[str(path.relative_to(state))] = path.read_bytes()
    except OSError as error:
        raise failed("refused", "not_readable", f"Cannot read {state}: {error.strerror}. Use sudo codexctl.") from error
    if not target.name:
        raise failed("usage", "no_file", f"{str(target)!r} is not a file name.")
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


@contextlib.contextmanager
def _as_owner(state: Path) -> Iterator[None]:
    """What root does below the state directory, it does as its owner: whatever lies there, such as a link to a file of
    root's, gives the owner no more than the owner has. And what is made belongs to the owner."""
    owner = state.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    gid, groups = os.getegid(), os.getgroups()
    os.setgroups([owner.st_gid])
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


# --- restore


def _restore(source: Path, state: Path) -> int:
    found = dict(_contents(source))
    if not found:
        raise failed("usage", "not_a_backup", f"{source} holds no state of codexd.")
    if not os.access(state, os.W_OK):
        raise failed("refused", "not_writable", f"Cannot write to {state}. Use sudo codexctl.")
    try:
        with _as_owner(state), lock_directory(state):
            for name, data in found.items():
                _put(state, name, data)
    except InUse as error:
        stop = "systemctl stop 'codexd*.socket' codexd"
        message = f"codexd is running on {state} ({error.holder}). Stop it first: {stop}"
        raise failed("refused", "running", message) from error
    except OSError as error:
        raise failed("refused", "not_written", f"Cannot write to {state}: {error.strerror}.") from error
    return len(found)


def _contents(source: Path) -> Iterator[tuple[str, bytes]]:
    """Names below the state directory, and what they hold. Nothing else of an archive is looked at. Raises Failed."""
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
                    raise failed("usage", "not_a_backup", f"{source} is larger than a state of codexd can be.")
                data = file.read()
                msgspec.json.decode(data)
                yield member.name, data
    except FileNotFoundError as error:
        raise failed("usage", "no_file", f"There is no file {source}.") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
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
