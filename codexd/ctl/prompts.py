"""``codexctl prompts``: the instruction texts, by family and by model."""

import argparse
import difflib
import sys
from pathlib import Path

from codexd.control import wire
from codexd.ctl import drawing
from codexd.ctl.verbs import Output, failed, replies


def run(options: argparse.Namespace, out: Output) -> int:
    match options.action:
        case "list":
            _say(options, out, wire.PromptsList())
        case "show":
            _say(options, out, wire.PromptsShow(name=options.name))
        case "set":
            _set(options, out)
        case "reset":
            _say(options, out, wire.PromptsReset(name=options.name))
        case _:
            _update(options, out)
    return 0


def _say(options: argparse.Namespace, out: Output, request: wire.Request) -> None:
    for reply in replies(options, request):
        out.reply(reply)
    if out.json:
        out.reply(wire.Done())


def _set(options: argparse.Namespace, out: Output) -> None:
    """Raises Failed."""
    try:
        if options.file == "-":
            text, source = sys.stdin.buffer.read().decode(), "the standard input"
        else:
            path = Path(options.file)
            text, source = path.read_bytes().decode(), str(path.absolute())
    except OSError as error:
        raise failed("usage", "file", f"{options.file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise failed("usage", "file", f"{options.file} is no text in UTF-8.") from error
    _store(options, out, wire.PromptsSet(name=options.name, text=text, source=source))


def _store(options: argparse.Namespace, out: Output, request: wire.PromptsSet) -> None:
    for reply in replies(options, request):
        if out.json or not isinstance(reply, wire.PromptText):
            out.reply(reply)
        else:
            console = drawing.console()
            console.print(f"Set for {reply.name}, from the next request on; SHA-256 {reply.sha256[:12]}.")
    if out.json:
        out.reply(wire.Done())


def _update(options: argparse.Namespace, out: Output) -> None:
    """Shows what would change, and changes it when that is wanted. Raises Failed."""
    with out.waiting("Asking ChatGPT"):
        offered = [reply for reply in replies(options, wire.PromptsOffer()) if isinstance(reply, wire.PromptOffered)]
    if not offered:
        out.note("The official texts are those in force.")
    for offer in offered:
        if out.json:
            out.reply(offer)
        else:
            _diff(offer)
    if offered and (options.yes or _agreed(offered, out)):
        for offer in offered:
            request = wire.PromptsSet(name=offer.name, text=offer.text, source=offer.source)
            for _ in replies(options, request):
                out.note(f"Set for {offer.name}; `codexctl prompts reset {offer.name}` undoes it.")
    if out.json:
        out.reply(wire.Done())


def _agreed(offered: list[wire.PromptOffered], out: Output) -> bool:
    names = ", ".join(offer.name for offer in offered)
    if out.json or not sys.stdin.isatty():
        out.note(f"Nothing is changed: `codexctl prompts update --yes` sets {names}.")
        return False
    return input(f"Use these texts for {names}? [y/N] ").strip().lower() in ("y", "yes")


def _diff(offer: wire.PromptOffered) -> None:
    """In the format of diff, with colours for whoever looks on."""
    console = drawing.console()
    styles = {"+": "green", "-": "red", "@": "cyan"}
    lines = difflib.unified_diff(
        offer.before.splitlines(),
        offer.text.splitlines(),
        f"{offer.name} in force",
        f"{offer.name} official",
        lineterm="",
    )
    for line in lines:
        console.print(line, style=styles.get(line[:1], ""))
