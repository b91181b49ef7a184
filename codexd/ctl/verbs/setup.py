"""``codexctl setup``: the configuration of coding agents and other clients for this codexd."""

import argparse
import difflib
import os
from pathlib import Path

from codexd.config.clients import CLIENTS, FILL_IN, NO_KEY, ClientSetup, ConfigFile, Target, described, exports
from codexd.control import wire
from codexd.ctl import drawing, edits
from codexd.ctl.session import Output, failed, replies

KEPT = ".codexd-setup"
"""Ends the name of the file beside a client's that says what a setup has changed."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("client", metavar="CLIENT", choices=tuple(CLIENTS), help=", ".join(CLIENTS))
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", action="store_true", help="show the difference and change the client's files")
    action.add_argument("--remove", action="store_true", help="undo --write")
    parser.add_argument(
        "--key", metavar="KEY", help="the client key (default: --write creates one if a key is required)"
    )
    parser.add_argument(
        "--base-url",
        metavar="URL",
        type=_url,
        help="the address where the client reaches codexd, for example through a proxy",
    )
    parser.add_argument("--model", metavar="NAME", help="the default model")


def _url(text: str) -> str:
    """Returns the address. Raises ArgumentTypeError."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f'invalid value "{text}": use an address such as https://codexd.example')
    return text


def run(options: argparse.Namespace, out: Output) -> int:
    try:
        if options.remove:
            return _remove(options, out)
        return _write(options, out) if options.write else _print(options, out)
    except edits.CannotEdit as error:
        raise failed("refused", "not_writable", str(error)) from error


def _print(options: argparse.Namespace, out: Output) -> int:
    status = _status(options)
    found = _setup(options, _target(options, status, FILL_IN if status.keys_required else NO_KEY))
    out.report("setup", described(found))
    if status.keys_required and not options.key:
        also = ", as does --write" if found.files else ""
        out.note(f"Replace {FILL_IN} with a client key. `codexctl keys add {_key_name(options)}` creates one{also}.")
    return 0


def _write(options: argparse.Namespace, out: Output) -> int:
    status = _status(options)
    preview = _setup(options, _target(options, status, FILL_IN if status.keys_required else NO_KEY))
    if not preview.files:
        message = f"{options.client} has no configuration file to write. Leave out --write to see what to enter."
        raise failed("usage", "nothing_to_write", message)
    # Before a key is made: whatever cannot be edited is found now.
    for file in preview.files:
        path = _place(file)
        edits.added(file, edits.removed(file, edits.read(path), edits.read(_kept(path)), str(path)), str(path))
    key = options.key or (_make_key(options, out) if status.keys_required else NO_KEY)
    found = _setup(options, _target(options, status, key))
    chosen = True
    for file in found.files:
        path = _place(file)
        before = edits.read(path)
        without = edits.removed(file, before, edits.read(_kept(path)), str(path))
        after = edits.added(file, without, str(path))
        if after == before:
            out.report("setup", f"{path} is already up to date.")
        else:
            _show(out, path, before, after)
            if file.kind == "json":
                edits.write(_kept(path), edits.remembered(file, without))
            edits.write(path, after, private=key != NO_KEY)
            out.report("setup", f"Wrote {path}.")
            if os.environ.get("SUDO_USER"):
                user = os.environ["SUDO_USER"]
                out.note(f"This is root's file. To configure {user}'s client, run the command without sudo.")
        if not edits.is_chosen(file, after):
            chosen = False
            out.note(f"{path} already sets another model, which was kept. {_by_hand(file)}")
    if found.needed:
        out.report("setup", f"Set these variables for the client:\n{exports(found.needed)}")
    if chosen:
        out.note(f"Start it with: {found.start}")
    return 0


