"""``codexctl config``: the configuration in effect, and the file that it comes from."""

import argparse
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from codexd.config.load import Sources, described, load
from codexd.control import wire
from codexd.control.client import DaemonUnreachable
from codexd.ctl import drawing
from codexd.ctl.arguments import Parser, actions
from codexd.ctl.session import Output, failed, replies, show
from codexd.errors import ConfigError
from codexd.reasons import quoted

_NO_FILE = "This codexd was started without a configuration file. Start it with --config FILE."

EDITORS = ("sensible-editor", "nano", "vi")
"""What is started if neither $VISUAL nor $EDITOR is set: the first that is installed."""


def arguments(parser: Parser) -> None:
    action = actions(parser)
    shown = action("show", "show each value and where it comes from", "list", "get")
    shown.add_argument("keys", metavar="KEY", nargs="*", help="only these keys or sections, such as server.bind")
    shown.add_argument("--changed", action="store_true", help="only values that are not the default")
    action("edit", "open the file in $VISUAL or $EDITOR, then reload it")
    action("path", "print the path of the file")


def run(options: argparse.Namespace, out: Output) -> int:
    if options.action == "edit":
        return _edit(options, out)
    if options.action == "path":
        out.report("path", str(_file(options)))
        return 0
    report = _in_force(options) or _at_the_next_start(out)
    out.reply(report, lambda reply: _draw(reply, options))
    out.done()
    return 0


def _in_force(options: argparse.Namespace) -> wire.ConfigurationReport | None:
    """Returns the daemon's configuration; None if none is running here. Raises VerbFailed and DaemonUnreachable."""
    try:
        return next(r for r in replies(options, wire.Configuration()) if isinstance(r, wire.ConfigurationReport))
    except DaemonUnreachable as error:
        if error.denied or getattr(options, "socket", None) or getattr(options, "instance", None):
            raise
        return None


def _file(options: argparse.Namespace) -> Path:
    """Returns the daemon's file, or the one of a daemon started now; it may have any fault. Raises VerbFailed."""
    report = _in_force(options)
    if report is None:
        try:
            return Sources(None, os.environ).file()
        except ConfigError as error:
            raise failed("refused", "configuration", error.sentence()) from error
    if not report.file:
        raise failed("refused", "configuration", _NO_FILE)
    return Path(report.file)


def _at_the_next_start(out: Output) -> wire.ConfigurationReport:
    """Returns the configuration of a daemon that this user would start now. Raises VerbFailed."""
    sources = Sources(None, os.environ)
    try:
        config, origin = sources.load()
        origins = sources.origins()
    except ConfigError as error:
        message = f"{error.sentence()} To fix it, run `codexctl config edit`."
        raise failed("refused", "configuration", message) from error
    out.note("No codexd is running here. If you start it, it will use this configuration:")
    entries = [wire.ConfigEntry(key=key, value=value, origin=origins.get(key)) for key, value in described(config)]
    return wire.ConfigurationReport(file=str(sources.file()), exists=origin is not None, entries=entries)


def _draw(report: wire.ConfigurationReport, options: argparse.Namespace) -> None:
    """Draws a row for each key. Raises VerbFailed for a key that does not exist."""
    for key in options.keys:
        if not any(_matches(entry.key, key) for entry in report.entries):
            raise failed("usage", "key", f"Unknown key or section {quoted(key)}. `codexctl config show` lists them.")
    rows: list[list[drawing.Drawn]] = []
    for entry in report.entries:
        if options.keys and not any(_matches(entry.key, key) for key in options.keys):
            continue
        if options.changed and entry.origin is None:
            continue
        style = "bold" if entry.origin else ""
        value = "unset" if entry.value == "null" else entry.value
        rows.append([drawing.text(entry.key, style), value, drawing.text(entry.origin or "default", "dim")])
    if rows:
        drawing.put(drawing.table(["key", "value", "from"], rows))
    else:
        drawing.put("Every value is the default.")
    if not report.exists and report.file:
        drawing.note(f"There is no configuration file. `codexctl config edit` creates {report.file}.")
    if report.why is not None:
        drawing.note(f"The file cannot be used; the values above stay in effect. {report.why}")
    if report.changed:
        drawing.note(f"Changed in the file, not yet in effect: {', '.join(report.changed)}. Run `codexctl reload`.")
    if report.restart:
        names = ", ".join(report.restart)
        drawing.note(f"Changed in the file, not yet in effect: {names}. Restart codexd; `codexctl restart` shows how.")


def _matches(key: str, wanted: str) -> bool:
    return key == wanted or key.startswith(f"{wanted}.")


def _edit(options: argparse.Namespace, out: Output) -> int:
    """Edits the file and has it reloaded. Raises VerbFailed."""
    path = _file(options)
    if "credentials" in path.parent.parts:
        message = (
            f"{path} is a copy for the running service. Edit the original, such as /etc/codexd/NAME.toml of an "
            "instance, and restart codexd."
        )
        raise failed("refused", "credential", message)
    before = _contents(path)
    editor = _editor()
    try:
        subprocess.run([*editor, str(path)], check=True)  # noqa: S603 - the user's own editor
    except (OSError, subprocess.CalledProcessError) as error:
        message = f"The editor {editor[0]} failed. Set $EDITOR to another one."
        raise failed("refused", "editor", message) from error
    if _contents(path) == before:
        out.note("Nothing has changed.")
        return 0
    try:
        show(options, out, wire.Reload(), drawing.reloaded)
    except DaemonUnreachable:
        try:
            load(path, os.environ)
        except ConfigError as error:
            raise failed("refused", "configuration", f"{error.sentence()} Run `codexctl config edit` again.") from error
        out.note("No codexd is running here; the file takes effect at the next start.")
    return 0


def _contents(path: Path) -> bytes:
    """Returns what is in the file; nothing if there is none. Raises VerbFailed if this user may not change it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        message = f"Cannot change {path}. Use `sudo codexctl config edit`."
        raise failed("refused", "not_writable", message) from error


def _editor() -> list[str]:
    """Returns the command of the user's editor. Raises VerbFailed."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if named:
        return shlex.split(named)
    for editor in EDITORS:
        if shutil.which(editor) is not None:
            return [editor]
    raise failed("usage", "editor", "No editor was found. Set $EDITOR.")
