"""``make upstream-diff``: what the newest official client sends, beside what is committed in ``snapshot/``.

    wirediff.py diff       fetch the newest client, run it against a recorder, say what differs; exits with 1 if anything
    wirediff.py accept     make the shapes of the last run the committed ones
    wirediff.py parity     codexd's own requests beside the committed shapes; needs no network

The client is npm's @openai/codex for x86-64 Linux. It talks to loopback alone: where the kernel allows it, in a network
of its own that has nothing else, and in any case through a proxy that answers everything itself.
"""

import argparse
import fcntl
import logging
import os
import platform
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from upstream import compare, parity, shapes
from upstream.scenarios import NotHere, laboratory, scenarios

HERE = Path(__file__).parent
SNAPSHOT = HERE / "snapshot"
BUILD = HERE.parents[1] / "build" / "upstream"
PACKAGE = "@openai/codex"
NETWORK = ("unshare", "--user", "--map-root-user", "--net")
"""How a program gets a network with nothing in it, not even the ports that others have taken (unshare(1))."""

LEFT_OUT = "left-out.txt"
"""Beside the shapes: scenarios that could not be run, a name and a reason a line."""


def fetch(version: str, folder: Path) -> Path:
    """npm's package of that version, unpacked; the client in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = f"{PACKAGE}@{version}-linux-x64"
    packed = _said("npm", "pack", "--silent", wanted, cwd=folder)
    subprocess.run(["tar", "-xzf", packed], cwd=folder, check=True)
    (folder / packed).unlink()
    return next(path for path in sorted(folder.glob("package/vendor/**/codex")) if path.is_file())


def _said(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout.strip()


def _write(folder: Path, name: str, value: Any) -> None:
    text = msgspec.json.format(msgspec.json.encode(value), indent=1)
    (folder / f"{name}.json").write_bytes(text + b"\n")


async def capture(binary: Path, folder: Path, only: str | None) -> None:
    """Run the scenarios, and write their shapes."""
    with tempfile.TemporaryDirectory(prefix="wirediff-home-") as home:
        environ = {"HOME": home, "CODEX_HOME": home, "PATH": os.defpath}
        version = _said(str(binary), "--version", env=environ).split()[-1]
        models = msgspec.json.decode(_said(str(binary), "debug", "models", "--bundled", env=environ))
        features = _said(str(binary), "features", "list", env=environ)
    _write(folder, "_version", version)
    _write(folder, "_catalogue", shapes.catalogue(models))
    _write(folder, "_features", shapes.features(features))
    _write(folder, "_strings", shapes.strings(binary.read_bytes()))
    with laboratory(binary, models) as lab, (folder / LEFT_OUT).open("w") as left_out:
        for name, run in scenarios(lab).items():
            begun = time.monotonic()
            try:
                if not re.fullmatch(only or ".*", name):
                    raise NotHere("not asked for")
                log = await run()
            except NotHere as reason:
                left_out.write(f"{name} {reason}\n")
                print(f"{name:34} left out: {reason}", flush=True)
                continue
            _write(
                folder,
                name,
                shapes.of(log, [(str(lab.work / name), "<home>"), (str(lab.work), "<lab>"), (version, "<version>")]),
            )
            print(f"{name:34} {len(log):3} requests {time.monotonic() - begun:5.1f} s", flush=True)


def _loopback_up() -> None:
    """In a network of its own the loopback interface is down at first (netdevice(7))."""
    name, flags = b"lo", 0x1 | 0x40  # IFF_UP, IFF_RUNNING
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH22x", name, flags))  # SIOCSIFFLAGS


def _capture_apart(binary: Path, folder: Path, only: str | None) -> None:
    """``capture`` in a process without a network, where the kernel lets us make one."""
    own = [sys.executable, __file__, "capture", str(binary), str(folder), *(["--only", only] if only else [])]
    allowed = shutil.which(NETWORK[0]) and subprocess.run([*NETWORK, "true"], capture_output=True).returncode == 0
    if allowed:
        own = [*NETWORK, *own, "--alone"]
    else:
        print("no network of its own can be made here: the client runs in this machine's, behind the recorder")
    subprocess.run(own, check=True)


def diff(arguments: argparse.Namespace) -> int:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print("the official client is run on x86-64 Linux only")
        return 2
    version = arguments.version or _said("npm", "view", PACKAGE, "version")
    committed = compare.read(SNAPSHOT)
    print(f"committed: {committed.get('_version')}; npm's {'' if arguments.version else 'newest '}{PACKAGE}: {version}")
    found = BUILD / "shapes"
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir(parents=True)
    try:
        _capture_apart(fetch(version, BUILD / "client"), found, arguments.only)
    finally:
        shutil.rmtree(BUILD / "client", ignore_errors=True)
    shown = compare.read(found)
    lines = compare.captures(committed, shown, _left_out(found))
    print("\n".join(["", *map(compare.short, lines)]) if lines else "\nno difference to what is committed")
    return max(int(bool(lines)), 0 if arguments.only else _parity(shown))


def _left_out(folder: Path) -> list[str]:
    return [line.split()[0] for line in (folder / LEFT_OUT).read_text().splitlines()]


def _parity(capture: dict[str, Any]) -> int:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    report = trio.run(parity.report, capture)
    print("\n".join([f"\ncodexd beside {capture['_version']}:", *report.lines()]))
    return int(bool(report.unlisted))


def accept(_: argparse.Namespace) -> int:
    """Scenarios that could not be run keep the shapes that they had."""
    found = BUILD / "shapes"
    if not (found / "_strings.json").exists():
        print("there is nothing to accept: make upstream-diff comes first")
        return 2
    kept = {f"{name}.json" for name in _left_out(found)}
    SNAPSHOT.mkdir(exist_ok=True)
    for path in SNAPSHOT.glob("*.json"):
        if path.name not in kept:
            path.unlink()
    for path in found.glob("*.json"):
        shutil.copy(path, SNAPSHOT)
    print("accepted; `git diff tests/upstream/snapshot` shows it")
    return 0


def _run_capture(arguments: argparse.Namespace) -> int:
    if arguments.alone:
        _loopback_up()
    trio.run(capture, arguments.binary, arguments.folder, arguments.only)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("diff")
    verb.add_argument("--version", help="another version than npm's newest")
    verb.add_argument("--only", metavar="PATTERN", help="these scenarios alone")
    verb.set_defaults(run=diff)
    verbs.add_parser("accept").set_defaults(run=accept)
    verbs.add_parser("parity").set_defaults(run=lambda _: _parity(compare.read(SNAPSHOT)))
    verb = verbs.add_parser("capture")
    verb.add_argument("binary", type=Path)
    verb.add_argument("folder", type=Path)
    verb.add_argument("--only")
    verb.add_argument("--alone", action="store_true", help="bring the loopback interface up first")
    verb.set_defaults(run=_run_capture)
    arguments = parser.parse_args()
    code: int = arguments.run(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