def _remove(options: argparse.Namespace, out: Output) -> int:
    found = _setup(options, Target("", "", []))
    if not found.files:
        raise failed(
            "usage",
            "nothing_to_remove",
            f"`codexctl setup` writes no file for {options.client}. Undo the change in its settings.",
        )
    for file in found.files:
        path = _place(file)
        before, kept = edits.read(path), _kept(path)
        after = edits.removed(file, before, edits.read(kept), str(path))
        if after == before:
            out.report("setup", f"{path} contains no codexd configuration.")
            continue
        _show(out, path, before, after)
        edits.write(path, after)
        edits.write(kept, "")
        out.report("setup", f"{'Restored' if after else 'Removed'} {path}.")
    if _revoke(options):
        out.note(f"Revoked the client key {_key_name(options)}.")
    return 0


def _by_hand(file: ConfigFile) -> str:
    return f"To use codexd, set in that file: {file.head.replace(chr(10), ', ')}"


def _show(out: Output, path: Path, before: str, after: str) -> None:
    """Shows what changes in a file."""
    if out.json:
        return
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), str(path), str(path), lineterm="", n=2)
    for line in lines:
        style = {"+": "green", "-": "red"}.get(line[:1], "dim")
        drawing.put(drawing.text(line, style))


# --- the codexd that it is for


def _status(options: argparse.Namespace) -> wire.StatusReport:
    return next(reply for reply in replies(options, wire.Status()) if isinstance(reply, wire.StatusReport))


def _target(options: argparse.Namespace, status: wire.StatusReport, key: str) -> Target:
    """Returns the codexd as a client reaches it. Raises VerbFailed if it listens on no address for that."""
    base = options.base_url
    if base is None:
        base = next((each for each in status.listeners if each.startswith("http")), None)
        if base is None:
            message = (
                "codexd listens only on unix sockets. Add an address such as 127.0.0.1:3000 to server.bind, or pass "
                "its address with --base-url."
            )
            raise failed("refused", "no_address", message)
    base = base.rstrip("/").removesuffix("/v1").replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    models = [
        model.name
        for reply in replies(options, wire.Models())
        if isinstance(reply, wire.ModelsReport)
        for model in reply.models
        if model.listed
    ]
    if options.model:
        models = [options.model, *(name for name in models if name != options.model)]
    return Target(f"{base}/v1", options.key or key, models, options.model)


def _setup(options: argparse.Namespace, target: Target) -> ClientSetup:
    return CLIENTS[options.client](target)


FOLDERS = {
    ".config/io.datasette.llm": "LLM_USER_PATH",
    ".config": "XDG_CONFIG_HOME",
    ".codex": "CODEX_HOME",
    ".claude": "CLAUDE_CONFIG_DIR",
}
"""Variables that move a folder of the home directory."""


def _kept(path: Path) -> Path:
    return path.with_name(f"{path.name}{KEPT}")


def _place(file: ConfigFile) -> Path:
    for folder, variable in FOLDERS.items():
        if file.path.startswith(f"{folder}/") and (moved := os.environ.get(variable)):
            return Path(moved) / file.path.removeprefix(f"{folder}/")
    return Path.home() / file.path


def _key_name(options: argparse.Namespace) -> str:
    return f"setup-{options.client}"


def _make_key(options: argparse.Namespace, out: Output) -> str:
    """Makes the client's key; replaces that of an earlier setup. Raises VerbFailed."""
    _revoke(options)
    for reply in replies(options, wire.KeysAdd(name=_key_name(options))):
        if isinstance(reply, wire.KeyAdded):
            out.note(f"Created the client key {reply.name}.")
            return reply.key
    raise AssertionError  # pragma: no cover


def _revoke(options: argparse.Namespace) -> bool:
    """Revokes the client's key; returns whether a setup had made one."""
    names = [
        key.name
        for reply in replies(options, wire.KeysList())
        if isinstance(reply, wire.KeysReport)
        for key in reply.keys
    ]
    if _key_name(options) not in names:
        return False
    for _ in replies(options, wire.KeysRevoke(name=_key_name(options))):
        pass
    return True
